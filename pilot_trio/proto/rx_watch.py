"""Notices that nothing arrives any more although much is sent, and that the machine was asleep (`spec/tunnel.md` §11.6). Pure.

A node whose NAT mapping, registration or interface went stale looks fine from the inside. What can be seen is silence in
spite of sending, and the remedy is to announce itself anew. A long pause between two looks is a suspended machine: silence
in it means nothing, and the same remedy is due at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

LOOK_INTERVAL: Final = 30.0  # seconds between looks; protocol, `spec/tunnel.md` §11.6
SILENCE: Final = 180.0  # seconds without an accepted packet; protocol §11.6
SENT_MIN: Final = 30  # packets sent meanwhile; protocol §11.6
SOFT_ATTEMPTS: Final = 3  # remedies in a row; protocol §11.6
RESUMED_AFTER: Final = 120.0  # seconds that a look must be late for a suspend; protocol §11.6


class Silent(NamedTuple):
    """Time for a remedy."""

    silent_for: float  # seconds
    sent: int  # packets since the last one arrived
    attempt: int  # from 1


class Recovered(NamedTuple):
    """Packets arrive again."""

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

    def __attrs_post_init__(self) -> None:
        self._received_at = self._looked_at

    def look(self, now: float, received: int, sent: int) -> Silent | Recovered | Resumed | None:
        """Take the packets received and sent so far; say what to do about them."""
        late = now - self._looked_at - LOOK_INTERVAL
        self._looked_at = now
        if late >= RESUMED_AFTER:
            self._start_over(now, received, sent)
            return Resumed(late + LOOK_INTERVAL)
        if received != self._received:
            silent_for, attempts = now - self._received_at, self._attempts
            self._start_over(now, received, sent)
            return Recovered(silent_for, attempts) if attempts else None
        silent_for = now - self._received_at
        if silent_for < SILENCE or sent - self._sent < SENT_MIN or self._attempts >= SOFT_ATTEMPTS:
            return None
        self._attempts += 1
        return Silent(silent_for, sent - self._sent, self._attempts)

    def _start_over(self, now: float, received: int, sent: int) -> None:
        self._received, self._sent, self._received_at, self._attempts = received, sent, now, 0
