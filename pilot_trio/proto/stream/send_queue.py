"""Segments that left and are not acknowledged, and which of them are lost (RFC 2018; RACK-TLP, RFC 8985).

A segment is judged by time, not by counting: it is lost when one that left later has arrived and the round trip, plus
room for reordering, has passed. That finds lost retransmissions too, and repairs every hole in one round trip.

A segment once sent keeps its boundaries: peers match segments by their exact sequence number (`spec/transport.md` §0).

Every operation costs as much as it finds out, not as much as is outstanding: segments are searched by bisection, a
growing block of a peer's report is read where it grew, and transmissions wait for their verdict in the order they left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final

REORDER_SHARE: Final = 0.25  # of a round trip: how late a segment may be before it counts as lost (RFC 8985 §6.2)
REORDER_MIN: Final = 0.001  # seconds; loops turn no faster, so a path of microseconds still gets this much
TOO_SOON: Final = 0.9  # of the shortest round trip: an answer that comes sooner answers an earlier transmission
REORDER_STEPS_MAX: Final = 16  # times as patient as at first, after retransmissions that were for nothing
_COMPACT: Final = 256  # segments gone before the lists are cut; cutting costs as much as what is left

Span = tuple[int, int]
"""Positions of the first byte and after the last byte. A position is a sequence number that does not wrap."""


class Segment:
    """One segment on its way."""

    __slots__ = (
        "app_limited", "arrived", "delivered", "delivered_at", "end", "first_sent_at", "lost", "payload",
        "sent_at", "short", "start", "transmissions",
    )  # fmt: skip

    def __init__(self, start: int, payload: bytes, *, short: bool = False) -> None:
        self.start = start  # position
        self.end = start + len(payload)
        self.payload = payload
        self.short = short  # Nagle's: shorter than a segment, so it holds back the next short one
        self.sent_at = 0.0
        self.transmissions = 0
        self.arrived = False  # acknowledged, cumulatively or selectively
        self.lost = False  # taken for lost, and not sent again yet
        # What the controller of the rate knew when this left.
        self.delivered = 0
        self.delivered_at = self.first_sent_at = 0.0
        self.app_limited = False


class SendQueue:
    """The scoreboard. `in_flight` counts bytes that are neither acknowledged, SACKed nor taken for lost."""

    __slots__ = (
        "_by_time", "_first", "_lost", "_rack_end", "_rack_rtt", "_rack_sent_at", "_reorder_steps", "_reported",
        "_segments", "_short_out", "_starts", "in_flight", "lost_count",
    )  # fmt: skip

    def __init__(self) -> None:
        self._segments: list[Segment] = []  # in order; those before `_first` are acknowledged
        self._starts: list[int] = []  # their positions, for bisection
        self._first = 0
        self.in_flight = 0
        self.lost_count = 0
        self._lost: list[int] = []  # heap of positions; an entry whose segment is not lost any more is skipped
        self._by_time: deque[tuple[float, Segment]] = deque()  # (when it left, segment); stale entries are skipped
        self._reported: Sequence[Span] = ()  # the last report worked in
        self._short_out = 0  # short segments that are not known to have arrived
        self._rack_sent_at = -inf  # when the latest segment known to have arrived left
        self._rack_end = 0
        self._rack_rtt = 0.0
        self._reorder_steps = 1

    def __len__(self) -> int:
        return len(self._segments) - self._first

    @property
    def head(self) -> Segment | None:
        """The oldest segment, or None."""
        return self._segments[self._first] if self._first < len(self._segments) else None

    @property
    def tail(self) -> Segment | None:
        """The newest segment, or None."""
        return self._segments[-1] if self._first < len(self._segments) else None

    def sent(self, segment: Segment, now: float) -> None:
        """Note a transmission, first or repeated."""
        if not segment.transmissions:
            self._segments.append(segment)
            self._starts.append(segment.start)
            self.in_flight += len(segment.payload)
            self._short_out += segment.short
        elif segment.lost:
            segment.lost = False
            self.lost_count -= 1
            self.in_flight += len(segment.payload)
        segment.transmissions += 1
        segment.sent_at = now
        self._by_time.append((now, segment))

    def acknowledge(self, ack: int) -> tuple[list[Segment], bool]:
        """Take out what a cumulative acknowledgment covers wholly.

        Returns:
          The segments that were not known to have arrived, and whether all that is covered was sent only once (Karn).
        """
        segments, at = self._segments, self._first
        arrived, sent_once = [], True
        while at < len(segments) and segments[at].end <= ack:
            segment = segments[at]
            at += 1
            sent_once = sent_once and segment.transmissions == 1
            if not segment.arrived:
                self._on_arrival(segment)
                arrived.append(segment)
        self._first = at
        if at == len(segments) or (at >= _COMPACT and at * 2 >= len(segments)):
            del segments[:at], self._starts[:at]
            self._first = 0
        return arrived, sent_once

    def selectively_acknowledge(self, blocks: Sequence[Span]) -> list[Segment]:
        """Mark what blocks cover; return what is marked for the first time. A touched segment counts as covered."""
        marked = []
        for left, right in blocks:
            begin = left
            for known_left, known_right in self._reported:
                if known_left <= begin < known_right:
                    begin = known_right
            if begin >= right:
                continue
            at = max(self._first, bisect_right(self._starts, begin) - 1)
            while at < len(self._segments) and self._starts[at] < right:
                segment = self._segments[at]
                at += 1
                if segment.end > begin and not segment.arrived:
                    self._on_arrival(segment)
                    marked.append(segment)
        self._reported = blocks
        return marked

    def _on_arrival(self, segment: Segment) -> None:
        segment.arrived = True
        self._short_out -= segment.short
        if segment.lost:
            segment.lost = False
            self.lost_count -= 1
        else:
            self.in_flight -= len(segment.payload)

    def note_arrivals(self, arrived: list[Segment], min_rtt: float, now: float) -> int:
        """Let loss detection know of segments that arrived; return how many had been sent again for nothing."""
        spurious = 0
        too_soon = TOO_SOON * min_rtt if min_rtt < inf else 0.0
        for segment in arrived:
            sent_at = segment.sent_at
            if segment.transmissions > 1 and now - sent_at < too_soon:
                # This answers an earlier transmission (RFC 8985 §6.2 step 2): we were not patient enough.
                spurious += 1
                continue
            if sent_at > self._rack_sent_at or (sent_at == self._rack_sent_at and segment.end > self._rack_end):
                self._rack_sent_at, self._rack_end = sent_at, segment.end
                self._rack_rtt = now - sent_at
        if spurious:
            self._reorder_steps = min(REORDER_STEPS_MAX, self._reorder_steps + 1)
        return spurious

    def detect_losses(self, blind_below: int, min_rtt: float, srtt: float, now: float) -> tuple[int, float]:
        """Mark what is found lost; return how many that are just now, and when to look again (`math.inf`: no need).

        Args:
          blind_below: position below which the peer's report says nothing: it names its four highest blocks only, so what
            lies lower may well have arrived, and has to be a whole round trip older.
          min_rtt: seconds; the path's round trip without queues.
          srtt: seconds; the usual round trip, beyond which no patience goes.
          now: the current time.
        """
        lost, look_again = 0, inf
        by_time, rack_rtt = self._by_time, self._rack_rtt
        reorder = min(max(REORDER_MIN, min_rtt * REORDER_SHARE * self._reorder_steps), max(REORDER_MIN, srtt))
        undecided = []
        while by_time:
            entry = by_time[0]
            sent_at, segment = entry
            if segment.arrived or segment.lost or segment.sent_at != sent_at:
                by_time.popleft()
                continue
            if sent_at > self._rack_sent_at or (sent_at == self._rack_sent_at and segment.end > self._rack_end):
                break
            blind = segment.start < blind_below
            due = sent_at + rack_rtt + reorder + (rack_rtt if blind else 0.0)
            if due <= now:
                by_time.popleft()
                self.mark_lost(segment)
                lost += 1
                continue
            look_again = min(look_again, due)
            if not blind:
                break  # what left later is due later
            undecided.append(by_time.popleft())
        by_time.extendleft(reversed(undecided))
        return lost, look_again

    def mark_lost(self, segment: Segment) -> None:
        """Take a segment for lost: it leaves the flight and waits to be sent again."""
        if not segment.lost and not segment.arrived:
            segment.lost = True
            self.lost_count += 1
            self.in_flight -= len(segment.payload)
            heappush(self._lost, segment.start)

    def on_timeout(self) -> None:
        """Take all for lost that is not known to have arrived.

        A peer that reported the first segment and does not acknowledge it has taken its report back (a stalled reader
        parks the head of the line, `spec/transport.md` §4.5): then no report counts.
        """
        head = self.head
        reneged = head is not None and head.arrived
        self._by_time.clear()
        if reneged:
            self._reported = ()
        for segment in self._segments[self._first :]:
            if reneged and segment.arrived:
                segment.arrived = False
                self.in_flight += len(segment.payload)
                self._short_out += segment.short
            self.mark_lost(segment)

    def next_lost(self) -> Segment | None:
        """Return the oldest segment that waits to be sent again, or None."""
        while self._lost:
            start = self._lost[0]
            at = bisect_left(self._starts, start, self._first)
            if at < len(self._starts) and self._starts[at] == start and self._segments[at].lost:
                return self._segments[at]
            heappop(self._lost)
        return None

    def holds_short(self) -> bool:
        """Say whether a short segment is still out (Nagle's algorithm, Minshall's version)."""
        return self._short_out > 0
