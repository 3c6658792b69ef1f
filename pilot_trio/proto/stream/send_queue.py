"""Segments that left and are not acknowledged, and which of them are lost (RFC 2018; RACK-TLP, RFC 8985).

A segment is judged by time, not by counting: it is lost when one that left later has arrived and the round trip, plus
room for reordering, has passed. That finds lost retransmissions too, and repairs every hole in one round trip.

A segment once sent keeps its boundaries: peers match segments by their exact sequence number (`spec/transport.md` §0).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pilot_trio.proto.sequence import seq_add, seq_diff, seq_leq, seq_lt
from pilot_trio.proto.stream.congestion import RateSample
from pilot_trio.wire.sack import BLOCKS_MAX, Block

REORDER_SHARE: Final = 0.25  # of a round trip: how late a segment may be before it counts as lost (RFC 8985 §6.2)
REORDER_MIN: Final = 0.001  # seconds; loops turn no faster, so a path of microseconds still gets this much


class Segment:
    """One segment on its way."""

    __slots__ = ("end", "fin", "lost", "payload", "sacked", "sample", "sent_at", "seq", "short", "transmissions")

    def __init__(self, seq: int, payload: bytes, *, fin: bool = False, short: bool = False) -> None:
        self.seq = seq
        self.payload = payload
        self.fin = fin
        self.short = short  # Nagle's: shorter than a segment, so it holds back the next short one
        self.end = seq_add(seq, 1 if fin else len(payload))
        self.sent_at = 0.0
        self.transmissions = 0
        self.sacked = False
        self.lost = False
        self.sample: RateSample | None = None


class SendQueue:
    """The scoreboard. `in_flight` counts bytes that are neither acknowledged, SACKed nor taken for lost."""

    __slots__ = ("_rack_rtt", "_rack_sent_at", "_segments", "_short_out", "in_flight", "lost_count")

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}  # {seq: segment}, in sequence order
        self.in_flight = 0
        self.lost_count = 0
        self._short_out = 0  # short segments with data that are not known to have arrived
        self._rack_sent_at = float("-inf")  # when the latest segment known to have arrived left
        self._rack_rtt = 0.0

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments.values())

    @property
    def head(self) -> Segment | None:
        """The oldest segment, or None."""
        return next(iter(self._segments.values()), None)

    @property
    def tail(self) -> Segment | None:
        """The newest segment, or None."""
        return next(reversed(self._segments.values()), None)

    def sent(self, segment: Segment, sample: RateSample | None, now: float) -> None:
        """Note a transmission, first or repeated."""
        if segment.transmissions == 0:
            self._segments[segment.seq] = segment
            self.in_flight += len(segment.payload)
            self._short_out += segment.short
        elif segment.lost:
            segment.lost = False
            self.lost_count -= 1
            self.in_flight += len(segment.payload)
        segment.transmissions += 1
        segment.sent_at = now
        segment.sample = sample

    def acknowledge(self, ack: int) -> list[Segment]:
        """Take out and return what a cumulative acknowledgment covers wholly."""
        done = []
        for segment in self._segments.values():
            if not seq_leq(segment.end, ack):
                break
            done.append(segment)
        for segment in done:
            del self._segments[segment.seq]
            self._leave_flight(segment)
            self._short_out -= segment.short and not segment.sacked
        return done

    def selectively_acknowledge(self, blocks: Iterable[Block]) -> list[Segment]:
        """Mark what blocks cover; return what is marked for the first time. A touched segment counts as covered."""
        marked = []
        for left, right in blocks:
            if seq_diff(right, left) <= 0:
                continue
            for segment in self._segments.values():
                if seq_leq(right, segment.seq):
                    break
                if not segment.sacked and seq_lt(left, segment.end) and not segment.fin:
                    self._leave_flight(segment)
                    segment.sacked = True
                    self._short_out -= segment.short
                    marked.append(segment)
        return marked

    def _leave_flight(self, segment: Segment) -> None:
        if segment.lost:
            segment.lost = False
            self.lost_count -= 1
        elif not segment.sacked:
            self.in_flight -= len(segment.payload)

    def note_arrival(self, segment: Segment, now: float) -> None:
        """Let loss detection know of a segment that arrived."""
        if segment.transmissions > 1 and now - segment.sent_at < self._rack_rtt / 2:
            return  # this answers an earlier transmission (RFC 8985 §6.2 step 2)
        if segment.sent_at >= self._rack_sent_at:
            self._rack_sent_at, self._rack_rtt = segment.sent_at, now - segment.sent_at

    def detect_losses(self, blocks: list[Block] | None, min_rtt: float, now: float) -> tuple[list[Segment], float]:
        """Return the segments found lost just now, and when to look again (`math.inf`: no need).

        A peer reports its four highest blocks only, so what lies below the lowest of four may well have arrived: it has
        to be a whole round trip older.
        """
        lost, look_again = [], float("inf")
        reorder = max(REORDER_MIN, min(min_rtt, 1.0) * REORDER_SHARE)
        blind_below = blocks[0][0] if blocks and len(blocks) == BLOCKS_MAX else None
        for segment in self._segments.values():
            if segment.sent_at > self._rack_sent_at:
                if segment.transmissions == 1:
                    break  # first transmissions leave in order: all that follow are later still
                continue
            if segment.sacked or segment.lost or segment.fin:
                continue
            wait = reorder
            if blind_below is not None and seq_lt(segment.seq, blind_below):
                wait += self._rack_rtt
            due = segment.sent_at + self._rack_rtt + wait
            if due <= now:
                self.mark_lost(segment)
                lost.append(segment)
            else:
                look_again = min(look_again, due)
        return lost, look_again

    def mark_lost(self, segment: Segment) -> None:
        """Take a segment for lost: it leaves the flight and waits to be sent again."""
        if not segment.lost and not segment.sacked:
            segment.lost = True
            self.lost_count += 1
            self.in_flight -= len(segment.payload)

    def mark_all_lost(self) -> None:
        """After a timeout nothing is known to be on its way, and selective acknowledgments may have been taken back."""
        for segment in self._segments.values():
            if segment.sacked:
                segment.sacked = False
                self.in_flight += len(segment.payload)
                self._short_out += segment.short
            self.mark_lost(segment)

    def next_lost(self) -> Segment | None:
        """Return the oldest segment that waits to be sent again, or None."""
        if not self.lost_count:
            return None
        return next(segment for segment in self._segments.values() if segment.lost)

    def holds_short(self) -> bool:
        """Say whether a short segment with data is still out (Nagle's algorithm, Minshall's version)."""
        return self._short_out > 0
