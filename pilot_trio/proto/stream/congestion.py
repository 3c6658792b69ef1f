"""How much may be in flight, and how fast it may leave: a model of the path (after BBR, draft-cardwell-iccrg-bbr).

A window that halves at every lost segment cannot fill a path that loses one in a hundred at random: 1152 bytes per 40 ms
round trip come to 0.35 MiB/s. This controller measures instead: the rate at which data is delivered, and the round trip
without queues; their product is what the path holds. Losses slow it down only when they are so many that they are its
own doing (`LOSS_TOO_HIGH`), or when nothing comes back at all.

`cwnd` and `ssthresh` are in bytes, as RFC 5681 has them; `pacing_rate` is bytes per second.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import Final

from pilot_trio.proto.stream.rtt import RttEstimator
from pilot_trio.proto.stream.send_queue import Run
from pilot_trio.proto.stream.settings import SEGMENT

CWND_INITIAL: Final = 40_960  # bytes; the reference's initial window, protocol §5.1
CWND_MIN: Final = 16 * SEGMENT  # bytes; enough that a lost segment is noticed by the ones after it
CWND_MAX: Final = 8 << 20  # bytes; more than the receive window of our own kind
SSTHRESH_INITIAL: Final = 524_288  # bytes; shown to clients until a loss lowers it, protocol §5.1
STARTUP_GAIN: Final = 2.885  # 2/ln 2: doubles the rate every round trip
CWND_GAIN: Final = 2.0  # times what the path holds: room for delayed and joined acknowledgments
PROBE_GAINS: Final = (1.25, 0.75, *6 * (1.0,))  # of the rate, a round trip each: ask for more, give back, cruise
RATE_ROUNDS: Final = 10  # round trips over which the best delivery rate counts
FULL_GROWTH: Final = 1.25  # growth of the rate below which the path is taken for full
FULL_ROUNDS: Final = 3  # round trips without that growth that end the start-up
LOSS_TOO_HIGH: Final = 0.2  # share of the segments judged together; random loss is below, an overrun buffer above
LOSS_QUEUED: Final = 0.02  # the same while the round trip is longer than it has to be: then it is likely a full buffer
QUEUED: Final = 1.25  # times the shortest round trip from which there is a queue
LOSS_SAMPLE: Final = 40  # segments judged together at least; a share of fewer says little
LOSS_BACKOFF: Final = 0.7  # what is left of the estimated rate after a round trip above it
BURST: Final = 48 * SEGMENT  # bytes that may leave at once: one batch of datagrams; smaller bursts cost wake-ups
ROUND_MIN: Final = 0.001  # seconds; the shortest round trip believed, timers being no finer
PACED_FROM: Final = 0.002  # seconds of round trip; below, acknowledgments set the pace better than timers do
TIMER_LATE: Final = 0.002  # seconds that a timer may be late; what should have left meanwhile leaves with it


class Phase(Enum):
    """What the controller is doing."""

    STARTUP = "startup"
    DRAIN = "drain"
    PROBE = "probe"


class Congestion:
    """One connection's controller. Pure: time comes in."""

    __slots__ = (
        "_best_rates", "_credit", "_credit_at", "_delivered", "_delivered_at", "_first_sent_at", "_full_rate",
        "_full_rounds", "_probe_index", "_probe_until", "_round", "_round_end", "_round_lost", "_round_sent",
        "cwnd", "held_by_path", "pacing_rate", "phase", "ssthresh",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.phase = Phase.STARTUP
        self.cwnd = CWND_INITIAL
        self.ssthresh = SSTHRESH_INITIAL
        self.pacing_rate = inf
        self.held_by_path = 0  # bytes of the window that are on the path, rather than in buffers before it
        self._delivered = 0  # bytes acknowledged, cumulatively or selectively
        self._delivered_at = self._first_sent_at = now
        self._best_rates: deque[tuple[int, float]] = deque()  # (round, bytes/s), rates falling
        self._round = self._round_end = 0  # round trips, and the delivered count that ends the current one
        self._round_sent = self._round_lost = 0  # segments, since they were last judged
        self._full_rate = 0.0
        self._full_rounds = 0
        self._probe_index = 0
        self._probe_until = now
        self._credit = float(BURST)
        self._credit_at = now

    @property
    def rate(self) -> float:
        """Best delivery rate of the last round trips, bytes per second; 0 while there is none."""
        return self._best_rates[0][1] if self._best_rates else 0.0

    # --- pacing ------------------------------------------------------------------------------------------------------

    def allowance(self, now: float) -> int:
        """Return how many bytes the pacing rate lets out now."""
        if self.pacing_rate == inf:
            return CWND_MAX
        credit_max = max(float(BURST), self.pacing_rate * TIMER_LATE)
        self._credit = min(credit_max, self._credit + max(0.0, now - self._credit_at) * self.pacing_rate)
        self._credit_at = now
        return max(0, int(self._credit))

    def allows_at(self, now: float) -> float:
        """Return when to ask again after `allowance` was less than a segment."""
        # Waking for a single segment costs more than it spreads; a quarter of a burst is one batch.
        return now + (BURST / 4 - self._credit) / self.pacing_rate

    def on_sent(self, run: Run, in_flight: int, now: float, *, app_limited: bool) -> None:
        """Note segments leaving together, and with them what their acknowledgment will be measured against."""
        if self.pacing_rate < inf:
            self._credit -= run.size
        self._round_sent += run.segments
        if not in_flight:
            self._first_sent_at = self._delivered_at = now
        run.delivered = self._delivered
        run.delivered_at = self._delivered_at
        run.first_sent_at = self._first_sent_at
        run.app_limited = app_limited

    # --- what came back ----------------------------------------------------------------------------------------------

    def on_arrived(self, arrived: list[Run], in_flight: int, rtt: RttEstimator, now: float) -> None:
        """Set window and rate from the model after segments became known to have arrived, one at least."""
        newest = arrived[0]
        for run in arrived:
            self._delivered += run.size
            if run.sent_at >= newest.sent_at:
                newest = run
        self._delivered_at = now
        self._first_sent_at = newest.sent_at
        if newest.delivered >= self._round_end:
            self._end_round(rtt, app_limited=newest.app_limited)
        interval = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        if interval > 0:
            self._note_rate((self._delivered - newest.delivered) / interval, app_limited=newest.app_limited)
        if self._best_rates and rtt.min_rtt < inf:
            self._follow_model(in_flight, rtt, now)

    def _note_rate(self, rate: float, *, app_limited: bool) -> None:
        """Keep the best rates of the last rounds. A sender with nothing to send proves no path slow."""
        rates = self._best_rates
        if app_limited and rate < self.rate:
            return
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self._round, rate))
        while rates[0][0] < self._round - RATE_ROUNDS:
            rates.popleft()

    def _follow_model(self, in_flight: int, rtt: RttEstimator, now: float) -> None:
        round_trip = max(rtt.min_rtt, ROUND_MIN)
        capacity = self.rate * round_trip
        rate_gain, window_gain = self._gains(in_flight, capacity, round_trip, now)
        # A stream that had little to send knows little of the path: it may always send its first window in a round trip.
        least_rate = (CWND_INITIAL if self.phase is Phase.STARTUP else CWND_MIN) / max(rtt.srtt, ROUND_MIN)
        self.pacing_rate = inf if rtt.min_rtt < PACED_FROM else max(rate_gain * self.rate, least_rate)
        target = int(window_gain * capacity) + BURST
        grown = self.cwnd * 2 if self.phase is Phase.STARTUP else self.cwnd + SEGMENT * 8
        self.cwnd = max(CWND_MIN, min(CWND_MAX, target, max(grown, CWND_INITIAL)))
        # What is out on a path of microseconds is in a socket's buffer, whatever the product of rate and time says.
        self.held_by_path = 0 if rtt.min_rtt < PACED_FROM else min(self.cwnd, int(window_gain * capacity))

    def _gains(self, in_flight: int, capacity: float, round_trip: float, now: float) -> tuple[float, float]:
        """Advance the phase; return the gains of pacing rate and window."""
        if self.phase is Phase.STARTUP and self._full_rounds >= FULL_ROUNDS:
            self.phase = Phase.DRAIN
        if self.phase is Phase.DRAIN and in_flight <= capacity:
            self.phase, self._probe_index, self._probe_until = Phase.PROBE, 2, now + round_trip
        if self.phase is Phase.STARTUP:
            return STARTUP_GAIN, STARTUP_GAIN
        if self.phase is Phase.DRAIN:
            return 1 / STARTUP_GAIN, STARTUP_GAIN
        if now >= self._probe_until:
            self._probe_index = (self._probe_index + 1) % len(PROBE_GAINS)
            self._probe_until = now + round_trip
        gain = PROBE_GAINS[self._probe_index]
        # Giving back includes what piled up before: else streams that share a path learn its length with all their queues.
        return gain, CWND_GAIN if gain >= 1 else 1.0

    def _end_round(self, rtt: RttEstimator, *, app_limited: bool) -> None:
        self._round += 1
        self._round_end = self._delivered
        if self.rate >= self._full_rate * FULL_GROWTH:
            self._full_rate, self._full_rounds = self.rate, 0
        elif not app_limited:
            self._full_rounds += 1
        if self._round_sent >= LOSS_SAMPLE:
            queued = rtt.srtt > QUEUED * max(rtt.min_rtt, ROUND_MIN)
            if self._round_lost > (LOSS_QUEUED if queued else LOSS_TOO_HIGH) * self._round_sent:
                self._slow_down()
            self._round_sent = self._round_lost = 0

    def _slow_down(self) -> None:
        reduced = self.rate * LOSS_BACKOFF
        self._best_rates.clear()
        if reduced > 0:
            self._best_rates.append((self._round, reduced))
        self._full_rounds = FULL_ROUNDS
        self.ssthresh = max(CWND_MIN, self.cwnd // 2)
        self.cwnd = max(CWND_MIN, int(self.cwnd * LOSS_BACKOFF))

    def on_lost(self, count: int) -> None:
        """Note segments taken for lost; a negative count takes some back that had arrived after all."""
        self._round_lost = max(0, self._round_lost + count)

    def on_timeout(self) -> None:
        """Nothing comes back: start over with a small window, keep what is known of the path."""
        self.ssthresh = max(CWND_MIN, self.cwnd // 2)
        self.cwnd = CWND_MIN
