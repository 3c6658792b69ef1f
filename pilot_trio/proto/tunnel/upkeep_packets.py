"""The control packets that the tunnel itself sends and swallows (`spec/tunnel.md` §10.6, §11)."""

from __future__ import annotations

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.wire.packet import ACK, CONTROL, Packet


def path_probe(own: int, peer: int, payload: bytes) -> Packet:
    """A packet that any peer answers: the answer shows that the path works, both ways."""
    return Packet(0, CONTROL, _backbone(own), _backbone(peer), 0, 0, payload=payload)


def keepalive(own: int) -> Packet:
    """What refreshes a NAT mapping: addressed to nobody, swallowed by the peer."""
    return Packet(0, CONTROL, _backbone(own), _backbone(0), 0, 0)


def upgrade_probe(own: int, peer: int) -> Packet:
    """What makes a relayed peer notice that the direct path works; never answered."""
    return Packet(ACK, CONTROL, _backbone(own), _backbone(peer), 0, 0, seq=1)


def is_swallowed(packet: Packet) -> bool:
    """Say whether a packet ends in the tunnel: any control packet to port 0 without payload."""
    return packet.protocol == CONTROL and packet.destination_port == 0 and not packet.payload


def _backbone(node: int) -> Address:
    return Address(NetworkId(0), NodeId(node))
