"""The beacon: tells nodes where they appear from, and pokes those for whom something waits at the registry.

`spec/tunnel.md` §14. One task reads the socket in batches and answers in place; frames to relay leave in one batch, in the
order in which they came. Others send postponed notifies, and what the kernel had no room for. Nothing here waits for
anybody: what cannot be sent is dropped and counted, as UDP would.

Gossip is ignored: this beacon has no peers, the directory beside it knows every node that there is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import Addr, DatagramSocket
from pilot_trio.proto.limits import KeyedBuckets
from pilot_trio.rendezvous.beacon_drops import Drop as Drop
from pilot_trio.rendezvous.endpoint_table import EndpointTable, Noted, NotifySchedule
from pilot_trio.rendezvous.punching import Punching
from pilot_trio.rendezvous.relaying import RELAY, Relaying
from pilot_trio.rendezvous.sources import may_come_from, source_of
from pilot_trio.wire.beacon import (
    BeaconMessage,
    Discover,
    DiscoverReply,
    Notify,
    NotifyKind,
    PunchRequest,
    Sync,
    decode,
)

logger: Final = logging.getLogger("pilot_trio.beacon")

DISCOVER_RATE: Final = 100.0  # discovers per second and source host; 6,000 nodes behind one NAT send as many
DISCOVER_SOURCES: Final = 50_000  # source hosts whose rate is tracked, about 15 MB; the one silent longest goes first

_HANDSHAKE_WAITS: Final = Notify(NotifyKind.HANDSHAKE).encode()


def _everybody(_requester: NodeId, _target: NodeId) -> bool:
    return True


def _nowhere(_node: NodeId) -> str:
    return ""


@attrs.frozen
class BeaconStatistics:
    """What a beacon has done so far, and what it knows now."""

    endpoints: int  # nodes whose endpoint is known
    discovers: int
    moves_refused: int  # endpoint changes that came too soon
    strangers: int  # discovers of ids that the registry does not know; answered, not remembered
    notifies: int
    drops: Mapping[Drop, int]
    relayed: int = 0  # frames
    relayed_bytes: int = 0
    punches: int = 0


@attrs.define(eq=False)
class BeaconServer:
    """One beacon on one socket.

    Args:
      is_registered: whether the registry knows a node; others get an answer and leave no trace.
      is_unlimited: whether a source host is free of rate limits.
      may_punch: whether the first node may learn the endpoint of the second, and neither hides its own.
      endpoint_of: the endpoint, host:port, that a node has registered with its signature.
    """

    is_registered: Callable[[NodeId], bool]
    is_unlimited: Callable[[str], bool]
    may_punch: Callable[[NodeId, NodeId], bool] = _everybody
    endpoint_of: Callable[[NodeId], str] = _nowhere
    table: EndpointTable = attrs.field(factory=EndpointTable)
    _schedule: NotifySchedule = attrs.field(factory=NotifySchedule, init=False)
    _postponed: trio.Event = attrs.field(factory=trio.Event, init=False)  # set when a notify was put off
    _rates: KeyedBuckets[str] = attrs.field(
        factory=lambda: KeyedBuckets(DISCOVER_RATE, DISCOVER_RATE, DISCOVER_SOURCES), init=False
    )
    _socket: DatagramSocket | None = attrs.field(default=None, init=False)
    _discovers: int = attrs.field(default=0, init=False)
    _moves_refused: int = attrs.field(default=0, init=False)
    _strangers: int = attrs.field(default=0, init=False)
    _notifies: int = attrs.field(default=0, init=False)
    _drops: Counter[Drop] = attrs.field(factory=Counter, init=False)
    _relaying: Relaying = attrs.field(init=False)
    _punching: Punching = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._relaying = Relaying(self.table, self.is_unlimited, self._drops)
        self._punching = Punching(
            self.table, self.is_registered, self.may_punch, self.is_unlimited, self.endpoint_of, self._drops
        )

    async def serve(self, socket: DatagramSocket) -> None:
        """Answer datagrams until cancelled; closes the socket then."""
        self._socket = socket
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_postponed)
                nursery.start_soon(socket.send_queued)
                while True:
                    self._receive(socket, await socket.receive_batch())
        finally:
            self._socket = None
            socket.close()

    def notify(self, node: NodeId) -> bool:
        """Tell `node` that a handshake waits at the registry; False if nobody knows where it is. Never waits."""
        now = trio.current_time()
        if self.table.find(node, now) is None:
            return False
        if self._schedule.offer(node, now):
            self._send_notify(node, now)
        else:
            self._postponed.set()
        return True

    def statistics(self) -> BeaconStatistics:
        """Return the counters."""
        self.table.expire(trio.current_time())
        sent = None if self._socket is None else self._socket.statistics()
        if sent is not None:  # a socket with counters knows of what it lost later, too
            self._drops[Drop.UNSENT] = max(self._drops[Drop.UNSENT], sent.dropped)
        return BeaconStatistics(
            endpoints=len(self.table),
            discovers=self._discovers,
            moves_refused=self._moves_refused,
            strangers=self._strangers,
            notifies=self._notifies,
            drops={reason: self._drops[reason] for reason in Drop},
            relayed=self._relaying.frames,
            relayed_bytes=self._relaying.size,
            punches=self._punching.punches,
        )

    def _receive(self, socket: DatagramSocket, batch: Sequence[tuple[bytes, Addr]]) -> None:
        """Handle a batch: frames to relay on a path of their own, for they are many."""
        now = trio.current_time()
        forward = self._relaying.forward
        deliveries = []
        for datagram, source in batch:
            if datagram and datagram[0] == RELAY:
                if (delivery := forward(datagram, source, now)) is not None:
                    deliveries.append(delivery)
            else:
                self._handle_untrusted(datagram, Endpoint(*source))
        if deliveries:
            socket.send_batch(deliveries)

    def _handle_untrusted(self, datagram: bytes, source: Endpoint) -> None:
        """Handle one datagram. Whatever is in it, the next one is handled too."""
        try:
            message = decode(datagram)
        except DecodeError:
            self._drops[Drop.MALFORMED] += 1
            return
        try:
            self._handle(message, source)
        except Exception:
            logger.exception("beacon message failed type=%s", type(message).__name__)

    def _handle(self, message: BeaconMessage, source: Endpoint) -> None:
        if isinstance(message, Discover):
            self._on_discover(message, source)
        elif isinstance(message, PunchRequest):
            for command, to in self._punching.commands(message, source, trio.current_time()):
                self._send(command, to)
        elif isinstance(message, Sync):
            self._drops[Drop.UNSUPPORTED] += 1
        else:
            self._drops[Drop.NOT_FOR_BEACONS] += 1

    def _on_discover(self, message: Discover, source: Endpoint) -> None:
        now = trio.current_time()
        if not self.is_unlimited(source.host) and not self._rates.take(source_of(source.host), now):
            self._drops[Drop.RATE_LIMITED] += 1
            return
        self._discovers += 1
        # Id 0 is a node that is about to register and asks for its address only.
        if message.node and self.is_registered(message.node):
            at = self.endpoint_of(message.node)
            registered, home = at == str(source), may_come_from(source.host, at)
            noted = self.table.note(message.node, source, now, multi=message.multi, registered=registered, home=home)
            if noted is Noted.TOO_SOON:
                self._moves_refused += 1
        elif message.node:
            self._strangers += 1
        self._send(DiscoverReply(source.host, source.port).encode(), source)

    async def _send_postponed(self) -> None:
        while True:
            self._postponed = trio.Event()
            with trio.move_on_at(self._schedule.next_deadline()):
                await self._postponed.wait()
                continue  # something was put off: the next deadline may have become earlier
            now = trio.current_time()
            for node in self._schedule.due(now):
                self._send_notify(node, now)

    def _send_notify(self, node: NodeId, now: float) -> None:
        endpoint = self.table.find(node, now)
        if endpoint is not None:
            self._notifies += 1
            self._send(_HANDSHAKE_WAITS, endpoint)

    def _send(self, datagram: bytes, to: Endpoint) -> None:
        if self._socket is None or not self._socket.send_nowait(datagram, to):
            self._drops[Drop.UNSENT] += 1
