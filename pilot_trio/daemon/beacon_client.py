"""The node's side of the beacon protocol: where am I seen, am I registered, does something wait (`spec/tunnel.md` §13).

The beacon learns our endpoint from the socket that the tunnels use, so everything goes through them: they pass on what a
beacon says, and get to know which one it is, because they relay and punch through it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.daemon.beacon_list import BeaconList, fnv1a_32
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import DecodeError
from pilot_trio.net.addresses import is_public, is_unspecified
from pilot_trio.net.network import Endpoint, Network
from pilot_trio.wire.beacon import Discover, DiscoverReply, Notify, NotifyKind, decode, normalise_host

DISCOVER_TIMEOUT: Final = 5.0  # seconds that the start waits for a beacon's answer; protocol, `spec/tunnel.md` §13.3
SECOND_DISCOVER: Final = 1.0  # seconds after the registration; protocol, `spec/tunnel.md` §13.3
DISCOVER_JITTER: Final = 5.0  # seconds; random part of the first interval; protocol, `spec/tunnel.md` §13.3
LIST_INTERVAL: Final = 60.0  # seconds between looks at the list of beacons; protocol, `spec/tunnel.md` §13.5
LIST_JITTER: Final = 10.0  # seconds; random wait before the first; protocol, `spec/tunnel.md` §13.5
RESOLVE_TIMEOUT: Final = 5.0  # seconds for the name of a beacon; name servers that hang must not hold up the rest
DISCOVER_RETRY: Final = 1.0  # seconds until an unanswered discover is repeated; the reference never does
ANNOUNCE_TRIES: Final = 3  # discovers per keepalive interval to a beacon that does not answer
NAT_INTERVAL: Final = 15.0  # seconds between registrations behind a NAT: how long a dead mapping goes unnoticed
REPLY_TIME: Final = 2.0  # seconds in which an answer to a discover counts; protocol, `spec/tunnel.md` §12

_log = logging.getLogger("pilot_trio.daemon")


@attrs.frozen
class BeaconStatistics:
    """Counters since the start."""

    sent: int
    replies: int
    notifies: int
    ignored: int  # messages that are not for us, or not from the beacon


class BeaconLink(Protocol):
    """The node's UDP socket and who else uses it: the tunnels."""

    def send_beacon(self, message: bytes, beacon: Endpoint, /) -> bool:
        """Send a message from the socket of the tunnels; False if it was lost."""
        ...

    def set_beacon(self, beacon: Endpoint | None, /) -> None:
        """Learn the address of the beacon in use."""
        ...

    @property
    def endpoint(self) -> Endpoint:
        """Where the socket is bound."""
        ...


class BeaconClient:
    """Talks to one of several beacons over the node's UDP socket.

    Args:
      network: resolves names of beacons.
      link: the way to the beacon; whoever reads the socket calls `receive`.
      state: who we are; `beacon_addr` is kept up to date.
      configured: beacons that the operator named.
      listed: the registry's further ones.
      on_notify: called when the beacon says that a handshake waits at the registry; limits its own rate.
      keepalive: seconds between registrations; behind a NAT they are more frequent, because only the beacon's answers show
        that the router has another mapping by now.
      rng: source of jitter.
    """

    def __init__(
        self,
        *,
        network: Network,
        link: BeaconLink,
        state: NodeState,
        configured: Sequence[Endpoint],
        listed: BeaconList,
        on_notify: Callable[[], None],
        keepalive: float,
        rng: random.Random | None = None,
    ) -> None:
        self._network = network
        self._link = link
        self._state = state
        self._configured = tuple(configured)
        self._listed = listed
        self._on_notify = on_notify
        self._keepalive = keepalive
        self._rng = rng or random.Random()
        self._beacon: Endpoint | None = None  # the chosen one, as named
        self._address: Endpoint | None = None  # the same, resolved
        self._replied: list[Endpoint] = []  # the last discover's answer, at most one
        self._reply_arrived = trio.Event()
        self._registered = trio.Event()
        self._chosen = trio.Event()  # the beacon's name was resolved, or could not be
        self._sent = self._replies = self._notifies = self._ignored = 0
        self._asked_at = -math.inf
        self._observed: Endpoint | None = None  # where the beacon saw us last
        self.on_observed: Callable[[Endpoint], None] = _ignore
        """Gets every answer to a registration: where the beacon sees us."""
        self.on_switched: Callable[[], None] = _ignore_switch
        """Called when another beacon is in use."""

    @property
    def address(self) -> Endpoint | None:
        """The beacon in use, by address; None if there is none, or its name is not known."""
        return self._address

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register at the beacon and follow the registry's list until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            await self._choose(self._configured)
            self._chosen.set()
            await self._registered.wait()
            nursery.start_soon(self._announce_forever)
            nursery.start_soon(self._follow_list)

    async def discover(self) -> Endpoint | None:
        """Ask the beacon where it sees this socket; return a usable public endpoint, None if there is none to be had.

        Needs `run`. Waits at most 5 seconds for the name of the beacon and 5 for its answer, and not at all for a beacon on a private network: its answer would be a private
        address, which is of no use to others.
        """
        await self._chosen.wait()
        if self._address is None:
            return None
        self._reply_arrived = trio.Event()
        self._replied.clear()
        if not is_public(self._address.host):
            self._send(Discover(NodeId(0)))
            return None
        with trio.move_on_after(DISCOVER_TIMEOUT):
            while not self._replied:  # a datagram may get lost, and a private address registered for good
                self._send(Discover(NodeId(0)))
                with trio.move_on_after(DISCOVER_RETRY):
                    await self._reply_arrived.wait()
        if not self._replied:
            _log.warning("STUN discovery got no answer", extra={"kv": {"beacon": str(self._beacon)}})
            return None
        found = self._replied[0]
        if not is_public(found.host):
            _log.warning("STUN returned private/unusable IP, discarding", extra={"kv": {"endpoint": str(found)}})
            return None
        return found

    def announce(self) -> None:
        """Register this node at the beacon now: it has an id, or a new one."""
        self._registered.set()
        self._send(Discover(self._state.node_id))

    def statistics(self) -> BeaconStatistics:
        """Return the counters."""
        return BeaconStatistics(self._sent, self._replies, self._notifies, self._ignored)

    async def _announce_forever(self) -> None:
        await trio.sleep(SECOND_DISCOVER)
        await self._announce_until_answered()
        await trio.sleep(self._rng.uniform(0, DISCOVER_JITTER))
        while True:
            await trio.sleep(min(self._keepalive, NAT_INTERVAL) if self._is_behind_nat() else self._keepalive)
            await self._choose([self._beacon] if self._beacon is not None else [])
            await self._announce_until_answered()

    def _is_behind_nat(self) -> bool:
        """Say whether the beacon sees this socket elsewhere than where it is."""
        own, seen = self._link.endpoint, self._observed
        if seen is None or self._address is None:
            return False
        host = own.host if not is_unspecified(own.host) else self._network.source_host(self._address)
        return own.port != seen.port or (bool(host) and host != seen.host)

    async def _announce_until_answered(self) -> None:
        """A beacon that has lost our datagram cannot relay to us before the next one; a few more cost nothing."""
        for _ in range(ANNOUNCE_TRIES):
            self._reply_arrived = trio.Event()
            self._send(Discover(self._state.node_id))
            with trio.move_on_after(DISCOVER_RETRY):
                await self._reply_arrived.wait()
                return

    async def _follow_list(self) -> None:
        await trio.sleep(self._rng.uniform(0, LIST_JITTER))
        while True:
            listed = await self._listed.ask()
            if listed is not None:
                before = self._beacon
                await self._choose(
                    [*self._configured, *(beacon for beacon in listed if beacon not in self._configured)]
                )
                if self._beacon != before:
                    self._send(Discover(self._state.node_id))
            await trio.sleep(LIST_INTERVAL)

    async def _choose(self, beacons: Sequence[Endpoint]) -> None:
        """Pick the beacon that this node's key falls on, and find its address."""
        if not beacons:
            return
        chosen = beacons[fnv1a_32(self._state.identity.public_key) % len(beacons)]
        try:
            with trio.fail_after(RESOLVE_TIMEOUT):
                address = await self._network.resolve(chosen)
        except (OSError, trio.TooSlowError) as exc:
            # An address found earlier is still the best guess; without one the next interval tries again.
            _log.warning("cannot resolve beacon", extra={"kv": {"beacon": str(chosen), "error": str(exc)}})
            if chosen != self._beacon:
                self._address = None
        else:
            self._address = Endpoint(normalise_host(address.host), address.port)
        if chosen != self._beacon:
            self.on_switched()
        self._beacon = chosen
        self._state.beacon_addr = str(chosen)
        self._link.set_beacon(self._address)

    def _send(self, message: Discover) -> None:
        if self._address is not None and self._link.send_beacon(message.encode(), self._address):
            self._sent += 1
            self._asked_at = trio.current_time()

    def receive(self, data: bytes, source: Endpoint) -> None:
        """Work in a message that may be a beacon's; whatever the bytes, nothing is raised."""
        try:
            message = decode(data)
        except DecodeError:
            self._ignored += 1
            return
        if self._address is None or Endpoint(normalise_host(source.host), source.port) != self._address:
            self._ignored += 1  # anybody can send to this socket; only the beacon may tell us what to do
        elif isinstance(message, DiscoverReply):
            self._replies += 1
            self._replied[:] = [Endpoint(message.host, message.port)]
            self._reply_arrived.set()
            if trio.current_time() - self._asked_at <= REPLY_TIME:
                self._asked_at = -math.inf  # one answer to each question
                self._observed = self._replied[0]
                self.on_observed(self._observed)
        elif isinstance(message, Notify) and message.kind == NotifyKind.HANDSHAKE:
            self._notifies += 1
            self._on_notify()
        else:
            self._ignored += 1


def _ignore(_: Endpoint) -> None:
    """Stand in for a watch that is switched off."""


def _ignore_switch() -> None:
    """Likewise."""
