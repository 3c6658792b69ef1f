"""Round-trip time and retransmission timeout (RFC 6298), and what streams to one peer know for each other (RFC 9040).

Seconds throughout. The estimate of a stream has one of three sources, each better than the one before it: an earlier stream
to the same peer, the stream's own handshake, samples of its data.
"""

from __future__ import annotations

from math import inf
from typing import Final

import attrs

RTO_INITIAL: Final = 1.0  # seconds; RFC 6298 (2.1)
RTO_MIN: Final = 0.2  # seconds; protocol §5.4, above a peer's delayed acknowledgment
RTO_MAX: Final = 10.0  # seconds; protocol §5.4
GRANULARITY: Final = 0.01  # seconds; G of RFC 6298 (2.3), the protocol's value
MIN_RTT_WINDOW: Final = 10.0  # seconds, and up to as many before, whose smallest round trip counts; paths change
REMEMBERED: Final = 300.0  # seconds for which an estimate is good enough for a stream that has none of its own


@attrs.define
class RttEstimator:
    """The estimate of one stream; `rto` is the timeout without backoff."""

    srtt: float = 0.0
    rttvar: float = 0.0
    rto: float = RTO_INITIAL
    min_rtt: float = inf  # of samples alone
    known_at: float = -inf  # when the estimate was true, give or take `MIN_RTT_WINDOW`
    _recent_min: float = inf  # smallest since `known_at`; becomes `min_rtt` when the window is over
    _is_guess: bool = False  # there was no sample yet

    def successor(self, now: float) -> RttEstimator:
        """Return what a new stream to the same peer begins with.

        It knows how long the path is, and nothing of how much that varies at present: as after a single sample, the
        timeout is three times the round trip at least.
        """
        if self.srtt == 0.0 or now - self.known_at > REMEMBERED:
            return RttEstimator()
        successor = RttEstimator()
        successor._guess(self.srtt, max(self.rttvar, self.srtt / 2), self.known_at)
        return successor

    def on_bound(self, rtt: float, now: float) -> None:
        """Take a round trip that was not longer than this; the first sample takes its place."""
        if self.srtt == 0.0 or (self._is_guess and rtt < self.srtt):
            self._guess(rtt, rtt / 2, now)

    def _guess(self, srtt: float, rttvar: float, known_at: float) -> None:
        self.srtt, self.rttvar, self.rto = srtt, rttvar, min(RTO_MAX, max(RTO_MIN, srtt + 4 * rttvar))
        self.known_at, self._is_guess = known_at, True

    def on_sample(self, rtt: float, now: float) -> None:
        """Fold one round-trip sample into the estimate.

        Args:
          rtt: seconds from transmission to acknowledgement; never of a segment sent twice (Karn).
          now: the current time.
        """
        if self.srtt == 0.0 or self._is_guess:
            # (2.2) SRTT <- R, RTTVAR <- R/2
            self.srtt, self.rttvar = rtt, rtt / 2
            self._is_guess, self.known_at = False, -inf
        else:
            # (2.3) RTTVAR <- 3/4 RTTVAR + 1/4 |SRTT - R'|, SRTT <- 7/8 SRTT + 1/8 R'; in this order
            off = rtt - self.srtt
            self.rttvar += ((off if off > 0.0 else -off) - self.rttvar) / 4
            self.srtt += off / 8
        rto = self.srtt + max(GRANULARITY, 4 * self.rttvar)
        # (2.4) and (2.5): the floor and the ceiling are the protocol's
        self.rto = RTO_MIN if rto < RTO_MIN else min(RTO_MAX, rto)
        if now - self.known_at > MIN_RTT_WINDOW:
            # The old value goes by a whole window of samples, not by the one that happens to come first.
            self.min_rtt, self._recent_min, self.known_at = min(self._recent_min, rtt), rtt, now
        if rtt < self._recent_min:
            self._recent_min = rtt
        if rtt < self.min_rtt:
            self.min_rtt = rtt
