"""Datagrams in: what kind each of them is, and who deals with it (`spec/tunnel.md` §9.1)."""

from __future__ import annotations

from collections.abc import Sequence

from pilot_trio.errors import DecodeError
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.events import Addr, BeaconSaid, ControlArrived, Drop, PeerAdded, Punched, Refused
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.key_frames import KeyFrames
from pilot_trio.proto.tunnel.route import PEER_RELAYS
from pilot_trio.proto.tunnel.sealed import Received, SealedPackets
from pilot_trio.proto.tunnel.settings import PUNCHES
from pilot_trio.proto.tunnel.upkeep_packets import is_swallowed, is_upkeep
from pilot_trio.wire import beacon, tunnel
from pilot_trio.wire import packet as packets
from pilot_trio.wire.packet import CONTROL, HEADER_SIZE

_ENCRYPTED = frozenset({tunnel.PILS, tunnel.PILA, tunnel.PILK})


class Inbound:
    """The receiving side of the machine."""

    def __init__(self, core: Core, exchanges: KeyExchanges, key_frames: KeyFrames, sealed: SealedPackets) -> None:
        self._core = core
        self._exchanges = exchanges
        self._key_frames = key_frames
        self._sealed = sealed

    def receive(self, batch: Sequence[tuple[bytes, Addr]], now: float, received: list[Received]) -> None:
        """Work in datagrams; add the packets that were authenticated to `received`."""
        core, sealed = self._core, self._sealed
        encrypt, at, end = core.settings.encrypt, 0, len(batch)
        while at < end:
            data, source = batch[at]
            if encrypt and data[:4] == tunnel.PILS:
                taken = sealed.receive_run(batch, at, now, received)
                if taken:
                    at += taken
                    continue
                sealed.receive(data, source, now, received, relayed=False)
            elif not data:
                core.drop(Drop.EMPTY)
            elif data[0] < tunnel.BEACON_BELOW:
                self._on_beacon(data, source, now, received)
            else:
                self._on_frame(data, source, now, received, relayed=False)
            at += 1

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
            self._core.turn_to_relay(peer, PEER_RELAYS, pin=False)

    def _on_frame(self, data: bytes, source: Addr, now: float, received: list[Received], *, relayed: bool) -> None:
        core = self._core
        magic = data[:4]
        if magic == tunnel.PILT:
            self._on_plain(data, source, now, received, relayed=relayed)
        elif magic in _ENCRYPTED and not core.settings.encrypt:
            core.drop(Drop.ENCRYPTION_OFF)
        elif magic == tunnel.PILS:
            self._sealed.receive(data, source, now, received, relayed=relayed)
        elif magic == tunnel.PILA:
            self._key_frames.receive(data, source, now, relayed=relayed)
            if len(data) >= 8:
                self._sealed.retry_early(int.from_bytes(data[4:8], "big"), now, received)
        elif magic == tunnel.PILK:
            self._exchanges.receive_request(data, source, now, relayed=relayed)
        elif magic == tunnel.PILP and not relayed:
            core.drop(Drop.PUNCH)
            core.events.append(Punched(source))
        else:
            core.drop(Drop.SHORT if len(data) < 4 else Drop.UNKNOWN_MAGIC)

    def _on_plain(self, data: bytes, source: Addr, now: float, received: list[Received], *, relayed: bool) -> None:
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
        if peer.route.address is None:
            if relayed:  # the source is the beacon, which takes no frames as they are
                core.turn_to_relay(peer, PEER_RELAYS, pin=False)
            else:
                peer.route.address = source
        core.count_received(peer, 1, len(data), now)
        if is_swallowed(packet):
            return
        if not is_upkeep(packet):
            peer.used_at = now
        if packet.protocol == CONTROL:
            core.events.append(ControlArrived(node, packet))
        else:
            received.append((node, packet))
