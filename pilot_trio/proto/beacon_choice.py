"""Which of several beacons a node uses: the one that its key falls on, unless that is silent (`spec/tunnel.md` §13.5).

A beacon is known by what the node hears of it: a *round* of questions gets an answer or does not. One that is silent for
some rounds is left for another; the one that the key falls on is returned to once it has answered for a while. Between both
lies far more time than a restart takes, so that nobody moves to and fro.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

SILENT_ROUNDS: Final = 3  # rounds without an answer after which a beacon is left; fewer are a restart or a bad minute
RETURN_ROUNDS: Final = 3  # answered rounds in a row after which the node goes back to the beacon that its key falls on

_FNV_OFFSET: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193


B = TypeVar("B", bound=Hashable)


class BeaconChoice(Generic[B]):
    """One node's choice. `current` is the beacon to use, None as long as none is known."""

    def __init__(self) -> None:
        self.current: B | None = None
        self._order: tuple[B, ...] = ()  # all of them, the one to prefer first
        self._left: dict[B, int] = {}  # those that were silent: the number of the change that left them
        self._changes = 0
        self._unanswered = 0  # rounds in a row, of the current one
        self._returning = 0  # answered rounds in a row, of the preferred one while another is used

    @property
    def has_others(self) -> bool:
        """Whether there is another beacon to turn to."""
        return len(self._order) > 1

    @property
    def preferred(self) -> B | None:
        """The beacon to go back to; None while it is in use."""
        return self._order[0] if self._order and self._order[0] != self.current else None

    def offer(self, beacons: Sequence[B], public_key: bytes) -> None:
        """Choose among these from now on; what is known of their silence stays. An empty list changes nothing.

        Args:
          beacons: all that there are; each is told apart by its text.
          public_key: the node's; spreads nodes over beacons, and those of a silent one over the others.
        """
        if not beacons:
            return
        pick = beacons[fnv1a_32(public_key) % len(beacons)]
        others = sorted({*beacons} - {pick}, key=lambda beacon: fnv1a_32(str(beacon).encode() + public_key))
        self._order = (pick, *others)
        self._left = {beacon: change for beacon, change in self._left.items() if beacon in self._order}
        self._use_best()

    def answered(self) -> None:
        """Note a round that the current beacon has answered."""
        self._unanswered = 0
        if self.current is not None:
            self._left.pop(self.current, None)

    def unanswered(self, rounds: int = 1) -> bool:
        """Note rounds that it has not answered; return True if another one is current now."""
        self._unanswered += rounds
        if self.current is None or not self.has_others or self._unanswered < SILENT_ROUNDS:
            return False
        self._changes += 1
        self._left[self.current] = self._changes
        self._use_best()
        return True

    def looked(self, *, answered: bool) -> bool:
        """Note a round of the preferred beacon while another one is used; return True if it is current now."""
        self._returning = self._returning + 1 if answered else 0
        if self._returning < RETURN_ROUNDS or self.preferred is None:
            return False
        del self._left[self.preferred]
        self._use_best()
        return True

    def _use_best(self) -> None:
        """Use the first one that is not known to be silent; if all are, the one that was left longest ago."""
        best = min(self._order, key=lambda beacon: self._left.get(beacon, 0))
        if best != self.current:
            self.current = best
            self._unanswered = self._returning = 0


def fnv1a_32(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash, by which nodes spread over beacons."""
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFF
    return value
