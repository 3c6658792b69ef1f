"""The scoreboard against a plain one that has a record for every segment."""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pilot_trio.proto.stream.send_queue import Run, SendQueue
from pilot_trio.proto.stream.settings import SEGMENT

SIZES = [SEGMENT, 1380, 8192]


@attrs.define
class Plain:
    """One segment."""

    start: int
    end: int
    sent_at: float
    arrived: bool = False
    lost: bool = False
    transmissions: int = 1


class Scoreboards(RuleBasedStateMachine):
    """Whatever is sent, acknowledged, reported and given up: both know the same of every segment."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = SendQueue()
        self.plain: list[Plain] = []
        self.next = 1
        self.now = 0.0
        self.data = bytes(range(256)) * 288

    @rule(segments=st.integers(1, 9), share=st.floats(0, 1, exclude_min=True), segment=st.sampled_from(SIZES))
    def send(self, segments: int, share: float, segment: int) -> None:
        tail = max(1, int(share * segment))
        size = (segments - 1) * segment + tail
        self.queue.sent(Run(self.next, self.data[:size], segment=segment, short=tail < SEGMENT), self.now)
        for at in range(0, size, segment):
            self.plain.append(Plain(self.next + at, self.next + min(size, at + segment), self.now))
        self.next += size

    @precondition(lambda self: self.plain)
    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        una = self.plain[0].start
        ack = una + int(share * (self.next - una))
        arrived, sent_once = self.queue.acknowledge(ack)
        covered = [segment for segment in self.plain if segment.end <= ack]
        del self.plain[: len(covered)]
        assert sum(run.segments for run in arrived) == sum(not segment.arrived for segment in covered)
        assert sent_once == all(segment.transmissions == 1 for segment in covered)

    @precondition(lambda self: self.plain)
    @rule(shares=st.lists(st.floats(0, 1), min_size=2, max_size=6))
    def report(self, shares: list[float]) -> None:
        una = self.plain[0].start
        edges = sorted({una + int(share * (self.next - una)) for share in shares})
        blocks = list(zip(edges[::2], edges[1::2], strict=False))
        before = {segment.start for segment in self.plain if segment.arrived}
        marked = self.queue.selectively_acknowledge(blocks)
        new = {at for run in marked for at in range(run.start, run.end, run.segment)}
        assert not new & before
        for segment in self.plain:
            # A block that was reported before is not read again; the plain one does not need to care.
            if segment.start in new:
                assert any(left < segment.end and segment.start < right for left, right in blocks)
                segment.arrived, segment.lost = True, False

    @precondition(lambda self: self.plain)
    @rule(index=st.integers(0, 100), last=st.booleans())
    def take_for_lost(self, index: int, last: bool) -> None:
        run = self.queue.last_segment() if last else self.queue.first_segment()
        assert run is not None and run.segments == 1
        segment = self.plain[-1] if last else self.plain[0]
        assert (run.start, run.end) == (segment.start, segment.end)
        self.queue.mark_lost(run)
        segment.lost = not segment.arrived

    @rule()
    def time_out(self) -> None:
        reneged = bool(self.plain) and self.plain[0].arrived
        self.queue.on_timeout()
        for segment in self.plain:
            segment.arrived = segment.arrived and not reneged
            segment.lost = not segment.arrived

    @rule(segments=st.integers(1, 5))
    def send_again(self, segments: int) -> None:
        run = self.queue.next_lost()
        lost = [segment for segment in self.plain if segment.lost]
        assert (run is None) == (not lost)
        if run is None:
            return
        self.queue.keep_first(run, segments)
        assert run.start == lost[0].start and run.segments <= segments
        self.queue.sent(run, self.now)
        for segment in self.plain:
            if run.start <= segment.start < run.end:
                assert segment.lost
                segment.lost, segment.sent_at = False, self.now
                segment.transmissions += 1

    @rule()
    def cut_anew(self) -> None:
        run = self.queue.next_lost()
        if run is None or run.segment == SEGMENT:
            return
        self.queue.cut_anew(run, SEGMENT)
        whole = next(segment for segment in self.plain if segment.start == run.start)
        assert (run.start, run.end) == (whole.start, whole.end)
        at = self.plain.index(whole)
        self.plain[at : at + 1] = [
            attrs.evolve(whole, start=start, end=min(whole.end, start + SEGMENT))
            for start in range(whole.start, whole.end, SEGMENT)
        ]

    @rule(seconds=st.sampled_from([0.001, 0.1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def they_agree(self) -> None:
        known = [
            (at, min(run.end, at + run.segment), run.sent_at, run.arrived, run.lost, run.transmissions)
            for run in self.queue._runs
            for at in range(run.start, run.end, run.segment)
        ]
        assert known == [attrs.astuple(segment) for segment in self.plain]
        assert self.queue.outstanding == len(self.plain)
        assert self.queue.lost_count == sum(segment.lost for segment in self.plain)
        out = [segment for segment in self.plain if not segment.lost and not segment.arrived]
        assert self.queue.in_flight == sum(segment.end - segment.start for segment in out)
        assert self.queue._starts == [run.start for run in self.queue._runs]

    @invariant()
    def every_run_has_its_bytes(self) -> None:
        for run in self.queue._runs:
            assert len(run.data) == run.size == run.end - run.start


TestScoreboards = Scoreboards.TestCase
TestScoreboards.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
