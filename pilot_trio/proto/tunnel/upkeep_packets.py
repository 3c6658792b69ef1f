"""The control packets that the tunnel itself sends and swallows (`spec/tunnel.md` §10.6, §11)."""

from __future__ import annotations

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.proto.tunnel.settings import PATH_PROBE
from pilot_trio.wire.packet import ACK, CONTROL, Packet


def path_probe(own: int, peer: int) -> Packet:
    """A packet that any peer answers: the answer shows that the path works, both ways."""
    return Packet(0, CONTROL, _backbone(own), _backbone(peer), 0, 0, payload=PATH_PROBE)


def keepalive(own: int) -> Packet:
    """What refreshes a NAT mapping: addressed to nobody, swallowed by the peer."""
    return Packet(0, CONTROL, _backbone(own), _backbone(0), 0, 0)


def ping(own: int, peer: int, port: int, seq: int, payload: bytes) -> Packet:
    """A question that any peer answers with `pong`."""
    return Packet(0, CONTROL, _backbone(own), _backbone(peer), port, 0, seq=seq, payload=payload)


def pong(asked: Packet, own: int) -> Packet | None:
    """Return the answer to a control packet, None if it deserves none (§11.2)."""
    if asked.protocol != CONTROL or asked.destination_port != 0 or not asked.payload or asked.flags & ACK:
        return None
    # Answer as whoever was asked: some peers address the node that they believe us to be.
    source = asked.destination if asked.destination.node else _backbone(own)
    return Packet(
        ACK,
        CONTROL,
        source,
        asked.source,
        0,
        asked.source_port,
        asked.seq,
        asked.seq + 1 & 0xFFFFFFFF,
        0,
        asked.payload,
    )


def is_swallowed(packet: Packet) -> bool:
    """Say whether a packet ends in the tunnel: any control packet to port 0 without payload."""
    return packet.protocol == CONTROL and packet.destination_port == 0 and not packet.payload


def is_upkeep(packet: Packet) -> bool:
    """Say whether a packet is a path probe or the answer to one: a sign of life, but no use of the tunnel (§11.5)."""
    return packet.protocol == CONTROL and packet.payload == PATH_PROBE


def _backbone(node: int) -> Address:
    return Address(NetworkId(0), NodeId(node))
