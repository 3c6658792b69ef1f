"""`TunnelMachine`: every peer behind one UDP socket, without the socket (`spec/tunnel.md`).

The shell hands over what arrived (`receive_datagrams`), what is to be sent (`send`), answers to questions (`on_key`,
`on_route`) and the passing of time (`handle_timeout`). After each of these it sends `datagrams_to_send`, in that order,
acts on `next_event` until there is none, and sets its timer to `next_deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import attrs

from pilot_trio.crypto.aead import counter_of
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.crypto.replay import Verdict
from pilot_trio.errors import AuthenticationError, DecodeError
from pilot_trio.proto.tunnel.core import Core, Traffic
from pilot_trio.proto.tunnel.errors import ExchangeFailed, NoTunnel, QueueFull, TooManyPending
from pilot_trio.proto.tunnel.events import (
    Addr,
    BeaconSaid,
    Drop,
    Event,
    PathRecovered,
    PeerAdded,
    Refused,
    RelayCleared,
    Restarted,
    RouteNeeded,
    SessionDropped,
)
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.settings import (
    EARLY_TIME,
    PUNCHES,
    QUEUE_PACKETS,
    QUEUE_PEERS,
    TEARDOWN_GAP,
    TunnelSettings,
)
from pilot_trio.proto.tunnel.upkeep import Upkeep
from pilot_trio.proto.tunnel.upkeep_packets import is_swallowed
from pilot_trio.wire import beacon, tunnel
from pilot_trio.wire import packet as packets
from pilot_trio.wire.packet import CONTROL, HEADER_SIZE, STREAM, Packet

Received = tuple[int, Packet]
"""The node that sealed a packet, and the packet."""

DIAL_FALLBACK = "dial got no direct answer"
"""Why a peer is on the relay after `use_relay`."""

_SEALED_MIN = tunnel.PILS_HEADER + tunnel.TAG_SIZE


@attrs.frozen
class RouteAnswer:
    """How the registry says that a node is reached."""

    address: Addr
    relay_only: bool = False
    same_lan: bool = False  # an address inside our own network: no punch needed


class TunnelMachine:
    """All tunnels of one node. See the module for how to drive it."""

    def __init__(
        self,
        *,
        identity: Identity,
        keypair: KeyPair,
        random_bytes: Callable[[int], bytes],
        settings: TunnelSettings | None = None,
    ) -> None:
        self._core = Core(
            identity=identity, keypair=keypair, settings=settings or TunnelSettings(), random_bytes=random_bytes
        )
        self._exchanges = KeyExchanges(self._core)
        self._upkeep = Upkeep(self._core, self._exchanges)

    # --- what the shell tells ----------------------------------------------------------------------------------------

    def on_registered(self, node: int, identity: Identity) -> None:
        """Use this node id and identity from now on. Another id ends every tunnel: it is part of all that was sealed."""
        core = self._core
        if core.node_id not in (0, node):
            for known in list(core.peers):
                self.forget(known)
        core.node_id, core.identity = node, identity

    def set_beacon(self, beacon_address: Addr | None) -> None:
        """Relay and punch through this beacon."""
        self._core.beacon = beacon_address

    def set_in_use(self, node: int, in_use: bool, now: float) -> None:
        """Note whether connections to the node are open: one in use is kept warm."""
        peer = self._core.peers.get(node)
        if peer is not None:
            peer.in_use, peer.used_at = in_use, now

    def ensure(self, node: int, now: float) -> None:
        """Make contact with a node: resolve it unless its endpoint is known, exchange keys unless there is a session."""
        peer = self._core.peers.get(node)
        if peer is None or (peer.route.address is None and not peer.route.relay):
            self._core.events.append(RouteNeeded(node))
        elif peer.session is None and peer.exchange is None and now >= peer.cooldown_until:
            self._exchanges.start(peer, now, copy=True)
        self._upkeep.arm(now)

    def on_route(self, node: int, answer: RouteAnswer | None, now: float) -> None:
        """Take the answer to `RouteNeeded`; None if the node could not be resolved."""
        core = self._core
        known = core.peers.get(node)
        if answer is None:
            return
        if known is not None and known.route.relay and known.session is not None and not answer.relay_only:
            self._upkeep.start_upgrade(known, answer.address, now)
            return
        peer = known or core.peer(node, now)
        peer.used_at = now
        if answer.relay_only or core.settings.relay_only:
            core.turn_to_relay(peer, "relay only", pin=True)
        elif not answer.same_lan:
            self._upkeep.punch(node)
        if peer.route.address is None and not answer.relay_only:
            peer.route.address = answer.address
        if peer.session is None and peer.exchange is None and now >= peer.cooldown_until:
            self._exchanges.start(peer, now, copy=True)
        self._upkeep.arm(now)

    def on_key(self, node: int, key: bytes | None, now: float) -> list[Received]:
        """Take the answer to `KeyNeeded`, None if it could not be had; return packets that waited for it."""
        received: list[Received] = []
        self._exchanges.on_key(node, key, now)
        self._retry_early(node, now, received)
        self._upkeep.arm(now)
        return received

    def use_relay(self, node: int) -> bool:
        """Turn a peer to the relay for a dial that got no answer directly; True if it was not on it. Direct packets end it."""
        peer = self._core.peers.get(node)
        if peer is None or self._core.beacon is None or peer.route.relay:
            return False
        return self._core.turn_to_relay(peer, DIAL_FALLBACK, pin=False)

    def undo_relay(self, node: int) -> None:
        """Take `use_relay` back: the dial failed by relay too. What others have pinned stays."""
        peer = self._core.peers.get(node)
        if peer is not None and peer.route.relay and not peer.route.pinned:
            peer.route.relay = False
            peer.route.why = ""
            self._core.leave_relay(peer)

    def reset_path(self, node: int, now: float) -> dict[str, Any]:
        """Forget tunnel and route of a node and start over; say what there was (`prefer-direct`)."""
        peer = self._core.peers.get(node)
        report = {
            "had_tunnel": peer is not None and peer.session is not None,
            "was_relay_active": peer is not None and peer.route.relay,
            "was_relay_pinned": peer is not None and peer.route.pinned,
        }
        if peer is not None:
            if peer.route.relay:
                peer.route.relay = False
                self._core.leave_relay(peer)
            self._upkeep.reset_path(peer, now)
        else:
            self._core.events.append(RouteNeeded(node))
        return report

    def forget(self, node: int) -> None:
        """Drop all state of a node: trust in it was withdrawn."""
        self._core.forget(node)
        self._upkeep.forget(node)

    def unreachable(self, to: Addr) -> None:
        """Note that the network said "no way there" for an endpoint."""
        for peer in self._core.peers.values():
            if peer.route.address == to and peer.route.unreachable() and self._core.beacon is not None:
                self._core.turn_to_relay(peer, "direct path unreachable", pin=True)

    # --- packets out -------------------------------------------------------------------------------------------------

    def send(self, node: int, packet: Packet, now: float) -> None:
        """Seal and send a packet, or keep it until there is a key (§8).

        Raises:
          TunnelError: it was not taken; the text is for clients.
        """
        self.send_packets(node, (packet.encode(),), now, salvage=packet.protocol != STREAM)

    def send_packets(self, node: int, packets: Sequence[bytes], now: float, *, salvage: bool = False) -> None:
        """Seal and send encoded packets, in this order, or keep them until there is a key (§8).

        Args:
          node: where they go.
          packets: on the wire's layout, their checksums included.
          now: the machine's clock.
          salvage: send them again if the peer turns out to have lost the key (§7.8). Not for streams: those repeat themselves.

        Raises:
          TunnelError: not all were taken, which can be so after the first of them were; the text is for clients.
        """
        core = self._core
        peer = core.peers.get(node)
        if peer is None:
            raise NoTunnel(node)
        peer.used_at = now
        session = peer.session
        if not core.settings.encrypt:
            core.write_all(peer, [tunnel.PILT + packet for packet in packets], now)
        elif session is None:
            self._enqueue(peer, packets, now)
        else:
            if salvage:
                session.remember(packets, now)
            seal = session.seal
            core.write_all(peer, [seal(packet) for packet in packets], now)
            core.traffic.sealed += len(packets)

    def _enqueue(self, peer: Peer, packets: Sequence[bytes], now: float) -> None:
        if now < peer.cooldown_until:
            raise ExchangeFailed(peer.node)
        if not peer.queue and sum(1 for other in self._core.peers.values() if other.queue) >= QUEUE_PEERS:
            raise TooManyPending
        room = QUEUE_PACKETS - len(peer.queue)
        peer.queue.extend((now, packet) for packet in packets[:room])
        if peer.exchange is None:
            self._exchanges.start(peer, now, copy=True)
        self._upkeep.arm(now)
        if len(packets) > room:
            self._core.drops[Drop.QUEUE_FULL] += len(packets) - room
            self._core.events.append(Refused(peer.node, Drop.QUEUE_FULL))
            raise QueueFull(peer.node)

    def datagrams_to_send(self) -> list[tuple[bytes, Addr]]:
        """Return what is to be sent now, in the order in which nonces were taken; everything is handed out once."""
        out, self._core.out = self._core.out, []
        return out

    # --- datagrams in ------------------------------------------------------------------------------------------------

    def receive_datagrams(self, batch: Sequence[tuple[bytes, Addr]], now: float) -> list[Received]:
        """Work in datagrams; return the packets that were authenticated, in order. Never raises, whatever the bytes."""
        received: list[Received] = []
        encrypt = self._core.settings.encrypt
        for data, source in batch:
            if encrypt and data.startswith(tunnel.PILS):
                self._on_sealed(data, source, now, received, relayed=False)
            elif not data:
                self._core.drop(Drop.EMPTY)
            elif data[0] < tunnel.BEACON_BELOW:
                self._on_beacon(data, source, now, received)
            else:
                self._on_frame(data, source, now, received, relayed=False)
        self._upkeep.arm(now)
        return received

    def _on_beacon(self, data: bytes, source: Addr, now: float, received: list[Received]) -> None:
        core = self._core
        kind = data[0]
        if kind not in (beacon.BeaconType.RELAY_DELIVERY, beacon.BeaconType.PUNCH_COMMAND):
            core.events.append(BeaconSaid(data, source))
            return
        if source != core.beacon:
            core.drop(Drop.NOT_FROM_BEACON)
            core.events.append(Refused(0, Drop.NOT_FROM_BEACON, detail=kind))
            return
        try:
            message = beacon.decode(data)
        except DecodeError:
            core.drop(Drop.BAD_BEACON_MESSAGE)
            return
        if isinstance(message, beacon.PunchCommand):
            for _ in range(PUNCHES):
                core.write_direct(tunnel.PILP, (message.host, message.port))
        elif isinstance(message, beacon.RelayDelivery) and message.frame:
            self._note_relayed(message.sender, now)
            self._on_frame(message.frame, source, now, received, relayed=True)

    def _note_relayed(self, node: int, now: float) -> None:
        """A peer with a session but without a direct address is reached the way it reaches us (§9.2)."""
        peer = self._core.peers.get(node)
        if peer is not None and peer.session is not None and peer.route.address is None:
            self._core.turn_to_relay(peer, "peer sends by relay", pin=False)

    def _on_frame(self, data: bytes, source: Addr, now: float, received: list[Received], *, relayed: bool) -> None:
        core = self._core
        magic = data[:4]
        if magic == tunnel.PILS and core.settings.encrypt:
            self._on_sealed(data, source, now, received, relayed=relayed)
        elif magic == tunnel.PILA and core.settings.encrypt:
            self._exchanges.receive_key_frame(data, source, now, relayed=relayed)
            if len(data) >= 8:
                self._retry_early(int.from_bytes(data[4:8], "big"), now, received)
        elif magic == tunnel.PILK and core.settings.encrypt:
            self._exchanges.receive_request(data, source, now, relayed=relayed)
        elif magic == tunnel.PILT:
            self._on_plain(data, source, now, received)
        elif magic == tunnel.PILP:
            core.drop(Drop.PUNCH)
        else:
            core.drop(Drop.SHORT if len(data) < 4 else Drop.UNKNOWN_MAGIC)

    def _on_plain(self, data: bytes, source: Addr, now: float, received: list[Received]) -> None:
        core = self._core
        if core.settings.encrypt:
            core.drop(Drop.PLAINTEXT)
            return
        try:
            packet = packets.decode(data[4:])
        except DecodeError:
            core.drop(Drop.SHORT if len(data) < 4 + HEADER_SIZE else Drop.MALFORMED_PACKET)
            return
        node = packet.source.node
        if node not in core.peers:
            core.events.append(PeerAdded(node))
        peer = core.peer(node, now)
        peer.route.address = peer.route.address or source
        self._count_received(peer, len(data), now)
        if not is_swallowed(packet):
            peer.used_at = now
            received.append((node, packet))

    def _on_sealed(self, data: bytes, source: Addr, now: float, received: list[Received], *, relayed: bool) -> None:
        core = self._core
        if len(data) < _SEALED_MIN:
            core.drop(Drop.SHORT)
            return
        node = int.from_bytes(data[tunnel.AAD], "big")
        peer = core.peers.get(node)
        if peer is None or peer.session is None:
            self._without_session(peer, node, data, source, now, relayed=relayed)
            return
        session = peer.session
        try:
            raw, verdict, newest = session.open(data)
        except AuthenticationError:
            self._failed_to_open(peer, data, source, now, relayed=relayed)
            return
        if verdict is not Verdict.FRESH:
            self._replayed(peer, verdict, counter_of(data), now)
            return
        try:
            packet = packets.decode(raw)
        except DecodeError:
            core.drop(Drop.MALFORMED_PACKET)
            core.events.append(Refused(node, Drop.MALFORMED_PACKET))
            return
        if packet.source.node != node and not (packet.source.node == 0 and is_swallowed(packet)):
            core.drop(Drop.SPOOFED_SOURCE)
            core.events.append(Refused(node, Drop.SPOOFED_SOURCE, detail=packet.source.node))
            return
        self._count_received(peer, len(raw) if relayed else len(data), now)
        peer.opened_at = now
        peer.exchange = None
        route = peer.route
        route.misses = 0
        if session.peer_x25519 is not peer.proven_x25519:
            self._note_key(peer, session.peer_x25519)
        if relayed or route.relay or route.address != source or peer.probes or peer.cooldown_until > now:
            self._note_life(peer, source, now, newest=newest, relayed=relayed)
        else:
            route.last_direct_at = now
            route.first_sent_at = inf
            route.send_errors = 0
        if packet.protocol != CONTROL or not is_swallowed(packet):
            peer.used_at = now
            received.append((node, packet))

    def _count_received(self, peer: Peer, size: int, now: float) -> None:
        peer.frame_at = now
        self._core.traffic.packets_received += 1
        self._core.traffic.bytes_received += size

    def _note_life(self, peer: Peer, source: Addr, now: float, *, newest: bool, relayed: bool) -> None:
        """Bookkeeping after a packet that the session opened and that says something new about the path (§9.4)."""
        peer.cooldown_until = -inf
        peer.route.send_errors = 0
        if peer.probes:
            peer.probes = 0
            self._core.events.append(PathRecovered(peer.node))
        if not relayed and peer.route.arrived_directly(source, now, newest=newest):
            self._core.leave_relay(peer)
            self._core.events.append(RelayCleared(peer.node))

    def _note_key(self, peer: Peer, key: bytes) -> None:
        """A key frame of an earlier process can be replayed; a packet that its key opens cannot be made. So this is proof."""
        if peer.proven_x25519 not in (b"", key):
            self._core.events.append(Restarted(peer.node))
        peer.proven_x25519 = key

    def _without_session(
        self, peer: Peer | None, node: int, data: bytes, source: Addr, now: float, *, relayed: bool
    ) -> None:
        core = self._core
        if peer is not None and peer.exchange is not None and now - peer.exchange.last_sent_at < EARLY_TIME:
            # It has our key frame and its own is on the way: some peers seal before they answer (§7.3 step 8).
            peer.early.append((now, data, source, relayed))
            return
        core.drop(Drop.NO_SESSION)
        if peer is None:
            asked = self._exchanges.answer_stranger(node, source, now, relayed=relayed)
        else:
            peer.early.append((now, data, source, relayed))
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
        peer.early.append((now, data, source, relayed))
        assert peer.session is not None
        if peer.session.failed_to_open(now) and now - peer.teardown_at >= TEARDOWN_GAP:
            peer.teardown_at = now
            core.events.append(SessionDropped(peer.node, Drop.UNDECRYPTABLE))
            peer.session.decrypt_failures = 0
            self._exchanges.request_again(peer, now)

    def _replayed(self, peer: Peer, verdict: Verdict, counter: int, now: float) -> None:
        core = self._core
        drop = Drop.REPLAY if verdict is Verdict.REPLAY else Drop.OUTSIDE_WINDOW
        core.drop(drop)
        core.events.append(Refused(peer.node, drop, detail=counter))
        assert peer.session is not None
        if peer.session.replayed(verdict, now) and now - peer.teardown_at >= TEARDOWN_GAP:
            peer.teardown_at = now
            core.end_session(peer)
            core.events.append(SessionDropped(peer.node, drop))
            self._exchanges.request(peer, now)

    def _retry_early(self, node: int, now: float, received: list[Received]) -> None:
        """Open what arrived before its key did."""
        peer = self._core.peers.get(node)
        if peer is None or peer.session is None or not peer.early or peer.installed_at != now:
            return
        early = list(peer.early)
        peer.early.clear()
        for _, data, source, relayed in early:
            self._on_sealed(data, source, now, received, relayed=relayed)
        peer.early.clear()

    # --- time and outputs --------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        self._upkeep.run(now)

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is next needed; `math.inf` if never."""
        return self._upkeep.next_deadline()

    def next_event(self) -> Event | None:
        """Return the next event, or None."""
        return self._core.events.popleft() if self._core.events else None

    @property
    def traffic(self) -> Traffic:
        """Counters of what passed."""
        return self._core.traffic

    @property
    def drops(self) -> dict[Drop, int]:
        """How much was dropped, by reason."""
        return dict(self._core.drops)

    def has_session(self, node: int) -> bool:
        """Say whether packets to a node leave at once."""
        peer = self._core.peers.get(node)
        return peer is not None and (peer.session is not None or not self._core.settings.encrypt)

    def is_relayed(self, node: int) -> bool:
        """Say whether a node is reached by relay."""
        peer = self._core.peers.get(node)
        return peer is not None and peer.route.relay

    def knows(self, node: int) -> bool:
        """Say whether there is any state of a node."""
        return node in self._core.peers

    def has_route(self, node: int) -> bool:
        """Say whether it is known how to reach a node."""
        peer = self._core.peers.get(node)
        return peer is not None and (peer.route.address is not None or peer.route.relay)

    def is_heard_by_relay_only(self, node: int) -> bool:
        """Say whether a node's key came by relay and nothing ever came from it directly (§10.5)."""
        peer = self._core.peers.get(node)
        return peer is not None and peer.route.key_came_by_relay and peer.route.last_direct_at == -inf

    @property
    def peers(self) -> int:
        """How many peers are known."""
        return len(self._core.peers)

    @property
    def relayed_peers(self) -> int:
        """How many of them are reached by relay."""
        return self._core.relayed_peers

    @property
    def encrypted_peers(self) -> int:
        """How many of them there is a session with."""
        return sum(1 for peer in self._core.peers.values() if peer.session is not None)

    def peer_rows(self) -> list[dict[str, Any]]:
        """Return the peers as clients see them (`spec/ipc.md` §5.9), and why each takes its path."""
        return [
            {
                "node_id": peer.node,
                "endpoint": "" if peer.route.address is None else f"{peer.route.address[0]}:{peer.route.address[1]}",
                "encrypted": peer.session is not None,
                "authenticated": peer.authenticated,
                "relay": peer.route.relay,
                "relay_reason": peer.route.why,
            }
            for peer in self._core.peers.values()
        ]
