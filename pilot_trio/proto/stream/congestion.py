"""How much may be in flight, and how fast it may leave: a window that tells losses by what the queue says.

A window that halves at every lost segment cannot fill a path that loses one in a hundred at random: 1152 bytes per 40 ms
round trip come to 0.35 MiB/s. One that follows the rate of delivery whatever is lost (BBR) fills it, and leaves nothing to a
neighbour that does halve. So this one asks first whether there is a queue: whether even the shortest round trip of late was
longer than the path needs.

- No queue: the path holds more. The window doubles at the start, and after that grows by a step that doubles each round
  trip. Losses are the path's own, unless they are many more than usual: then a queue too short to be seen runs over.
- A queue: the window grows by a constant step, and a loss means that the queue is full: the window shrinks, once per two
  round trips. That is additive increase and multiplicative decrease, at which streams of our kind come to equal shares,
  and one of the original's (`spec/transport.md` §5.1) keeps a share.

What the path needs is the shortest round trip of late, which nobody can see while a queue stands for long. So a stream that
has not seen it for `DRAIN_EVERY` shrinks its window for a moment. Streams that share a queue do so together: they saw it
empty for the last time together. A late one has not seen it empty at all. It takes a part of the queue for the path, and
what the others give up as soon as there is a loss: so it first does so after `DRAIN_FIRST`, and then ever later.

`cwnd` and `ssthresh` are in bytes, as RFC 5681 has them; `pacing_rate` is bytes per second.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Final

from pilot_trio.proto.stream.rtt import RttEstimator
from pilot_trio.proto.stream.send_queue import Run
from pilot_trio.proto.stream.settings import SEGMENT

CWND_INITIAL: Final = 40_960  # bytes; the reference's initial window, protocol §5.1
CWND_MIN: Final = 4 * SEGMENT  # bytes; enough that a lost segment is noticed by the ones after it
CWND_MAX: Final = 8 << 20  # bytes; more than the receive window of our own kind
CWND_NEAR: Final = 512 * SEGMENT  # bytes; on paths of microseconds, where the round trip is the time that daemons take
SSTHRESH_INITIAL: Final = 524_288  # bytes; shown to clients until a loss lowers it, protocol §5.1
QUEUED: Final = 1.15  # times the shortest round trip from which there is a queue
QUEUED_LEAST: Final = 0.001  # seconds beyond it below which no queue is believed in; loops turn no faster
SHORT: Final = 0.004  # seconds of queue that do not end quick growth: daemons take as long
GROWTH: Final = 0.25  # of what arrived: the largest step while there is no queue
GROWTH_QUEUED: Final = SEGMENT  # bytes per round trip; the original's 4096 do with a half what this does with `BACKOFF`
BACKOFF: Final = 0.7  # what is left of the window after a loss that counts
BACKOFF_ROUNDS: Final = 2  # round trips after it in which none counts: they tell of the same full queue
USED: Final = 0.75  # share of the window that has to be in use for it to grow
LOSS_SAMPLE: Final = 40  # segments judged together at least; a share of fewer says little
LOSS_PART: Final = 2  # divides the window: so many of its segments are judged together; losses are found in heaps
LOSS_EXCESS: Final = 0.05  # share of segments lost, beyond twice the usual, that means a full queue though none is seen
LOSS_NOISE: Final = 0.5  # over the root of the segments judged: what chance alone adds to that share
LOSS_USUAL_MAX: Final = 0.1  # share; a path that is said to lose more is overrun
DRAIN_EVERY: Final = 5.0  # seconds without a round trip near the shortest one; well within its memory of 10 to 20
DRAIN_FIRST: Final = 1.0  # seconds, the same for a new stream; doubles
NEAR: Final = 0.0003  # seconds beyond the shortest round trip that still count as seeing it
DRAIN_HOLD: Final = 0.1  # seconds, or two round trips if that is longer, for which the window stays small
BURST: Final = 48 * SEGMENT  # bytes that may leave at once: one batch of datagrams; smaller bursts cost wake-ups
ROUND_MIN: Final = 0.001  # seconds; the shortest round trip believed, timers being no finer
PACED_FROM: Final = 0.002  # seconds of round trip; below, acknowledgments set the pace better than timers do
PACE: Final = 1.2  # windows per round trip; more than one, so that the window is what limits
PACE_START: Final = 2.0  # the same while the window doubles
TIMER_LATE: Final = 0.002  # seconds that a timer may be late; what should have left meanwhile leaves with it
PACE_RESOLUTION: Final = 1e-5  # seconds; far less than a segment takes, far more than a clock is rounded by


class Congestion:
    """One connection's controller. Pure: time comes in."""

    __slots__ = (
        "_calm_rounds", "_credit", "_credit_at", "_delivered", "_drain_after", "_drain_until", "_full_cwnd", "_is_used", "_judged", "_lost",
        "_min_rtt", "_near_at", "_round_end", "_round_trip", "_segment", "_segments", "_start_until", "_step", "_trip",
        "_usual_loss", "cwnd", "held_by_path", "pacing_rate", "ssthresh",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.cwnd = CWND_INITIAL
        self.ssthresh = SSTHRESH_INITIAL
        self.pacing_rate = inf
        self.held_by_path = 0  # bytes of the window that are on the path, rather than in buffers before it
        self._start_until = CWND_MAX  # bytes; below, the window doubles
        self._delivered = 0  # bytes acknowledged, cumulatively or selectively
        self._round_end = 0  # delivered count that ends the round trip
        self._segment = SEGMENT  # bytes of a full segment, of late
        self._segments = 0  # that arrived in this round
        self._judged = self._lost = 0  # segments that arrived, and that were lost, since their share was last judged
        self._round_trip = inf  # seconds; shortest of this round so far
        self._trip = 0.0  # seconds; shortest of the last round
        self._min_rtt = inf
        self._near_at = now  # when a round trip near the shortest one was last seen
        self._step = GROWTH_QUEUED  # bytes that the window grows by in this round trip
        self._is_used = False  # the window, in this round trip
        self._drain_after = DRAIN_FIRST
        self._drain_until = inf  # the window is small until then; inf: it is not
        self._full_cwnd = 0  # what it becomes again
        self._calm_rounds = 0  # still to come in which no loss counts
        self._usual_loss = 0.0
        self._credit = float(BURST)
        self._credit_at = now

    # --- pacing ------------------------------------------------------------------------------------------------------

    def allowance(self, now: float) -> int:
        """Return how many bytes the pacing rate lets out now."""
        if self.pacing_rate == inf:
            return CWND_MAX
        credit_max = max(float(BURST), self.pacing_rate * TIMER_LATE)
        self._credit = min(credit_max, self._credit + max(0.0, now - self._credit_at) * self.pacing_rate)
        self._credit_at = now
        return max(0, int(self._credit))

    def allows_at(self, now: float, segment: int = SEGMENT) -> float:
        """Return when to ask again after `allowance` was less than a segment of so many bytes."""
        # Waking for a single segment costs more than it spreads; a quarter of a burst is one batch.
        batch = max(segment, min(BURST, self.cwnd) / 4)
        # A credit that rounding has left a hair below a segment must not make the next look due at this very moment.
        return now + max(PACE_RESOLUTION, (batch - self._credit) / self.pacing_rate)

    def on_sent(self, run: Run) -> None:
        """Note segments leaving together, and with them what tells when their round trip is over."""
        if self.pacing_rate < inf:
            self._credit -= run.size
        run.delivered = self._delivered

    # --- what came back ----------------------------------------------------------------------------------------------

    def on_arrived(self, arrived: list[Run], in_flight: int, rtt: RttEstimator, now: float) -> None:
        """Set window and rate after segments became known to have arrived, one at least; `in_flight` is without them."""
        newest, size = arrived[0], 0
        for run in arrived:
            size += run.size
            self._segments += run.segments
            if run.sent_at >= newest.sent_at:
                newest = run
        self._delivered += size
        self._segment = newest.segment
        if rtt.min_rtt == inf:
            return
        self._min_rtt = rtt.min_rtt
        if newest.transmissions == 1:
            self._note_round_trip(now - newest.sent_at, now)
        if newest.delivered >= self._round_end:
            self._end_round(now)
        if self._drain_until < inf:
            if now >= self._drain_until:
                self._drain_until, self._near_at = inf, now
                self.cwnd = max(self.cwnd, self._full_cwnd)
        elif in_flight + size >= USED * self.cwnd:
            self._is_used = True
            if now - self._near_at > self._drain_after and rtt.min_rtt >= PACED_FROM:
                self._drain_after = min(DRAIN_EVERY, 2 * self._drain_after)
                self._drain_until, self._full_cwnd = now + max(DRAIN_HOLD, 2 * rtt.srtt), self.cwnd
                self.cwnd = CWND_MIN
            else:
                self._grow(size)
        self._set_pace(rtt)

    def _note_round_trip(self, sample: float, now: float) -> None:
        self._round_trip = min(self._round_trip, sample)
        if sample <= self._min_rtt + NEAR:
            self._near_at = now

    @property
    def _recent_trip(self) -> float:
        """Shortest round trip of late: of this round, or of the last one if that was longer."""
        return self._trip if self._round_trip == inf else max(self._trip, self._round_trip)

    @property
    def _is_queued(self) -> bool:
        return self._recent_trip > QUEUED * self._min_rtt + QUEUED_LEAST

    def _grow(self, size: int) -> None:
        trip, shortest = self._recent_trip, self._min_rtt
        is_near = shortest < PACED_FROM
        queued = trip > max(QUEUED * shortest, shortest + SHORT) and not is_near
        if queued and self.cwnd < self._start_until == CWND_MAX:
            self._start_until = self.cwnd
        if self.cwnd < self._start_until:
            self.cwnd = min(self.cwnd + size, self._start_until)
        else:
            if queued:
                self._step = GROWTH_QUEUED
            self.cwnd += max(1, int(min(self._step * size / self.cwnd, size * GROWTH)))
        self.cwnd = min(CWND_NEAR if is_near else CWND_MAX, self.cwnd)

    def _set_pace(self, rtt: RttEstimator) -> None:
        if rtt.min_rtt < PACED_FROM:
            # What is out on a path of microseconds is in a socket's buffer.
            self.pacing_rate, self.held_by_path = inf, 0
            return
        gain = PACE_START if self.cwnd < self._start_until else PACE
        self.pacing_rate = gain * self.cwnd / max(rtt.srtt, ROUND_MIN)
        self.held_by_path = self.cwnd

    def _end_round(self, now: float) -> None:
        if not self._is_used:
            self._near_at = now  # a stream that does not fill its window makes no queue
        else:
            self._step = min(CWND_MAX, 2 * self._step)
        self._is_used = False
        self._judged += self._segments
        self._segments = 0
        self._round_end = self._delivered
        if self._round_trip < inf:
            self._trip, self._round_trip = self._round_trip, inf
        self._calm_rounds = max(0, self._calm_rounds - 1)
        judged = self._judged + self._lost
        if judged < max(LOSS_SAMPLE, self.cwnd // (LOSS_PART * self._segment)):
            return
        share = self._lost / judged
        self._judged = self._lost = 0
        if share > 2 * self._usual_loss + LOSS_EXCESS + LOSS_NOISE / sqrt(judged) and not self._calm_rounds:
            self._back_off()
        else:
            self._usual_loss += (min(share, LOSS_USUAL_MAX) - self._usual_loss) / 8

    def on_lost(self, count: int) -> None:
        """Note segments taken for lost; a negative count takes some back that had arrived after all."""
        self._lost = max(0, self._lost + count)
        if count > 0 and not self._calm_rounds and self._is_queued:
            self._back_off()

    def _back_off(self) -> None:
        # Doubling overshoots by up to as much as the path holds.
        reduced = self.cwnd // 2 if self.cwnd < self._start_until else int(self.cwnd * BACKOFF)
        self._calm_rounds, self._step = BACKOFF_ROUNDS, GROWTH_QUEUED
        self.cwnd = self.ssthresh = self._start_until = max(CWND_MIN, reduced)
        self._full_cwnd = int(self._full_cwnd * BACKOFF)

    def on_timeout(self) -> None:
        """Nothing comes back: start over with a small window."""
        if self._is_queued:
            self.ssthresh = self._start_until = max(CWND_MIN, self.cwnd // 2)
        else:
            self._start_until = max(self._start_until, self.cwnd)
        self.cwnd = CWND_MIN
        self._full_cwnd = 0
