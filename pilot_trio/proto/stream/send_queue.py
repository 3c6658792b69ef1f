"""Segments that left and are not acknowledged, and which of them are lost (RFC 2018; RACK-TLP, RFC 8985).

A segment is judged by time, not by counting: it is lost when one that left later has arrived and the round trip, plus
room for reordering, has passed. That finds lost retransmissions too, and repairs every hole in one round trip.

A segment once sent keeps its boundaries: peers match segments by their exact sequence number (`spec/transport.md` §0).

Segments that leave together mostly arrive together, so the unit of bookkeeping is the `Run`: what a turn sends of a
stream is one record however many segments it has, and is split at segment boundaries only where a report tells its parts
apart. Every operation costs as much as it finds out, not as much as is outstanding.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final, final

from pilot_trio.proto.stream.settings import SEGMENT
from pilot_trio.wire.sack import looks_like_sack

REORDER_SHARE: Final = 0.25  # of a round trip: how late a segment may be before it counts as lost (RFC 8985 §6.2)
REORDER_MIN: Final = 0.001  # seconds; loops turn no faster, so a path of microseconds still gets this much
TOO_SOON: Final = 0.9  # of the shortest round trip: an answer that comes sooner answers an earlier transmission
REORDER_STEPS_MAX: Final = 16  # times as patient as at first, after retransmissions that were for nothing

Span = tuple[int, int]
"""Positions of the first byte and after the last byte. A position is a sequence number that does not wrap."""


class Run:
    """Segments that follow each other and have had the same fate so far. All but the last have `segment` bytes."""

    __slots__ = (
        "_data", "_offset", "arrived", "delivered", "end", "lost", "segment",
        "segments", "sent_at", "short", "size", "start", "transmissions",
    )  # fmt: skip

    def __init__(self, start: int, data: bytes, *, segment: int = SEGMENT, short: bool = False) -> None:
        self._data = data  # shared by all parts of what was one run
        self._offset = 0
        self.start = start  # position
        self.size = len(data)  # bytes
        self.end = start + self.size
        self.segment = segment
        self.segments = -(-self.size // segment)
        self.short = short  # Nagle's: its last segment is short, so it holds back the next short one
        self.sent_at = 0.0
        self.transmissions = 0
        self.arrived = False  # acknowledged, cumulatively or selectively
        self.lost = False  # taken for lost, and not sent again yet
        self.delivered = 0  # bytes that had arrived when this left; tells when its round trip is over

    @property
    def data(self) -> bytes:
        """The bytes of all segments."""
        data = self._data
        return data if self.size == len(data) else data[self._offset : self._offset + self.size]

    def cut_off(self, segments: int) -> Run:
        """Keep the first `segments`, at least one and not all; return the others, as a run with the same history."""
        kept = segments * self.segment
        rest = Run(self.start + kept, self._data, segment=self.segment, short=self.short)
        rest._offset, rest.end, rest.size = self._offset + kept, self.end, self.size - kept
        rest.segments = self.segments - segments
        rest.sent_at, rest.transmissions = self.sent_at, self.transmissions
        rest.arrived, rest.lost = self.arrived, self.lost
        rest.delivered = self.delivered
        self.end, self.size, self.segments, self.short = rest.start, kept, segments, False
        return rest


class SendQueue:
    """The scoreboard. `in_flight` counts bytes that are neither acknowledged, SACKed nor taken for lost."""

    __slots__ = (
        "_by_time", "_lost", "_rack_end", "_rack_rtt", "_rack_sent_at", "_reorder_steps", "_reported", "_runs",
        "_short_out", "_starts", "in_flight", "lost_count", "outstanding",
    )  # fmt: skip

    def __init__(self) -> None:
        self._runs: list[Run] = []  # in order
        self._starts: list[int] = []  # their positions, for bisection
        self.in_flight = 0
        self.outstanding = 0  # segments not acknowledged cumulatively
        self.lost_count = 0  # segments
        self._lost: list[int] = []  # heap of positions; an entry at which no lost run starts is skipped
        self._by_time: deque[tuple[float, int, int]] = deque()  # (when it left, start, end) of each transmission
        self._reported: Sequence[Span] = ()  # the last report worked in
        self._short_out = 0  # short segments that are not known to have arrived
        self._rack_sent_at = -inf  # when the latest segment known to have arrived left
        self._rack_end = 0
        self._rack_rtt = 0.0
        self._reorder_steps = 1

    @property
    def head(self) -> Run | None:
        """The run with the oldest segment, or None."""
        return self._runs[0] if self._runs else None

    def first_segment(self) -> Run | None:
        """Return the oldest segment as a run of its own, or None."""
        if self._runs and self._runs[0].segments > 1:
            self._split(0, 1)
        return self.head

    def last_segment(self) -> Run | None:
        """Return the newest segment as a run of its own, or None."""
        if not self._runs:
            return None
        if self._runs[-1].segments > 1:
            self._split(len(self._runs) - 1, self._runs[-1].segments - 1)
        return self._runs[-1]

    def sent(self, run: Run, now: float) -> None:
        """Note a transmission, first or repeated."""
        if not run.transmissions:
            self._runs.append(run)
            self._starts.append(run.start)
            self.in_flight += run.size
            self.outstanding += run.segments
            self._short_out += run.short
        elif run.lost:
            run.lost = False
            self.lost_count -= run.segments
            self.in_flight += run.size
        run.transmissions += 1
        run.sent_at = now
        self._by_time.append((now, run.start, run.end))

    def acknowledge(self, ack: int) -> tuple[list[Run], bool]:
        """Take out the segments that a cumulative acknowledgment covers wholly.

        Returns:
          Those that were not known to have arrived, and whether all that is covered was sent only once (Karn).
        """
        runs = self._runs
        arrived, sent_once, count = [], True, 0
        for run in runs:
            if run.end > ack:
                covered = (ack - run.start) // run.segment
                if covered <= 0:
                    break
                self._split(count, covered)
            count += 1
            self.outstanding -= run.segments
            sent_once = sent_once and run.transmissions == 1
            if not run.arrived:
                self._on_arrival(run)
                arrived.append(run)
            if run.end >= ack:
                break
        if count == len(runs):
            runs.clear()
            self._starts.clear()
            self._by_time.clear()  # nobody is interested in when they left any more
        else:
            del runs[:count], self._starts[:count]
        return arrived, sent_once

    def selectively_acknowledge(self, blocks: Sequence[Span]) -> list[Run]:
        """Mark what blocks cover; return what is marked for the first time. A touched segment counts as covered."""
        marked: list[Run] = []
        for left, right in blocks:
            begin = left
            for known_left, known_right in self._reported:
                if known_left <= begin < known_right:
                    begin = known_right
            if begin < right:
                self._mark(begin, right, marked)
        self._reported = blocks
        return marked

    def _mark(self, begin: int, end: int, marked: list[Run]) -> None:
        runs, starts = self._runs, self._starts
        at = max(0, bisect_right(starts, begin) - 1)
        while at < len(runs) and starts[at] < end:
            run = runs[at]
            if run.end > begin and not run.arrived:
                before = (begin - run.start) // run.segment
                if before > 0:
                    self._split(at, before)
                    at += 1
                    run = runs[at]
                within = -((run.start - end) // run.segment)
                if within < run.segments:
                    self._split(at, within)
                self._on_arrival(run)
                marked.append(run)
            at += 1

    def _split(self, at: int, segments: int) -> None:
        """Make two runs of one; the first has so many segments."""
        rest = self._runs[at].cut_off(segments)
        self._runs.insert(at + 1, rest)
        self._starts.insert(at + 1, rest.start)
        if rest.lost:
            heappush(self._lost, rest.start)

    def _on_arrival(self, run: Run) -> None:
        run.arrived = True
        self._short_out -= run.short
        if run.lost:
            run.lost = False
            self.lost_count -= run.segments
        else:
            self.in_flight -= run.size

    def note_arrivals(self, arrived: list[Run], min_rtt: float, now: float) -> int:
        """Let loss detection know of segments that arrived; return how many had been sent again for nothing."""
        spurious = 0
        too_soon = TOO_SOON * min_rtt if min_rtt < inf else 0.0
        for run in arrived:
            sent_at = run.sent_at
            if run.transmissions > 1 and now - sent_at < too_soon:
                # This answers an earlier transmission (RFC 8985 §6.2 step 2): we were not patient enough.
                spurious += run.segments
                continue
            if sent_at > self._rack_sent_at or (sent_at == self._rack_sent_at and run.end > self._rack_end):
                self._rack_sent_at, self._rack_end = sent_at, run.end
                self._rack_rtt = now - sent_at
        if spurious:
            self._reorder_steps = min(REORDER_STEPS_MAX, self._reorder_steps + 1)
        return spurious

    def detect_losses(self, blind_below: int, min_rtt: float, srtt: float, now: float) -> tuple[list[Run], float]:
        """Mark what is found lost; return what that is just now, and when to look again (`math.inf`: no need).

        Args:
          blind_below: position below which the peer's report says nothing: it names its four highest blocks only, so what
            lies lower may well have arrived, and has to be a whole round trip older.
          min_rtt: seconds; the path's round trip without queues.
          srtt: seconds; the usual round trip, beyond which no patience goes.
          now: the current time.
        """
        lost: list[Run] = []
        look_again = inf
        by_time = self._by_time
        if not self._runs:
            by_time.clear()
            return lost, look_again
        reorder = min(max(REORDER_MIN, min_rtt * REORDER_SHARE * self._reorder_steps), max(REORDER_MIN, srtt))
        undecided = []
        while by_time:
            sent_at, start, end = by_time[0]
            out = self._still_out(sent_at, start, end)
            if not out:
                by_time.popleft()
                continue
            due = sent_at + self._rack_rtt + reorder
            waits = False
            for run in out:
                if sent_at > self._rack_sent_at or (sent_at == self._rack_sent_at and run.end > self._rack_end):
                    waits = True  # nothing that left later has arrived
                    break
                verdict_at = due + (self._rack_rtt if run.start < blind_below else 0.0)
                if verdict_at <= now:
                    self.mark_lost(run)
                    lost.append(run)
                else:
                    look_again = min(look_again, verdict_at)
                    waits = waits or run.start >= blind_below
            if waits:
                break  # what left later is due later
            undecided.append(by_time.popleft())
        by_time.extendleft(reversed(undecided))
        return lost, look_again

    def _still_out(self, sent_at: float, start: int, end: int) -> list[Run]:
        """Return what is in flight of a transmission."""
        runs = self._runs
        at = bisect_left(self._starts, start)
        out = []
        while at < len(runs) and (run := runs[at]).start < end:
            at += 1
            if not run.arrived and not run.lost and run.sent_at == sent_at:
                out.append(run)
        return out

    def mark_lost(self, run: Run) -> None:
        """Take a run for lost: it leaves the flight and waits to be sent again."""
        if not run.lost and not run.arrived:
            run.lost = True
            self.lost_count += run.segments
            self.in_flight -= run.size
            heappush(self._lost, run.start)

    def on_timeout(self) -> None:
        """Take all for lost that is not known to have arrived.

        A peer that reported the first segment and does not acknowledge it has taken its report back (a stalled reader
        parks the head of the line, `spec/transport.md` §4.5): then no report counts.
        """
        reneged = bool(self._runs) and self._runs[0].arrived
        self._by_time.clear()
        if reneged:
            self._reported = ()
        for run in self._runs:
            if reneged and run.arrived:
                run.arrived = False
                self.in_flight += run.size
                self._short_out += run.short
            self.mark_lost(run)

    def next_lost(self) -> Run | None:
        """Return the oldest segments that wait to be sent again, or None."""
        while self._lost:
            start = self._lost[0]
            at = bisect_left(self._starts, start)
            if at < len(self._starts) and self._starts[at] == start and self._runs[at].lost:
                return self._runs[at]
            heappop(self._lost)
        return None

    def keep_first(self, run: Run, segments: int) -> None:
        """Make the first `segments` of a run one of their own, if there are more."""
        if run.segments > segments:
            self._split(bisect_left(self._starts, run.start), segments)

    def cut_anew(self, run: Run, segment: int) -> None:
        """Cut the first segment of a lost run into smaller ones.

        Each large one by itself, so that all boundaries that there were stay: whatever has arrived of it meanwhile, the
        peer finds it either within what it holds or apart from it (`spec/transport.md` §4.4).
        """
        self.keep_first(run, 1)
        segment = _without_lookalikes(run.data, segment)
        pieces = -(-run.size // segment)
        self.outstanding += pieces - 1
        self.lost_count += pieces - 1
        run.segment, run.segments = segment, pieces

    def holds_short(self) -> bool:
        """Say whether a short segment is still out (Nagle's algorithm, Minshall's version)."""
        return self._short_out > 0


@final
class NothingOut(SendQueue):
    """What streams have before they are written to, and after their end: one for all, so nothing may come into it."""

    __slots__ = ()

    def sent(self, run: Run, now: float) -> None:
        raise AssertionError(f"{run.size} bytes were sent into what all streams share")

    def selectively_acknowledge(self, blocks: Sequence[Span]) -> list[Run]:
        raise AssertionError("a report was worked into what all streams share")


def _without_lookalikes(data: bytes, segment: int) -> int:
    """Return how large pieces may be, `segment` at most, of which none looks like a report: peers would swallow it."""
    for size in range(segment, segment // 2, -1):
        if not any(looks_like_sack(data[at : at + size]) for at in range(0, len(data), size)):
            return size
    return len(data)  # as it was: whoever writes such data on purpose has himself to thank
