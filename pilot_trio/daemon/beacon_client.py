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
from pilot_trio.daemon.beacon_list import BeaconList
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import DecodeError
from pilot_trio.net.addresses import is_public, is_unspecified
from pilot_trio.net.network import Endpoint, Network
from pilot_trio.proto.beacon_choice import SILENT_ROUNDS, BeaconChoice
from pilot_trio.wire.beacon import Discover, DiscoverReply, Notify, NotifyKind, decode, normalise_host

DISCOVER_TIMEOUT: Final = 5.0  # seconds that the start waits for a beacon's answer; protocol, `spec/tunnel.md` §13.3
SECOND_DISCOVER: Final = 1.0  # seconds after the registration; protocol, `spec/tunnel.md` §13.3
DISCOVER_JITTER: Final = 5.0  # seconds; random part of the first interval; protocol, `spec/tunnel.md` §13.3
LIST_INTERVAL: Final = 60.0  # seconds between looks at the list of beacons; protocol, `spec/tunnel.md` §13.5
LIST_JITTER: Final = 10.0  # seconds; random wait before the first; protocol, `spec/tunnel.md` §13.5
RESOLVE_TIMEOUT: Final = 5.0  # seconds for the name of a beacon; name servers that hang must not hold up the rest
DISCOVER_RETRY: Final = 1.0  # seconds until an unanswered discover is repeated; the reference never does
ANNOUNCE_TRIES: Final = 3  # discovers per keepalive interval to a beacon that does not answer
SILENT_INTERVAL: Final = 15.0  # seconds between such rounds while there are other beacons: soon sure, not too soon
RETURN_INTERVAL: Final = 120.0  # seconds between looks at a beacon that was left: what is back for minutes, stays
NAT_INTERVAL: Final = 15.0  # seconds between registrations behind a NAT: how long a dead mapping goes unnoticed
RELAY_INTERVAL: Final = 15.0  # seconds between them while anything is relayed; a beacon that restarts forgets its nodes
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
    """Talks to one of several beacons over the node's UDP socket; `proto.beacon_choice` says to which.

    Args:
      network: resolves names of beacons.
      link: the way to the beacon; whoever reads the socket calls `receive`.
      state: who we are; `beacon_addr` is kept up to date.
      configured: beacons that the operator named.
      listed: the registry's further ones.
      on_notify: called when the beacon says that a handshake waits at the registry; limits its own rate.
      keepalive: seconds between registrations; behind a NAT they are more frequent, because only the beacon's answers show
        that the router has another mapping by now, and so they are while frames for this node come through the beacon.
      relay_only: all of them do.
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
        relay_only: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._network = network
        self._link = link
        self._state = state
        self._configured = tuple(configured)
        self._listed = listed
        self._on_notify = on_notify
        self._keepalive = keepalive
        self._relay_only = relay_only
        self._rng = rng or random.Random()
        self._choice: BeaconChoice[Endpoint] = BeaconChoice()
        self._beacon: Endpoint | None = None  # the one in use, as named
        self._address: Endpoint | None = None  # the same, resolved
        self._replied: list[Endpoint] = []  # the last discover's answer, at most one
        self._reply_arrived = trio.Event()
        self._registered = trio.Event()
        self._chosen = trio.Event()  # the beacon's name was resolved, or could not be
        self._looked_at: Endpoint | None = None  # another beacon, by address, that has been asked for a sign of life
        self._look_answered = trio.Event()
        self._sent = self._replies = self._notifies = self._ignored = 0
        self._asked_at = -math.inf
        self.observed: Endpoint | None = None
        """Where the beacon saw this node last, None if it has not answered yet."""
        self.on_observed: Callable[[Endpoint], None] = _ignore
        """Gets every answer to a registration: where the beacon sees us."""
        self.on_switched: Callable[[], None] = _ignore_switch
        """Called when the list has made another beacon the one to use, which may see us elsewhere. Not when one that has fallen
        silent is left: this node may have moved meanwhile, and what the next one sees is to be compared with what was seen."""

    @property
    def address(self) -> Endpoint | None:
        """The beacon in use, by address; None if there is none, or its name is not known."""
        return self._address

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register at the beacon and follow the registry's list until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            self._choice.offer(self._configured, self._state.identity.public_key)
            await self._look_up()
            self._chosen.set()
            await self._registered.wait()
            nursery.start_soon(self._stay_registered)
            nursery.start_soon(self._follow_list)
            nursery.start_soon(self._return)

    async def discover(self) -> Endpoint | None:
        """Ask the beacon where it sees this socket; return a usable public endpoint, None if there is none to be had.

        Needs `run`. Waits at most 5 seconds for the name of the beacon and 5 for its answer, at the start as long for a second
        one. Does not wait at all for a beacon on a private network: its answer would be a private address, which is of no use
        to others.
        """
        await self._chosen.wait()
        found = await self._ask_where()
        if found is None and not self._registered.is_set() and self._choice.unanswered(SILENT_ROUNDS):
            await self._look_up()
            found = await self._ask_where()
        if found is not None and not is_public(found.host):
            _log.warning("STUN returned private/unusable IP, discarding", extra={"kv": {"endpoint": str(found)}})
            return None
        return found

    async def _ask_where(self) -> Endpoint | None:
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
        return self._replied[0]

    def announce(self) -> None:
        """Register this node at the beacon now: it has an id, or a new one."""
        self._registered.set()
        self._send(Discover(self._state.node_id))

    def statistics(self) -> BeaconStatistics:
        """Return the counters."""
        return BeaconStatistics(self._sent, self._replies, self._notifies, self._ignored)

    # Staying registered

    async def _stay_registered(self) -> None:
        await trio.sleep(SECOND_DISCOVER)
        await self._announce_until_answered()
        await trio.sleep(self._rng.uniform(0, DISCOVER_JITTER))
        pause = self._interval()
        while True:
            await trio.sleep(pause)
            await self._look_up()
            if await self._announce_until_answered():
                self._choice.answered()
                pause = self._interval()
            elif self._choice.unanswered():
                kv = {"silent": str(self._beacon), "instead": str(self._choice.current)}
                _log.warning("beacon silent, using another", extra={"kv": kv})
                pause = 0.0
            else:
                pause = min(self._interval(), SILENT_INTERVAL) if self._choice.has_others else self._interval()

    def _interval(self) -> float:
        interval = min(self._keepalive, NAT_INTERVAL) if self._is_behind_nat() else self._keepalive
        return min(interval, RELAY_INTERVAL) if self._relay_only or self._state.tunnel.relay_peers else interval

    def _is_behind_nat(self) -> bool:
        """Say whether the beacon sees this socket elsewhere than where it is."""
        own, seen = self._link.endpoint, self.observed
        if seen is None or self._address is None:
            return False
        host = own.host if not is_unspecified(own.host) else self._network.source_host(self._address)
        return own.port != seen.port or (bool(host) and host != seen.host)

    async def _announce_until_answered(self) -> bool:
        """Register at the beacon, a few times if there is no answer: it cannot relay to us before; say whether it answered."""
        for _ in range(ANNOUNCE_TRIES):
            if self._address is None:
                return False
            self._reply_arrived = trio.Event()
            self._send(Discover(self._state.node_id))
            with trio.move_on_after(DISCOVER_RETRY):
                await self._reply_arrived.wait()
                return True
        return False

    # Choosing

    async def _follow_list(self) -> None:
        await trio.sleep(self._rng.uniform(0, LIST_JITTER))
        while True:
            listed = await self._listed.ask()
            if listed is not None:
                more = [beacon for beacon in listed if beacon not in self._configured]
                self._choice.offer([*self._configured, *more], self._state.identity.public_key)
                if self._choice.current != self._beacon:
                    self.on_switched()
                    await self._look_up()
                    self._send(Discover(self._state.node_id))
            await trio.sleep(LIST_INTERVAL)

    async def _return(self) -> None:
        """While another beacon is used than the one to prefer, see whether that one is back."""
        while True:
            await trio.sleep(RETURN_INTERVAL)
            preferred = self._choice.preferred
            if preferred is not None:
                answered = await self._is_alive(preferred)
                if preferred == self._choice.preferred and self._choice.looked(answered=answered):
                    _log.info("beacon is back", extra={"kv": {"beacon": str(preferred)}})
                    await self._look_up()
                    self._send(Discover(self._state.node_id))

    async def _is_alive(self, beacon: Endpoint) -> bool:
        """Ask a beacon that is not in use for a sign of life. Number 0 registers nobody: it must not relay to us."""
        self._looked_at = await self._address_of(beacon)
        self._look_answered = trio.Event()
        for _ in range(ANNOUNCE_TRIES):
            if self._looked_at is None:
                return False
            self._link.send_beacon(Discover(NodeId(0)).encode(), self._looked_at)
            with trio.move_on_after(DISCOVER_RETRY):
                await self._look_answered.wait()
                return True
        return False

    async def _look_up(self) -> None:
        """Find the address of the chosen beacon, and tell all who need it."""
        chosen = self._choice.current
        address = await self._address_of(chosen) if chosen is not None else None
        if chosen is None or chosen != self._choice.current:
            return  # there is none, or another was chosen meanwhile and is being looked up
        if chosen != self._beacon:
            self._beacon, self._address = chosen, address
            self._state.beacon_addr = str(chosen)
        self._address = address or self._address  # one found earlier is still the best guess
        self._link.set_beacon(self._address)

    async def _address_of(self, beacon: Endpoint) -> Endpoint | None:
        try:
            with trio.fail_after(RESOLVE_TIMEOUT):
                address = await self._network.resolve(beacon, self._link.endpoint)
        except (OSError, trio.TooSlowError) as exc:
            _log.warning("cannot resolve beacon", extra={"kv": {"beacon": str(beacon), "error": str(exc)}})
            return None
        return Endpoint(normalise_host(address.host), address.port)

    # The socket

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
        sender = Endpoint(normalise_host(source.host), source.port)
        if isinstance(message, DiscoverReply) and sender == self._looked_at and sender != self._address:
            self._look_answered.set()
        elif sender != self._address:
            self._ignored += 1  # anybody can send to this socket; only the beacon may tell us what to do
        elif isinstance(message, DiscoverReply):
            self._replies += 1
            self._replied[:] = [Endpoint(message.host, message.port)]
            self._reply_arrived.set()
            if trio.current_time() - self._asked_at <= REPLY_TIME:
                self._asked_at = -math.inf  # one answer to each question
                self.observed = self._replied[0]
                self.on_observed(self.observed)
        elif isinstance(message, Notify) and message.kind == NotifyKind.HANDSHAKE:
            self._notifies += 1
            self._on_notify()
        else:
            self._ignored += 1


def _ignore(_: Endpoint) -> None:
    """Stand in for a watch that is switched off."""


def _ignore_switch() -> None:
    """Likewise."""
