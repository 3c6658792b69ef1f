"""Dials that were given up, for as long as their peer may still answer.

A peer that was slow, or stopped, answers a SYN when nobody waits for it any more. To it the stream is open then, and its
client sits in front of one on which nothing will ever be said, until the keepalive ends it after two minutes. The original
has no such rows: there a dial outlives its client, and ends with a FIN. We answer the late answer with a reset.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

LATE_MAX: Final = 120.0  # seconds; an accepting node has forgotten a silent stream by then itself
GIVEN_UP_MAX: Final = 4096  # dials; a quarter of the ephemeral ports. Of more the oldest are forgotten

K = TypeVar("K")


class GivenUp(Generic[K]):
    """Remembers keys for `LATE_MAX` seconds."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[K, float] = {}  # in the order in which they expire

    def __len__(self) -> int:
        return len(self._until)

    def add(self, key: K, now: float) -> None:
        """Note that a dial was given up."""
        until = self._until
        until.pop(key, None)
        until[key] = now + LATE_MAX
        while until[oldest := next(iter(until))] <= now or len(until) > GIVEN_UP_MAX:
            del until[oldest]

    def has(self, key: K, now: float) -> bool:
        """Say whether an answer to this dial comes too late."""
        return self._until.get(key, now) > now
