"""What the parts of the tunnel machine share: the peers, the way out, counters and events."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence

import attrs

from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import Addr, Drop, Event, PathChanged, Refused, RelayActivated
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.route import SILENT
from pilot_trio.proto.tunnel.session import Past, Session
from pilot_trio.proto.tunnel.settings import PEERS_MAX, RELAY_PEERS_MAX, SOURCES_MAX, TunnelSettings
from pilot_trio.wire.beacon import Relay
from pilot_trio.wire.packet import Packet


@attrs.define
class Traffic:
    """Counters that Info shows (`spec/tunnel.md` §16): frames that passed, not key exchanges received."""

    packets_sent: int = 0
    packets_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sealed: int = 0
    failed_to_open: int = 0


class Core:
    """Shared state of one tunnel machine. Only the machine's own parts touch it."""

    def __init__(
        self,
        *,
        identity: Identity,
        keypair: KeyPair,
        settings: TunnelSettings,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.identity = identity
        self.keypair = keypair
        self.settings = settings
        self.random_bytes = random_bytes
        self.node_id = 0  # until the registry has given one
        self.beacon: Addr | None = None
        self.peers: dict[int, Peer] = {}
        self.relayed_peers = 0
        self.touched: dict[int, None] = {}  # nodes for which something may be due earlier than upkeep knows
        self.out: list[tuple[bytes, Addr]] = []
        self.events: deque[Event] = deque()
        self.drops: Counter[Drop] = Counter()
        self.traffic = Traffic()
        self._past: OrderedDict[bytes, Past] = OrderedDict()  # of ended sessions, by the peer's X25519 key

    def peer(self, node: int, now: float) -> Peer:
        """Return the peer, made now if it was unknown; the longest idle one makes room."""
        peer = self.peers.get(node)
        if peer is None:
            if len(self.peers) >= PEERS_MAX:
                idle = min((p for p in self.peers.values() if not p.in_use), key=lambda p: p.frame_at, default=None)
                if idle is not None:
                    self.forget(idle.node)
            peer = self.peers[node] = Peer(node, frame_at=now)
            self.touch(peer)
        return peer

    def touch(self, peer: Peer) -> None:
        """Have upkeep set a peer's deadline anew: something may be due earlier now."""
        self.touched[peer.node] = None

    def end_session(self, peer: Peer) -> None:
        """Drop a peer's session, all but what both ends must know if its key comes back."""
        if peer.session is not None:
            self._past.pop(peer.session.peer_x25519, None)
            if len(self._past) >= SOURCES_MAX:
                self._past.popitem(last=False)
            self._past[peer.session.peer_x25519] = peer.session.past
            peer.session = None

    def past(self, peer_x25519: bytes) -> Past:
        """Return what is known of earlier sessions with the key shared with a peer's."""
        return self._past.pop(peer_x25519, Past())

    def forget(self, node: int) -> None:
        """Drop all state of a peer."""
        peer = self.peers.pop(node, None)
        if peer is not None:
            self.end_session(peer)
        if peer is not None and peer.route.relay:
            self.relayed_peers -= 1

    def drop(self, reason: Drop) -> None:
        """Count something dropped."""
        self.drops[reason] += 1

    def refuse(self, node: int, reason: Drop) -> None:
        """Count something of a node that was refused, and tell operators."""
        self.drops[reason] += 1
        self.events.append(Refused(node, reason))

    def count_received(self, peer: Peer, frames: int, size: int, now: float) -> None:
        """Count frames of a peer that were taken, `size` bytes all together."""
        peer.frame_at = now
        self.traffic.packets_received += frames
        self.traffic.bytes_received += size

    def turn_to_relay(self, peer: Peer, why: str, *, pin: bool) -> bool:
        """Use the relay for a peer, unless too many use it already; return True if it is in use now."""
        if not peer.route.relay and self.relayed_peers >= RELAY_PEERS_MAX:
            return False
        if peer.route.turn_to_relay(why, pin=pin):
            self.relayed_peers += 1
            self.touch(peer)
            self.events.append(RelayActivated(peer.node, why))
        return True

    def leave_relay(self, peer: Peer) -> None:
        """Note that a peer's route has turned back to direct."""
        self.relayed_peers -= 1

    def seal(self, session: Session, packet: Packet) -> bytes:
        """Seal a packet of the tunnel's own; take the frame to the network before the next one is sealed."""
        self.traffic.sealed += 1
        return session.seal(packet.encode())

    # --- the way out -------------------------------------------------------------------------------------------------

    def write(self, peer: Peer, frame: bytes, now: float) -> None:
        """Send a frame on the peer's current path (`spec/tunnel.md` §10.2).

        Raises:
          NoAddress: there is neither an endpoint nor a relay.
        """
        self.write_all(peer, (frame,), now)

    def write_all(self, peer: Peer, frames: Sequence[bytes], now: float) -> None:
        """Send frames as `write` does, one after the other; the path is looked up once unless it is in doubt.

        Raises:
          NoAddress: there is neither an endpoint nor a relay.
        """
        if not frames:
            return
        route, beacon = peer.route, self.beacon
        if beacon is not None and not route.relay and route.is_in_doubt(now):
            if len(frames) > 1:  # each counts against the path, and the relay may take over in the midst of them
                for frame in frames:
                    self.write_all(peer, (frame,), now)
                return
            if route.swallowed():
                self.turn_to_relay(peer, SILENT, pin=True)
        to = None if self.settings.relay_only or (route.relay and beacon is not None) else route.address
        if to is None and beacon is None:
            raise NoAddress(peer.node)
        if to != peer.path:
            peer.path = to
            self.events.append(PathChanged(peer.node, to))
        if to is None:
            for frame in frames:
                self.relay(peer.node, frame)
        else:
            self.out += [(frame, to) for frame in frames]
        route.sent(now)
        peer.frame_at = now
        traffic = self.traffic
        traffic.packets_sent += len(frames)
        traffic.bytes_sent += sum(map(len, frames))

    def relay(self, node: int, frame: bytes) -> None:
        """Send a frame to a node through the beacon, whatever its route says."""
        if self.beacon is not None:
            self.out.append((Relay(self.node_id, node, frame).encode(), self.beacon))  # type: ignore[arg-type]

    def write_direct(self, frame: bytes, to: Addr) -> None:
        """Send a frame to an endpoint, unless this node hides its own."""
        if not self.settings.relay_only:
            self.out.append((frame, to))
