"""Anything the users and the path may do, in any order: Hypothesis looks for a sequence that breaks the promise."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_trio.proto.stream.connection import Connection, State
from pilot_trio.proto.stream.settings import OUTSTANDING_MAX, RECEIVE_SLOTS, SEGMENT, SEND_BUFFER_MAX
from pilot_trio.wire.packet import FIN, RST, SYN, Packet, decode

from .link import address

SIDES = st.integers(0, 1)


class TwoEnds(RuleBasedStateMachine):
    """Two machines, and the packets between them in the hands of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        dialler = Connection.dialling(address(1, 49152), address(2, 7), self.now)
        (syn,) = dialler.packets_to_send(self.now)
        acceptor = Connection.accepting(decode(syn), self.now)
        self.ends = (dialler, acceptor)
        self.on_the_way: tuple[list[Packet], list[Packet]] = ([], [])
        self.written = (bytearray(), bytearray())
        self.read = (bytearray(), bytearray())
        self.closed = [False, False]
        self.boundaries: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self.pump(1)
        self.deliver(0, 0)

    def pump(self, side: int) -> None:
        for packet in map(decode, self.ends[side].packets_to_send(self.now)):
            self.on_the_way[1 - side].append(packet)
            if packet.payload and not packet.payload.startswith(b"SACK") and not packet.flags & (SYN | FIN | RST):
                # A segment once sent keeps its boundaries and its bytes.
                assert self.boundaries[side].setdefault(packet.seq, packet.payload) == packet.payload
        while self.ends[side].next_event() is not None:
            pass

    @rule(side=SIDES, data=st.one_of(st.binary(max_size=50), st.integers(0, 20_000).map(bytes)))
    def write(self, side: int, data: bytes) -> None:
        taken = self.ends[side].write(data)
        self.written[side].extend(data[:taken])
        self.pump(side)

    @rule(side=SIDES, size=st.sampled_from([1, 100, 1 << 20]))
    def reading(self, side: int, size: int) -> None:
        self.read[side].extend(self.ends[side].read(size))
        self.pump(side)

    @precondition(lambda self: any(self.on_the_way))
    @rule(side=SIDES, index=st.integers(0, 1000))
    def deliver(self, side: int, index: int) -> None:
        if waiting := self.on_the_way[side]:
            self.ends[side].receive_packet(waiting.pop(index % len(waiting)), self.now)
            self.pump(side)

    @precondition(lambda self: any(self.on_the_way))
    @rule(side=SIDES)
    def deliver_all(self, side: int) -> None:
        self.ends[side].receive_packets(self.on_the_way[side], self.now)
        self.on_the_way[side].clear()
        self.pump(side)

    @rule(side=SIDES, index=st.integers(0, 1000))
    def lose_or_repeat(self, side: int, index: int) -> None:
        if waiting := self.on_the_way[side]:
            packet = waiting.pop(index % len(waiting))
            if index % 2:
                waiting += [packet, packet]

    @rule(seconds=st.sampled_from([0.0001, 0.01, 0.3, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side, end in enumerate(self.ends):
            if end.next_deadline() <= self.now:
                end.handle_timeout(self.now)
                self.pump(side)
                assert end.next_deadline() > self.now

    @rule(side=SIDES)
    @precondition(lambda self: len(self.written[0]) > 1000)
    def close(self, side: int) -> None:
        self.closed[side] = True
        self.ends[side].close(self.now)
        self.pump(side)

    @invariant()
    def what_is_read_was_written(self) -> None:
        for side in (0, 1):
            assert self.written[1 - side].startswith(self.read[side])

    @invariant()
    def everything_is_bounded(self) -> None:
        for end in self.ends:
            sender = end._sender
            assert 0 <= sender.queue.in_flight <= SEND_BUFFER_MAX
            assert sender.outgoing.size <= SEND_BUFFER_MAX
            assert sender.queue.outstanding <= OUTSTANDING_MAX
            runs = sender.queue._runs
            assert sender.queue.outstanding == sum(run.segments for run in runs)
            assert sender.queue.lost_count == sum(run.segments for run in runs if run.lost)
            assert sender.queue.in_flight == sum(run.size for run in runs if not run.lost and not run.arrived)
            assert sender.queue.holds_short() == any(run.short for run in runs if not run.arrived)
            assert end.readable <= (RECEIVE_SLOTS + 1) * SEGMENT
            assert sender._budget.in_flight == sender.queue.in_flight

    @invariant()
    def whoever_waits_has_a_deadline(self) -> None:
        for end in self.ends:
            if end.state not in {State.CLOSED, State.SYN_SENT}:
                assert end.next_deadline() < float("inf")


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
