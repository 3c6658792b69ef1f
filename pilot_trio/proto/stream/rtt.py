"""Round-trip time and retransmission timeout (RFC 6298). Seconds throughout."""

from __future__ import annotations

from typing import Final

import attrs

RTO_INITIAL: Final = 1.0  # seconds; RFC 6298 (2.1)
RTO_MIN: Final = 0.2  # seconds; protocol §5.4, above a peer's delayed acknowledgment
RTO_MAX: Final = 10.0  # seconds; protocol §5.4
GRANULARITY: Final = 0.01  # seconds; G of RFC 6298 (2.3), the protocol's value
MIN_RTT_WINDOW: Final = (
    10.0  # seconds, and up to as many before, over which the smallest round trip counts; paths change
)


@attrs.define
class RttEstimator:
    """The estimate of one path; `rto` is the timeout without backoff."""

    srtt: float = 0.0
    rttvar: float = 0.0
    rto: float = RTO_INITIAL
    min_rtt: float = float("inf")
    _recent_min: float = float("inf")  # smallest since `_window_start`; becomes `min_rtt` when the window is over
    _window_start: float = float("-inf")
    _is_bound: bool = False  # the estimate is from `on_bound`

    def on_bound(self, rtt: float, now: float) -> None:
        """Take a round trip that was not longer than this, before there is a sample; the first one takes its place."""
        if self.srtt == 0.0:
            self.on_sample(rtt, now)
            self._is_bound = True

    def on_sample(self, rtt: float, now: float) -> None:
        """Fold one round-trip sample into the estimate.

        Args:
          rtt: seconds from transmission to acknowledgement; never of a segment sent twice (Karn).
          now: the current time.
        """
        if self.srtt == 0.0 or self._is_bound:
            # (2.2) SRTT <- R, RTTVAR <- R/2
            self.srtt, self.rttvar = rtt, rtt / 2
            self._is_bound = False
        else:
            # (2.3) RTTVAR <- 3/4 RTTVAR + 1/4 |SRTT - R'|, SRTT <- 7/8 SRTT + 1/8 R'; in this order
            off = rtt - self.srtt
            self.rttvar += ((off if off > 0.0 else -off) - self.rttvar) / 4
            self.srtt += off / 8
        # (2.4) and (2.5): the floor and the ceiling are the protocol's
        rto = self.srtt + max(GRANULARITY, 4 * self.rttvar)
        self.rto = RTO_MIN if rto < RTO_MIN else min(RTO_MAX, rto)
        if now - self._window_start > MIN_RTT_WINDOW:
            # The old value goes by a whole window of samples, not by the one that happens to come first.
            self.min_rtt, self._recent_min, self._window_start = min(self._recent_min, rtt), rtt, now
        if rtt < self._recent_min:
            self._recent_min = rtt
        if rtt < self.min_rtt:
            self.min_rtt = rtt
