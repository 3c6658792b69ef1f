"""Sealed packets in: opened, judged, and taken as signs of life (`spec/tunnel.md` §6, §9.3, §9.4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from pilot_trio.crypto.aead import counter_of
from pilot_trio.crypto.replay import Verdict
from pilot_trio.errors import AuthenticationError
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.events import (
    Addr,
    Answered,
    ControlArrived,
    Drop,
    PathRecovered,
    Refused,
    RelayCleared,
    Restarted,
    SessionDropped,
)
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.route import PEER_RELAYS
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import EARLY_TIME, RELAYED_PATIENCE, TEARDOWN_GAP
from pilot_trio.proto.tunnel.succession import Succession
from pilot_trio.proto.tunnel.upkeep_packets import is_swallowed, is_upkeep
from pilot_trio.wire import packet as packets
from pilot_trio.wire import tunnel
from pilot_trio.wire.packet import CONTROL, HEADER_SIZE, Packet

Received = tuple[int, Packet]
"""The node that sealed a packet, and the packet."""

_OVERHEAD = tunnel.PILS_HEADER + tunnel.TAG_SIZE  # bytes of a datagram that are not the packet


class SealedPackets:
    """What the machine does with sealed packets."""

    def __init__(self, core: Core, exchanges: KeyExchanges, succession: Succession) -> None:
        self._core = core
        self._succession = succession
        self._exchanges = exchanges

    def receive_run(self, batch: Sequence[tuple[bytes, Addr]], at: int, now: float, received: list[Received]) -> int:
        """Work in sealed datagrams from `at` on that say nothing new about their peer; return how many there were.

        Nearly all are of this kind. It does what `receive` does, with one look at the peer and one note of life for all.
        """
        data, source = batch[at]
        peer = self._core.peers.get(int.from_bytes(data[tunnel.AAD], "big"))
        if peer is None or peer.session is None or not _is_settled(peer, peer.session, source, now):
            return 0
        opened = peer.session.open_run(batch, at)
        if opened:
            taken, size = self._take(peer, opened, now, received)
            if taken:
                self._core.count_received(peer, taken, size + taken * _OVERHEAD, now)
                _note_direct_life(peer, now)
        return len(opened)

    def receive(self, data: bytes, source: Addr, now: float, received: list[Received], *, relayed: bool) -> None:
        """Work in one sealed datagram, whatever it is."""
        core = self._core
        if len(data) < _OVERHEAD:
            core.drop(Drop.SHORT)
            return
        node = int.from_bytes(data[tunnel.AAD], "big")
        peer = core.peers.get(node)
        if peer is None or peer.session is None:
            self._without_session(peer, node, data, source, now, relayed=relayed)
            return
        session = peer.session
        try:
            packet, verdict, newest = session.open(data)
        except AuthenticationError:
            if self._succession.is_undone(peer, data, now):
                self.receive(data, source, now, received, relayed=relayed)
                self._retry_early(peer, now, received)
            else:
                self._failed_to_open(peer, data, source, now, relayed=relayed)
            return
        if verdict is not Verdict.FRESH:
            self._replayed(peer, verdict, counter_of(data), now)
            return
        if not self._take(peer, (packet,), now, received)[0]:
            return
        core.count_received(peer, 1, len(packet) if relayed else len(data), now)
        if session.peer_x25519 is not peer.proven_x25519:
            self._note_key(peer, session.peer_x25519)
        if relayed or not _is_settled(peer, session, source, now):
            self._note_life(peer, source, now, newest=newest, relayed=relayed)
            if relayed and (len(packet) > HEADER_SIZE or packet[1] != CONTROL):  # a keepalive asks for nothing
                self._follow_to_relay(peer, now)
        else:
            _note_direct_life(peer, now)

    def _take(self, peer: Peer, opened: Sequence[bytes], now: float, received: list[Received]) -> tuple[int, int]:
        """Read packets that the peer's session has opened, and hand them on; return how many are genuine, and their bytes."""
        node, before, last = peer.node, len(received), None
        at = refused = refused_size = 0
        while at < len(opened):
            run = packets.read_packets(opened[at:] if at else opened)
            for number, packet in enumerate(run, at):
                source = packet.source
                if source is not last and source.node != node and not (source.node == 0 and is_swallowed(packet)):
                    self._refuse(peer, Drop.SPOOFED_SOURCE, detail=source.node)
                    refused, refused_size = refused + 1, refused_size + len(opened[number])
                elif packet.protocol != CONTROL:
                    last = source
                    received.append((node, packet))
                elif not is_swallowed(packet):
                    if not is_upkeep(packet):
                        peer.used_at = now
                    self._core.events.append(ControlArrived(node, packet))
            at += len(run)
            if at < len(opened):
                self._refuse(peer, Drop.MALFORMED_PACKET)
                refused, refused_size = refused + 1, refused_size + len(opened[at])
                at += 1
        if len(received) > before:
            peer.used_at = now
        return len(opened) - refused, sum(map(len, opened)) - refused_size

    def _refuse(self, peer: Peer, drop: Drop, detail: int = 0) -> None:
        self._core.drop(drop)
        self._core.events.append(Refused(peer.node, drop, detail=detail))

    def _note_life(self, peer: Peer, source: Addr, now: float, *, newest: bool, relayed: bool) -> None:
        """Bookkeeping after a packet that the session opened and that says something new about the path (§9.4)."""
        peer.opened_at = now
        peer.exchange = None
        peer.route.misses = 0
        peer.cooldown_until = -inf
        peer.route.send_errors = 0
        if peer.probes:
            peer.probes = 0
            self._core.events.append(PathRecovered(peer.node))
        if not relayed and peer.route.arrived_directly(source, now, newest=newest):
            self._core.leave_relay(peer)
            self._core.events.append(RelayCleared(peer.node))
        if peer.doubts:
            peer.doubts = 0
            self._core.events.append(Answered(peer.node))

    def _follow_to_relay(self, peer: Peer, now: float) -> None:
        """A peer that takes to the relay, while nothing comes from it directly, most likely hears nothing directly either."""
        route = peer.route
        if not route.relay and now - max(route.last_direct_at, peer.installed_at) >= RELAYED_PATIENCE:
            self._core.turn_to_relay(peer, PEER_RELAYS, pin=False)

    def _note_key(self, peer: Peer, key: bytes) -> None:
        """A key frame of an earlier process can be replayed; a packet that its key opens cannot be made. So this is proof."""
        if peer.proven_x25519 not in (b"", key):
            self._core.events.append(Restarted(peer.node))
        peer.proven_x25519 = key
        self._succession.end(peer)

    def _without_session(
        self, peer: Peer | None, node: int, data: bytes, source: Addr, now: float, *, relayed: bool
    ) -> None:
        core = self._core
        if peer is not None and peer.exchange is not None and now - peer.exchange.last_sent_at < EARLY_TIME:
            # It has our key frame and its own is on the way: some peers seal before they answer (§7.3 step 8).
            self._keep(peer, data, source, now, relayed=relayed)
            return
        core.drop(Drop.NO_SESSION)
        if peer is None:
            asked = self._exchanges.answer_stranger(node, source, now, relayed=relayed)
        else:
            self._keep(peer, data, source, now, relayed=relayed)
            if relayed and peer.route.address is None:
                core.turn_to_relay(peer, "sealed packet came by relay", pin=True)
            elif not relayed and peer.route.address is None:
                peer.route.address = source
            asked = self._exchanges.request(peer, now)
        core.events.append(Refused(node, Drop.NO_SESSION, detail=int(asked)))

    def _failed_to_open(self, peer: Peer, data: bytes, source: Addr, now: float, *, relayed: bool) -> None:
        """Junk, or a peer with a new key whose key frame is still on its way. The session stays: junk proves nothing."""
        core = self._core
        core.drop(Drop.UNDECRYPTABLE)
        core.events.append(Refused(peer.node, Drop.UNDECRYPTABLE))
        core.traffic.failed_to_open += 1
        self._keep(peer, data, source, now, relayed=relayed)
        assert peer.session is not None
        if peer.session.failed_to_open(now) and now - peer.teardown_at >= TEARDOWN_GAP:
            peer.teardown_at = now
            core.events.append(SessionDropped(peer.node, Drop.UNDECRYPTABLE))
            peer.session.decrypt_failures = 0
            self._exchanges.request_again(peer, now)

    def _replayed(self, peer: Peer, verdict: Verdict, counter: int, now: float) -> None:
        """The network, or somebody on the way, has sent it again. The session stays: a peer that counts anew shows it (§4)."""
        core = self._core
        drop = Drop.REPLAY if verdict is Verdict.REPLAY else Drop.OUTSIDE_WINDOW
        core.drop(drop)
        core.events.append(Refused(peer.node, drop, detail=counter))
        assert peer.session is not None
        if peer.session.replayed(verdict, now) and now - peer.teardown_at >= TEARDOWN_GAP:
            peer.teardown_at = now
            core.events.append(SessionDropped(peer.node, drop))
            peer.session.replays = peer.session.outside = 0
            self._exchanges.request_again(peer, now)

    def _keep(self, peer: Peer, data: bytes, source: Addr, now: float, *, relayed: bool) -> None:
        """Hold what no key opens yet; the key may be on its way."""
        peer.early.append((now, data, source, relayed))
        self._core.touch(peer)

    def retry_early(self, node: int, now: float, received: list[Received]) -> None:
        """Open what arrived before its key did."""
        peer = self._core.peers.get(node)
        if peer is not None and peer.session is not None and peer.installed_at == now:
            self._retry_early(peer, now, received)

    def _retry_early(self, peer: Peer, now: float, received: list[Received]) -> None:
        early = list(peer.early)
        peer.early.clear()
        for _, data, source, relayed in early:
            self.receive(data, source, now, received, relayed=relayed)
        peer.early.clear()


def _is_settled(peer: Peer, session: Session, source: Addr, now: float) -> bool:
    """Say whether a packet that the session opens, come directly from this source, changes nothing but times."""
    route = peer.route
    return (
        route.address == source
        and not route.relay
        and not peer.probes
        and not peer.doubts
        and peer.cooldown_until <= now
        and session.peer_x25519 is peer.proven_x25519
    )


def _note_direct_life(peer: Peer, now: float) -> None:
    """Bookkeeping after packets on a path that is settled."""
    peer.opened_at = now
    peer.exchange = None
    route = peer.route
    route.misses = 0
    route.last_direct_at = now
    route.first_sent_at = inf
    route.send_errors = 0
