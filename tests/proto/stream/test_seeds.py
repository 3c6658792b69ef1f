"""Many short lives on many bad paths: what is written is what is read, nothing stands still, nothing stays behind.

A failing seed is in the test's message; `play(seed)` plays it again, to the last packet.
"""

from __future__ import annotations

import random

import pytest

from pilot_trio.proto.stream.budget import PEER_BURST
from pilot_trio.proto.stream.congestion import CWND_NEAR
from pilot_trio.proto.stream.connection import State
from pilot_trio.proto.stream.settings import RECEIVE_SLOTS, SEGMENT
from pilot_trio.wire.packet import SYN, Packet

from .link import Link, Path

SEEDS = 1000
BATCH = 100  # seeds in one test, so that a failure names its hundred
LIMIT = 400.0  # seconds of virtual time that anything may take


def path_of(chance: random.Random) -> Path:
    return Path(
        delay=chance.choice([0.0001, 0.005, 0.03, 0.2]),
        jitter=chance.choice([0.0, 0.0, 0.002, 0.03]),
        loss=chance.choice([0.0, 0.01, 0.05, 0.2]),
        duplication=chance.choice([0.0, 0.0, 0.1]),
        rate=chance.choice([float("inf"), 5e6, 200_000.0]),
        queue=chance.choice([50_000, 1 << 20]),
        largest=chance.choice([float("inf"), 8191, 1300]),
    )


def fickle(packet: Packet, chance: random.Random) -> Packet:
    """Let a peer of our own kind open and close its window as it likes."""
    if packet.flags & SYN:
        return packet
    return packet._replace(window=min(packet.window, chance.choice([0, 1, 5, 60, RECEIVE_SLOTS, RECEIVE_SLOTS])))


def play(seed: int) -> None:
    """Open a stream, write both ways with pauses of the reader, close from either side, and look at what is left."""
    chance = random.Random(seed)
    link = Link(path_of(chance), seed, segment_limit=chance.choice([SEGMENT, SEGMENT, 1380, 8192]))
    kind = chance.random()
    if kind < 0.5:
        link.alter = lambda packet: packet._replace(window=min(512, packet.window))
    elif kind < 0.7:
        link.alter = lambda packet: fickle(packet, chance)
    link.connect()
    outbound = chance.randbytes(chance.choice([0, 1, 1152, 5000, 60_000]))
    inbound = chance.randbytes(chance.choice([0, 10, 3000, 20_000]))
    sent, got = [0, 0], [bytearray(), bytearray()]
    closer = chance.randrange(2)
    paused_until = chance.choice([0.0, 0.0, 2.0])

    def move() -> bool:
        for index, data in enumerate((outbound, inbound)):
            end, other = (link.a, link.b) if index == 0 else (link.b, link.a)
            if sent[index] < len(data):
                size = chance.choice([1, 7, 1152, 4096, 100_000])
                sent[index] += end.write(memoryview(data)[sent[index] : sent[index] + size])
            if link.now >= paused_until:
                got[index] += other.read(chance.choice([1, 500, 1 << 20]))
            link.pump(index)
        return len(got[0]) >= len(outbound) and len(got[1]) >= len(inbound)

    link.wake_every = 0.01
    link.run(move, LIMIT)
    assert (bytes(got[0]), bytes(got[1])) == (outbound, inbound), f"seed {seed}"
    end, other = (link.a, link.b) if closer == 0 else (link.b, link.a)
    last = chance.randbytes(chance.choice([0, 100, 30_000]))
    assert end.write(last) == len(last)
    end.close(link.now)
    link.wake_every = float("inf")
    link.pump(closer)
    link.run(lambda: other.ended, LIMIT)
    received = bytearray()
    while chunk := other.read(1000):
        received += chunk
    assert bytes(received) == last, f"seed {seed}"
    link.run(lambda: link.a.state is link.b.state is State.CLOSED, LIMIT)
    for machine in (link.a, link.b):
        budget = machine._sender._budget
        assert (budget.in_flight, budget.held_by_paths) == (0, 0), f"seed {seed}"
        assert not budget.segment_size._probing, f"seed {seed}"
        assert machine.next_deadline() == float("inf"), f"seed {seed}"


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_life_ends_well(first: int) -> None:
    for seed in range(first, first + BATCH):
        play(seed)


def test_a_stream_on_a_short_path_has_no_more_out_than_a_socket_buffer_may_hold() -> None:
    link = Link(Path(delay=0.0001), seed=1)
    link.connect()
    link.a.write(bytes(1 << 20))
    link.pump(0)
    most = 0

    def watch() -> bool:
        nonlocal most
        link.b.read(1 << 30)
        link.pump(1)
        most = max(most, int(link.a.row()["in_flight"]))
        return link.b.bytes_received == 1 << 20

    link.run(watch, 10)
    assert PEER_BURST < most <= CWND_NEAR
