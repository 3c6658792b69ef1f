"""Closing over a path that loses one segment again and again."""

from __future__ import annotations

from pilot_trio.wire.packet import Packet
from tests.proto.stream.link import Link, Path


def test_what_was_written_arrives_although_the_end_is_overdue() -> None:
    """The peer answers each FIN that something is missing, so it is worth sending until it is there."""
    link = Link(Path(delay=0.1))
    link.connect()
    start, data = link.now, bytes(range(200)) * 30
    lost: list[int] = []

    def lose_the_second_segment(sender: int, packet: Packet) -> bool:
        if sender == 0 and packet.payload and not lost and not data.startswith(packet.payload):
            lost.append(packet.seq)
        return not (lost and packet.payload and packet.seq == lost[0] and link.now < start + 14)

    link.filter = lose_the_second_segment
    link.a.write(data)
    link.pump(0)
    link.a.close(link.now)
    link.pump(0)
    link.settle(60)
    assert link.b.read(1 << 20) == data
