"""Keepalive: when a quiet peer is probed, when it counts as dead, and which probes of its own are answered (§3.5).

The reference answers no probe, so that one which lives and one which is gone sound alike to whoever probes. It does probe, but
only where it heard nothing: our probe, if it came first, would keep it silent, and we would close a stream whose both ends
live. So it gets `KEEPALIVE_PATIENCE` to say the first word; what it says is a sign of life, and our answer one to it.
"""

from __future__ import annotations

from enum import Enum
from math import inf

from pilot_trio.proto.stream.settings import (
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PATIENCE,
    KEEPALIVE_PROBES,
    PROBE_ANSWER_GAP,
    StreamSettings,
)


class Verdict(Enum):
    """What a look at the clock has found."""

    ALIVE = "alive"
    PROBE = "probe"  # send an empty acknowledgment
    IDLE = "idle"  # close: nothing happened for too long
    DEAD = "dead"  # close: probes went unanswered


class Liveness:
    """`check_at` is its deadline; `inf` until armed and after it was stopped."""

    __slots__ = ("_answered_at", "_probe_after", "_probes", "_settings", "active_at", "check_at", "heard_at")

    def __init__(self, settings: StreamSettings, now: float) -> None:
        self._settings = settings
        self._probe_after = settings.keepalive + KEEPALIVE_PATIENCE  # seconds of quiet
        self.heard_at = now  # last packet from the peer
        self.check_at = inf
        self.active_at = now  # last packet from the peer, or data to it; whoever sends data moves it
        self._answered_at = -inf
        self._probes = 0  # sent since anything was heard

    def start(self, now: float) -> None:
        """Arm the clock: the stream is established."""
        self.heard_at = self.active_at = now
        self.check_at = now + min(self._probe_after, self._settings.idle_timeout)

    def on_heard(self, now: float) -> float:
        """Note a packet from the peer.

        Returns:
          How long nothing was heard before it, 0 if a probe was out: whatever arrives then is its answer, not a question.
        """
        quiet = 0.0 if self._probes else now - self.heard_at
        self.heard_at = self.active_at = now
        self._probes = 0
        return quiet

    def may_answer(self, quiet: float, now: float) -> bool:
        """Say whether an empty acknowledgment after `quiet` seconds may be answered, so that answers never answer answers."""
        return quiet >= PROBE_ANSWER_GAP and now - self._answered_at >= PROBE_ANSWER_GAP

    def on_answered(self, now: float) -> None:
        """Note an answer to a probe."""
        self._answered_at = now

    def check(self, now: float) -> Verdict:
        """Look at the clock and re-arm it."""
        # Compared as sums, as the deadlines are made: a difference may round the other way and never come due.
        settings = self._settings
        if now >= self.active_at + settings.idle_timeout:
            return Verdict.IDLE
        if now < self.active_at + self._probe_after:
            self.check_at = self.active_at + min(self._probe_after, settings.idle_timeout)
            return Verdict.ALIVE
        if self._probes >= KEEPALIVE_PROBES:
            return Verdict.DEAD
        self._probes += 1
        self.check_at = now + KEEPALIVE_INTERVAL
        return Verdict.PROBE
