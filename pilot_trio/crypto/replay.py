"""The replay window: which nonce counters of a session were seen (RFC 6479's idea; `spec/tunnel.md` §5).

Consult it only after the tag has verified: an unauthenticated frame must neither be judged nor leave a trace.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

WINDOW: Final = 8192  # counters; a peer's window is 256, a wider one turns a peer's reordering into no loss at all


class Verdict(Enum):
    """What the window says of a counter."""

    FRESH = "fresh"
    REPLAY = "replay"
    OUTSIDE = "outside window"


class ReplayWindow:
    """Seen counters up to `size` behind the highest.

    Counters nearly always come one after the other, and a large integer is slow to shift. So the bitmap is one of an
    earlier counter, its bit 0, and every counter from there to the highest was seen. Whoever sees the next counter only
    raises `highest`; the bitmap follows when something else is asked.
    """

    __slots__ = ("_bits", "_bits_at", "_mask", "_size", "highest")

    def __init__(self, size: int = WINDOW, *, highest: int = 0) -> None:
        """Begin anew, or with every counter up to `highest` taken for seen."""
        self._size = size
        self._mask = (1 << size) - 1
        self._bits = 0
        self._bits_at = 0
        self.highest = highest
        """The highest counter accepted so far. Raising it by one says that the one after it was seen."""

    def accept(self, counter: int) -> Verdict:
        """Judge a counter whose frame was authenticated, and mark it as seen."""
        ahead = counter - self.highest
        if ahead == 1:
            self.highest = counter
            return Verdict.FRESH
        if -ahead >= self._size:
            return Verdict.OUTSIDE
        self._catch_up()
        if ahead > 0:
            # Nothing is kept of a jump larger than the window; shifting by an attacker's 2**63 would never end.
            self._bits = (self._bits << ahead | 1) & self._mask if ahead < self._size else 1
            self.highest = self._bits_at = counter
            return Verdict.FRESH
        bit = 1 << -ahead
        if self._bits & bit:
            return Verdict.REPLAY
        self._bits |= bit
        return Verdict.FRESH

    def _catch_up(self) -> None:
        """Bring the bitmap to the highest counter."""
        behind = self.highest - self._bits_at
        if behind:
            seen = (1 << min(behind, self._size)) - 1
            self._bits = (self._bits << behind | seen) & self._mask if behind < self._size else seen
            self._bits_at = self.highest
