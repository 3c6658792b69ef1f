"""Notices that this node hears nothing, or reaches nobody, and that the machine was asleep (`spec/tunnel.md` §11.6). Pure.

A node whose socket, NAT mapping, registration or interface is dead looks fine from the inside. What can be seen is silence in
spite of sending, and dials that nobody answers. The remedies grow: to announce oneself anew, then another socket. A long
pause between two looks is a suspended machine: silence in it means nothing, and the first remedy is due at once.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

import attrs

LOOK_INTERVAL: Final = 30.0  # seconds between looks; protocol, `spec/tunnel.md` §11.6
SILENCE: Final = 180.0  # seconds without an accepted packet; protocol §11.6
SENT_MIN: Final = 30  # packets sent meanwhile; protocol §11.6
DIALS_MIN: Final = 4  # dials without an answer, and none with one since; protocol §11.6
SOFT_ATTEMPTS: Final = 3  # remedies in a row; protocol §11.6
RESUMED_AFTER: Final = 120.0  # seconds that a look must be late for a suspend; protocol §11.6

# What we chose.
PATIENCE: Final = 600.0  # seconds until the next remedy after that; where the reference ends its process


class Silent(NamedTuple):
    """Time for a remedy."""

    reason: str  # as events name it
    silent_for: float  # seconds since a packet was accepted
    sent: int  # packets since then
    dials: int  # without an answer, in a row
    attempt: int  # from 1
    deaf: bool  # nothing arrives: announcing oneself again will not do if it did not do before


class Recovered(NamedTuple):
    """It is over."""

    silent_for: float  # seconds
    attempts: int


class Resumed(NamedTuple):
    """The machine was suspended."""

    gap: float  # seconds


@attrs.define(eq=False)
class ReceiveWatch:
    """Judges counters. Times are seconds of a clock that goes on while the machine sleeps."""

    _looked_at: float
    _received: int = 0
    _received_at: float = attrs.field(init=False)
    _sent: int = 0  # when the last packet arrived
    _attempts: int = 0
    _attempted_at: float = -inf
    _deaf: bool = False  # at the last look that found something

    def __attrs_post_init__(self) -> None:
        self._received_at = self._looked_at

    def look(self, now: float, received: int, sent: int, dials: int = 0) -> Silent | Recovered | Resumed | None:
        """Say what to do.

        Args:
          now: the time.
          received: packets accepted so far.
          sent: packets sent so far.
          dials: how many have ended without an answer since the last that got one.
        """
        late = now - self._looked_at - LOOK_INTERVAL
        self._looked_at = now
        if late >= RESUMED_AFTER:
            self._note_arrival(now, received, sent)
            self._attempts = 0
            return Resumed(late + LOOK_INTERVAL)
        silent_for = now - self._received_at
        if received != self._received:
            self._note_arrival(now, received, sent)
        unanswered = sent - self._sent
        deaf = now - self._received_at >= SILENCE and unanswered >= SENT_MIN
        if not deaf and dials < DIALS_MIN:
            return self._recover(silent_for)
        if deaf and not self._deaf:
            self._attempts = 0  # what failed dials have brought about was not meant for this
        self._deaf = deaf
        if self._attempts >= SOFT_ATTEMPTS and now - self._attempted_at < PATIENCE:
            return None
        self._attempts += 1
        self._attempted_at = now
        reasons = ["inbound-silent"] * deaf + ["outbound-dial-wedged"] * (dials >= DIALS_MIN)
        return Silent("+".join(reasons), now - self._received_at, unanswered, dials, self._attempts, deaf)

    def _recover(self, silent_for: float) -> Recovered | None:
        attempts, self._attempts, self._deaf = self._attempts, 0, False
        return Recovered(silent_for, attempts) if attempts else None

    def _note_arrival(self, now: float, received: int, sent: int) -> None:
        self._received, self._sent, self._received_at = received, sent, now
