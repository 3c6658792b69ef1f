"""How long to wait before trying again. Pure: the clock and the dice are the caller's.

Every delay is drawn from [d/2, d], so that nodes which lost their registry together do not come back together.
"""

from __future__ import annotations

import random
from typing import Final

import attrs

EARLY_CLOSE_AGE: Final = 30.0  # seconds; a connection closed younger than this was not wanted; `spec/registry.md` §2.5
EARLY_CLOSE_FIRST: Final = 0.25  # seconds; first cooldown before the next dial; `spec/registry.md` §2.5
EARLY_CLOSE_MAX: Final = 2.0  # seconds; longest such cooldown; `spec/registry.md` §2.5
EARLY_CLOSE_MEMORY: Final = 60.0  # seconds without an early close until it is forgotten; `spec/registry.md` §2.5


@attrs.define
class Backoff:
    """Delays that double from `first` to `maximum`, in seconds, each jittered."""

    first: float
    maximum: float
    rng: random.Random = attrs.field(repr=False)
    _current: float = attrs.field(default=0.0, init=False)

    def next_delay(self) -> float:
        """Return the next delay and double the one after it."""
        self._current = min(self._current * 2 or self.first, self.maximum)
        return jittered(self._current, self.rng)

    def reset(self) -> None:
        """Start again at `first`: something worked."""
        self._current = 0.0


@attrs.define
class EarlyCloseGuard:
    """Slows down dialling while the registry closes connections soon after it accepted them.

    A registry limits the rate of its clients by closing; dialling again at once would be answered the same way.
    """

    rng: random.Random = attrs.field(repr=False)
    _cooldown: float = attrs.field(default=0.0, init=False)
    _last_at: float = attrs.field(default=0.0, init=False)

    def on_close(self, *, age: float, now: float) -> None:
        """Note that the registry closed a connection `age` seconds after it was opened."""
        if age < EARLY_CLOSE_AGE:
            self._forget_if_old(now)
            self._cooldown = min(self._cooldown * 2 or EARLY_CLOSE_FIRST, EARLY_CLOSE_MAX)
            self._last_at = now

    def on_answer(self, *, age: float) -> None:
        """Note an answer on a connection opened `age` seconds ago."""
        if age >= EARLY_CLOSE_AGE:
            self._cooldown = 0.0

    def delay(self, now: float) -> float:
        """Return how long to wait before the next dial, 0 if the registry behaves."""
        self._forget_if_old(now)
        return jittered(self._cooldown, self.rng)

    def _forget_if_old(self, now: float) -> None:
        if now - self._last_at >= EARLY_CLOSE_MEMORY:
            self._cooldown = 0.0


def jittered(delay: float, rng: random.Random) -> float:
    """Return a delay between half of `delay` and all of it."""
    return delay * rng.uniform(0.5, 1.0)
