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
from typing import Final

from pilot_trio.proto.stream.settings import SEGMENT

CWND_INITIAL: Final = 40_960  # bytes; the reference's initial window, protocol §5.1
CWND_MIN: Final = 16 * SEGMENT  # bytes; enough that a lost segment is noticed by the ones after it
CWND_MAX: Final = 8 << 20  # bytes; more than the receive window of our own kind
SSTHRESH_INITIAL: Final = 524_288  # bytes; shown to clients until a loss lowers it, protocol §5.1
STARTUP_GAIN: Final = 2.885  # 2/ln 2: doubles the rate every round trip
CWND_GAIN: Final = 2.0  # times what the path holds: room for delayed and joined acknowledgments
PROBE_GAINS: Final = (
    1.25,
    0.75,
    1.0,
    1.0,
    1.0,
    1.0,
    1.0,
    1.0,
)  # of the rate, a round trip each: ask for more, give back
RATE_ROUNDS: Final = 10  # round trips over which the best delivery rate counts
FULL_GROWTH: Final = 1.25  # growth of the rate below which the path is taken for full
FULL_ROUNDS: Final = 3  # round trips without that growth that end the start-up
LOSS_TOO_HIGH: Final = 0.15  # share of a round trip's segments; random loss is below, an overrun buffer above
LOSS_BACKOFF: Final = 0.7  # what is left of the estimated rate after a round trip above it
BURST: Final = 48 * SEGMENT  # bytes that may leave at once: one batch of datagrams; smaller bursts cost wake-ups
ROUND_MIN: Final = 0.001  # seconds; the shortest round trip believed, timers being no finer


class Phase(Enum):
    """What the controller is doing."""

    STARTUP = "startup"
    DRAIN = "drain"
    PROBE = "probe"


class RateSample:
    """What was delivered when a segment left; with the same at its acknowledgment it gives a delivery rate."""

    __slots__ = ("app_limited", "delivered", "delivered_at", "first_sent_at")

    def __init__(self, delivered: int, delivered_at: float, first_sent_at: float, *, app_limited: bool) -> None:
        self.delivered = delivered
        self.delivered_at = delivered_at
        self.first_sent_at = first_sent_at
        self.app_limited = app_limited


class Congestion:
    """One connection's controller. Pure: time comes in."""

    __slots__ = (
        "_best_rates", "_credit", "_credit_at", "_delivered", "_delivered_at", "_first_sent_at", "_full_rate",
        "_full_rounds", "_probe_index", "_probe_until", "_round", "_round_end", "_round_lost", "_round_sent",
        "cwnd", "pacing_rate", "phase", "ssthresh",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.phase = Phase.STARTUP
        self.cwnd = CWND_INITIAL
        self.ssthresh = SSTHRESH_INITIAL
        self.pacing_rate = float("inf")
        self._delivered = 0  # bytes acknowledged, cumulatively or selectively
        self._delivered_at = self._first_sent_at = now
        self._best_rates: deque[tuple[int, float]] = deque()  # (round, bytes/s), rates falling
        self._round = self._round_end = 0  # round trips, and the delivered count that ends the current one
        self._round_sent = self._round_lost = 0
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

    def may_send_at(self, now: float) -> float:
        """Return when the next segment may leave: `now` or later."""
        if self.pacing_rate == float("inf"):
            return now
        elapsed = max(0.0, now - self._credit_at)
        self._credit = min(float(BURST), self._credit + elapsed * self.pacing_rate)
        self._credit_at = now
        if self._credit >= SEGMENT:
            return now
        # Waking for a single segment costs more than it spreads; a quarter of a burst is one batch.
        return now + (BURST / 4 - self._credit) / self.pacing_rate

    def on_sent(self, size: int, in_flight: int, now: float, *, app_limited: bool) -> RateSample:
        """Note a segment leaving; keep the sample with it."""
        self._credit -= size
        self._round_sent += 1
        if in_flight == 0:
            self._first_sent_at = self._delivered_at = now
        return RateSample(self._delivered, self._delivered_at, self._first_sent_at, app_limited=app_limited)

    # --- what came back ----------------------------------------------------------------------------------------------

    def on_delivered(self, size: int, sent_at: float, sample: RateSample, now: float) -> None:
        """Note one segment known to have arrived; call `on_ack` after the last one of an acknowledgment."""
        self._delivered += size
        self._delivered_at = now
        self._first_sent_at = sent_at
        interval = max(sent_at - sample.first_sent_at, now - sample.delivered_at)
        if sample.delivered >= self._round_end:
            self._end_round()
        if interval <= 0:
            return
        rate = (self._delivered - sample.delivered) / interval
        if rate >= self.rate or not sample.app_limited:
            while self._best_rates and self._best_rates[-1][1] <= rate:
                self._best_rates.pop()
            self._best_rates.append((self._round, rate))

    def on_ack(self, in_flight: int, min_rtt: float, now: float) -> None:
        """Set window and rate from the model after an acknowledgment was worked in."""
        while len(self._best_rates) > 1 and self._best_rates[0][0] < self._round - RATE_ROUNDS:
            self._best_rates.popleft()
        if not self._best_rates or min_rtt == float("inf"):
            return
        round_trip = max(min_rtt, ROUND_MIN)
        capacity = self.rate * round_trip
        if self.phase is Phase.STARTUP and self._full_rounds >= FULL_ROUNDS:
            self.phase = Phase.DRAIN
        if self.phase is Phase.DRAIN and in_flight <= capacity:
            self.phase, self._probe_index, self._probe_until = Phase.PROBE, 2, now + round_trip
        if self.phase is Phase.PROBE and now >= self._probe_until:
            self._probe_index = (self._probe_index + 1) % len(PROBE_GAINS)
            self._probe_until = now + round_trip
        if self.phase is Phase.STARTUP:
            rate_gain = window_gain = STARTUP_GAIN
        elif self.phase is Phase.DRAIN:
            rate_gain, window_gain = 1 / STARTUP_GAIN, STARTUP_GAIN
        else:
            rate_gain, window_gain = PROBE_GAINS[self._probe_index], CWND_GAIN
        self.pacing_rate = rate_gain * self.rate
        target = int(window_gain * capacity) + BURST
        grown = self.cwnd + SEGMENT * 8 if self.phase is not Phase.STARTUP else self.cwnd * 2
        self.cwnd = max(CWND_MIN, min(CWND_MAX, target, max(grown, CWND_INITIAL)))

    def _end_round(self) -> None:
        self._round += 1
        self._round_end = self._delivered
        if self.rate >= self._full_rate * FULL_GROWTH:
            self._full_rate, self._full_rounds = self.rate, 0
        else:
            self._full_rounds += 1
        if self._round_sent >= 20 and self._round_lost > LOSS_TOO_HIGH * self._round_sent:
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

    def on_lost(self) -> None:
        """Note one segment taken for lost."""
        self._round_lost += 1

    def on_timeout(self) -> None:
        """Nothing comes back: start over with a small window, keep what is known of the path."""
        self.ssthresh = max(CWND_MIN, self.cwnd // 2)
        self.cwnd = CWND_MIN
