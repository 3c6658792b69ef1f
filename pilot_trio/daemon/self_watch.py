"""Keeps a node reachable when its surroundings change: another address, a silent socket, a machine that was asleep.

`spec/tunnel.md` §11.6 and §12. What has happened is judged by `proto.address_watch` and `proto.rx_watch`; the remedy is the
same for all: tell the beacon, the peers and the registry where this node is now.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final, Protocol

import attrs
import trio

from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.state import NodeState
from pilot_trio.net.network import Endpoint
from pilot_trio.proto.address_watch import AddressWatch, Change
from pilot_trio.proto.rx_watch import LOOK_INTERVAL, ReceiveWatch, Recovered, Resumed, Silent

ADDRESS_INTERVAL: Final = 1.0  # seconds between looks at the local address; protocol, `spec/tunnel.md` §12
MOVED_GAP: Final = 5.0  # seconds between two rounds of telling peers; a beacon that lies must not keep us at it
SECOND_ANNOUNCEMENT: Final = 31.0  # seconds; beacons ignore a second move within 30; protocol §12
RENEW_ATTEMPTS: Final = 3  # re-registrations per recovery; protocol §12; the heartbeat goes on from there

_log = logging.getLogger("pilot_trio.tunnel")


class Tunnels(Protocol):
    """What is needed of the tunnels."""

    def moved(self) -> int:
        """Show peers where this node is now, until they answer; return how many that concerns."""
        ...


class Beacon(Protocol):
    """What is needed of the beacon client."""

    on_observed: Callable[[Endpoint], None]
    on_switched: Callable[[], None]

    @property
    def address(self) -> Endpoint | None:
        """The beacon in use, by address."""
        ...

    def announce(self) -> None:
        """Say where we are."""
        ...


@attrs.define(eq=False)
class SelfWatch:
    """The watches of one node.

    Args:
      state: who we are, and what has passed through the tunnels.
      tunnels: the peers to tell.
      beacon: says where it sees us; is told where we are.
      renew: registers anew over a fresh connection; says whether that worked.
      rebind: exchanges the tunnels' socket for a fresh one.
      events: where changes are published.
      source_host: the address that the system would send from; see `Network.source_host`.
      clock: see `Network.clock`.
    """

    state: NodeState
    tunnels: Tunnels
    beacon: Beacon
    renew: Callable[[], Awaitable[bool]]
    rebind: Callable[[], Awaitable[None]]
    events: EventBus
    source_host: Callable[[Endpoint], str | None]
    clock: Callable[[], float]
    _watch: AddressWatch = attrs.field(factory=AddressWatch, init=False)
    _change: Change | None = attrs.field(default=None, init=False)  # not acted on yet; a newer one replaces it
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _seen_at: Endpoint | None = attrs.field(default=None, init=False)  # by the beacon, when peers were last told
    _told_at: float = attrs.field(default=-inf, init=False)

    # --- the own address ---------------------------------------------------------------------------------------------

    async def watch_address(self) -> None:
        """Follow the own address until cancelled."""
        self.beacon.on_observed = self._on_observed
        self.beacon.on_switched = self._on_switched
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_local)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                if self._change is not None:
                    await self._recover(self._change, nursery)

    async def _follow_local(self) -> None:
        while True:
            await trio.sleep(ADDRESS_INTERVAL)
            beacon = self.beacon.address
            if beacon is not None:
                host = self.source_host(beacon)
                if host is None:
                    return  # this network cannot say, and will not learn to
                self._note(self._watch.local(host, trio.current_time()))

    def _on_switched(self) -> None:
        self._watch.restart()
        self._seen_at = None

    def _on_observed(self, endpoint: Endpoint) -> None:
        now = trio.current_time()
        if self._seen_at is None:
            self._seen_at = endpoint
        elif endpoint != self._seen_at and now - self._told_at >= MOVED_GAP:
            # Another mapping: who is behind a router of its own cannot reach this one before both have been told. A few
            # probes cost little, so that one answer of the beacon is enough for them; for the registry it takes two.
            self._seen_at, self._told_at = endpoint, now
            self.tunnels.moved()
        self._note(self._watch.observed(str(endpoint), now))
        if self._watch.wants_confirmation(now):
            self.beacon.announce()

    def _note(self, change: Change | None) -> None:
        if change is not None:
            self._change = change
            self._changed.set()

    async def _recover(self, change: Change, nursery: trio.Nursery) -> None:
        if not self.state.registered:
            return
        _log.info("own address changed", extra={"kv": {"reason": change.reason.value, "current": change.current}})
        self.beacon.announce()
        peers = self.tunnels.moved()
        self._told_at = trio.current_time()
        nursery.start_soon(self._announce_again)
        registered = await self._renew()
        data = {
            "reason": change.reason.value,
            "previous": change.previous,
            "current": change.current,
            "peers_notified": peers,
            "registry_ok": registered,
        }
        self.events.publish("tunnel.addr_changed", data)

    async def _announce_again(self) -> None:
        await trio.sleep(SECOND_ANNOUNCEMENT)
        self.beacon.announce()

    async def _renew(self) -> bool:
        for _ in range(RENEW_ATTEMPTS):
            if await self.renew():
                return True
        return False

    # --- silence and sleep -------------------------------------------------------------------------------------------

    async def watch_receiving(self) -> None:
        """Look now and then whether packets arrive, until cancelled."""
        watch = ReceiveWatch(self.clock())
        while True:
            await trio.sleep(LOOK_INTERVAL)
            tunnel = self.state.tunnel
            dials = self.state.dials_unanswered
            verdict = watch.look(self.clock(), tunnel.packets_received, tunnel.packets_sent, dials)
            if verdict is not None and self.state.registered:
                self._publish(verdict)
                if not isinstance(verdict, Recovered):
                    await self._remedy(verdict)

    async def _remedy(self, verdict: Silent | Resumed) -> None:
        """Announce this node anew; if that has not made anything arrive, from another socket."""
        if isinstance(verdict, Silent) and verdict.deaf and verdict.attempt > 1:
            await self.rebind()
            _log.warning("tunnel socket bound anew", extra={"kv": {"attempt": verdict.attempt}})
        self.beacon.announce()
        self.tunnels.moved()
        await self.renew()

    def _publish(self, verdict: Silent | Recovered | Resumed) -> None:
        if isinstance(verdict, Resumed):
            _log.info("host resumed", extra={"kv": {"gap_seconds": int(verdict.gap)}})
            self.events.publish("tunnel.host_resumed", {"gap_seconds": int(verdict.gap)})
        elif isinstance(verdict, Recovered):
            data = {"silent_for_seconds": int(verdict.silent_for), "soft_attempts": verdict.attempts}
            _log.info("receiving again", extra={"kv": data})
            self.events.publish("tunnel.rx_recovered", data)
        else:
            kv = {"reason": verdict.reason, "silent_for": int(verdict.silent_for), "attempt": verdict.attempt}
            _log.warning("nothing received, or nobody reached; registering anew", extra={"kv": kv})
            silence: dict[str, Any] = {
                "reason": verdict.reason,
                "silent_for_seconds": int(verdict.silent_for),
                "pkts_sent_during_silence": verdict.sent,
                "dial_timeouts": verdict.dials,
                "attempt": verdict.attempt,
            }
            self.events.publish("tunnel.rx_silence", silence)
