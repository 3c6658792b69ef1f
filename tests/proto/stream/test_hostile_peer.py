"""A peer that sends whatever it likes: nothing grows, no timer runs in circles, and in the end the stream ends."""

from __future__ import annotations

import random

import pytest

from pilot_trio.proto.stream.connection import Connection, State
from pilot_trio.proto.stream.settings import OUTSTANDING_MAX, RECEIVE_SLOTS, SEGMENT, SEND_BUFFER
from pilot_trio.wire import sack
from pilot_trio.wire.packet import ACK, FIN, PAYLOAD_MAX, RST, STREAM, SYN, Packet

from .link import Link, Path

FLAGS = (*[ACK] * 12, SYN, SYN | ACK, FIN, FIN | ACK, 0, ACK | RST)
WINDOWS = (0, 1, 10, 512, 65_535)


class Attack:
    """A conversation, and somebody who puts packets of his own into it at either end."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        path = Path(
            delay=chance.choice([0, 0.001, 0.05]), loss=chance.choice([0, 0.05]), duplication=chance.choice([0, 0.1])
        )
        self.link = Link(path, seed)
        self.link.connect()

    def step(self) -> None:
        link, chance = self.link, self.chance
        index = chance.randrange(2)
        end = link.ends[index]
        assert end is not None
        act = chance.random()
        if act < 0.2:
            end.write(bytes(chance.choice([1, 100, 4000, 60_000])))
        elif act < 0.3:
            end.read(chance.choice([1, 1000, 1 << 20]))
        elif act < 0.41:
            self.let_pass(chance.choice([0.0001, 0.01, 0.3, 3, 70]))
        elif act < 0.42:
            end.close(link.now)
        else:
            for _ in range(chance.choice([1, 3, 30])):
                end.receive_packet(self.packet(end), link.now)
                if chance.random() < 0.7:
                    link.pump(index)
        link.pump(index)
        self.look(end)

    def packet(self, end: Connection) -> Packet:
        chance = self.chance
        payload = chance.choice(
            [
                b"",
                bytes(chance.choice([1, 50, SEGMENT, PAYLOAD_MAX])),
                sack.MAGIC + chance.randbytes(chance.randrange(40)),
                sack.encode([(self.number(end), self.number(end)) for _ in range(chance.randrange(1, 5))]),
            ]
        )
        remote, local = end.remote, end.local
        flags = RST if chance.random() < 0.003 else chance.choice(FLAGS)
        return Packet(
            flags, STREAM, remote.address, local.address, remote.port, local.port,
            self.number(end), self.number(end), chance.choice(WINDOWS), payload,
        )  # fmt: skip

    def number(self, end: Connection) -> int:
        """Return a sequence number, mostly one close to what the end expects."""
        near = [end._receiver.data.rcv_nxt, end._sender.snd_una, end._sender.snd_nxt, 0, self.chance.getrandbits(32)]
        far = [0, 0, 1, -1, SEGMENT, -SEGMENT, 100_000, -100_000, 1 << 31]
        return (self.chance.choice(near) + self.chance.choice(far)) & 0xFFFF_FFFF

    def let_pass(self, seconds: float) -> None:
        """Let time pass; at no moment may there be more to do than two ends and a path can give rise to."""
        link, steps = self.link, 0
        end = link.now + seconds
        while min(due := [e.next_deadline() for e in link.ends if e is not None]) <= end or link._heap:
            if min(due) > end and link._heap[0][0] > end:
                break
            link.step()
            steps += 1
            assert steps < 20_000, f"a loop at {link.now}: {link.a.row()} {link.b.row()}"
        link.now = end

    @staticmethod
    def look(end: Connection) -> None:
        row = end.row()
        assert 0 <= row["in_flight"] <= SEND_BUFFER + 1
        assert row["unacked"] <= OUTSTANDING_MAX + 1
        assert end._sender.outgoing.size <= SEND_BUFFER
        assert end.readable <= (RECEIVE_SLOTS + 1) * PAYLOAD_MAX
        assert row["ooo_buf"] <= RECEIVE_SLOTS


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_peer_sends_the_stream_keeps_its_bounds_and_ends(seed: int) -> None:
    attack = Attack(seed)
    for _ in range(attack.chance.randrange(10, 80)):
        attack.step()
    link = attack.link
    link.path.loss = 0
    for index in (0, 1):
        end = link.ends[index]
        assert end is not None
        end.close(link.now)
        link.pump(index)
    attack.let_pass(1500)
    assert [link.a.state, link.b.state] == [State.CLOSED] * 2


@pytest.mark.parametrize("size", [1, 100, SEGMENT - 1])
def test_a_short_tail_before_a_closed_window_waits_for_the_window_and_not_in_circles(size: int) -> None:
    link = Link(Path(delay=0.01))
    link.connect()
    link.a.write(b"x" * size)
    link.pump(0)
    link.a.write(b"y" * size)  # waits for the answer to the first, or for its deadline
    link.pump(0)
    link.filter = lambda sender, packet: False  # the answers are ours
    shut = Packet(
        ACK, STREAM, link.b.local.address, link.a.local.address, 7, 49152, link.a._receiver.data.rcv_nxt,
        link.a._sender.snd_una & 0xFFFF_FFFF, 0, b"",
    )  # fmt: skip
    link.a.receive_packet(shut, link.now)
    link.pump(0)
    for _ in range(6):  # the tail's deadline, repetitions, probes
        due = link.a.next_deadline()
        assert due > link.now
        link.now = due
        link.a.handle_timeout(link.now)
        link.pump(0)
    link.filter = lambda sender, packet: True
    opened = shut._replace(window=512)
    link.a.receive_packet(opened, link.now)
    link.pump(0)
    link.settle(10)
    assert link.b.read(1 << 20) == b"x" * size + b"y" * size


def test_a_report_about_a_stream_that_nothing_was_written_to_says_nothing() -> None:
    link = Link(Path(delay=0.01))
    link.connect()
    report = sack.encode([(1, 1153), (5000, 9000)])
    packet = Packet(ACK, STREAM, link.b.local.address, link.a.local.address, 7, 49152, 1, 1, 512, report)
    link.a.receive_packet(packet, link.now)
    link.a.write(b"x" * 10_000)
    link.pump(0)
    link.settle(10)
    assert link.b.read(1 << 20) == b"x" * 10_000
