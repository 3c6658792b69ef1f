"""How large the segments to a peer may be: what the path has proved to carry (RFC 8899; RFC 4821 §7).

Segments of `SEGMENT` bytes fit every path that the protocol is made for. Many paths carry more: an Ethernet a fifth, two
programs on one machine seven times as much, and what a segment costs hardly depends on its size. The protocol lets senders
choose (`spec/transport.md` §12), but only with evidence, as a datagram that is too long vanishes without a word.

So one segment that is larger than what is proved is sent among others, as a probe. If it arrives, segments may be as large
from then on; if it does not, it is cut into small ones and sent again, and `PROBES` such losses mean that the path will not
carry it. A path that stops carrying what it did is noticed by nothing but losses: then segments are small again.

Pure: it counts and compares, and knows neither packets nor the path.
"""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import Final

from pilot_trio.proto.stream.settings import SEGMENT

STEPS: Final = (8192, 1380)  # bytes; what fits into jumbo frames and loopback, and into Ethernet's with IPv6
GAIN: Final = 1.125  # times what is proved: a probe of less is not worth its risk
PROBES: Final = 3  # of a size, or smaller, that have to be lost: one may be by chance (RFC 8899 §5.1.2)
PROBE_AGAIN: Final = 600.0  # seconds until a size that was too large is tried again (RFC 8899 §5.1.1)
RECOVER_FIRST: Final = 10.0  # seconds until a path that stopped carrying large segments is tried again; doubles
LOST_MAX: Final = 8  # large segments lost in a row, with none arriving, that mean that the path carries them no more


class SegmentSize:
    """Shared by the streams to one peer. `size` is the payload of a full segment in bytes.

    Args:
      limit: bytes of payload that a segment may have at most, by what is known of the first link; `SEGMENT`: never probe.
    """

    __slots__ = ("_lost", "_lost_probes", "_pause", "_probing", "_refused", "_try_at", "_upper", "limit", "size")

    def __init__(self, limit: int = SEGMENT) -> None:
        self.limit = limit
        self._pause = RECOVER_FIRST
        self._start_over(-inf)

    def _start_over(self, try_at: float) -> None:
        self.size = SEGMENT
        self._upper = self.limit  # bytes; no use in probing for more before `_refused`
        self._refused = inf  # when that ends
        self._try_at = try_at  # no probe before then
        self._probing = 0  # bytes of the probe on its way
        self._lost_probes: list[int] = []  # bytes of those that were larger than what has arrived since, ascending
        self._lost = 0  # large segments lost in a row

    def on_path(self, limit: int) -> None:
        """Begin anew: the peer is reached in another way, of which nothing is proved."""
        self.limit = limit
        self._pause = RECOVER_FIRST
        self._start_over(-inf)

    def probe(self, available: int, now: float) -> int:
        """Return how large a segment should be sent as a probe, 0 for none.

        Args:
          available: bytes that wait to be sent.
          now: the current time.
        """
        if self.limit <= SEGMENT or self._probing or now < self._try_at:
            return 0
        if now >= self._refused:
            self._upper, self._refused = self.limit, inf
            self._lost_probes.clear()
        size = min(available, next((step for step in STEPS if step <= self._upper), 0))
        return size if size >= GAIN * self.size else 0

    def on_probe_sent(self, size: int) -> None:
        """Note that a probe has left."""
        self._probing = size

    def on_probe_given_up(self) -> None:
        """Note that nobody will say what became of the probe."""
        self._probing = 0

    def on_probe_arrived(self, size: int) -> None:
        """Note that a probe of so many bytes has arrived."""
        if size == self._probing:  # else it left on an earlier path, and proves nothing
            self.size = size
            self._probing = 0
            self._lost_probes = [lost for lost in self._lost_probes if lost > size]  # by chance
            self._pause = RECOVER_FIRST

    def on_probe_lost(self, size: int, now: float) -> None:
        """Note that a probe of so many bytes was lost."""
        if size == self._probing:
            self._probing = 0
            lost = self._lost_probes
            insort(lost, size)
            if len(lost) == PROBES:
                # The largest is refused, as it and smaller ones were lost. What is smaller may have been by chance.
                self._upper, self._refused = lost[-1] - 1, now + PROBE_AGAIN
                self._lost_probes = [smaller for smaller in lost if smaller < lost[-1]]

    def on_large_arrived(self) -> None:
        """Note that segments of more than `SEGMENT` bytes have arrived."""
        self._lost = 0

    def on_large_lost(self, count: int, now: float) -> None:
        """Note that so many segments of more than `SEGMENT` bytes were lost."""
        self._lost += count
        if self._lost >= LOST_MAX and self.size > SEGMENT:
            self._distrust(now)

    def on_timeout(self, now: float) -> None:
        """Note that nothing comes back at all: large segments may be why."""
        if self.size > SEGMENT:
            self._distrust(now)

    def _distrust(self, now: float) -> None:
        self._start_over(now + self._pause)
        self._pause = min(PROBE_AGAIN, self._pause * 2)
