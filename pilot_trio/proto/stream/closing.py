"""The end of a stream: when the FIN leaves, and how often it is repeated (`spec/transport.md` §3.6, §3.7)."""

from __future__ import annotations

from math import inf

from pilot_trio.proto.stream.settings import FIN_HOLD, FIN_INTERVAL_MAX, FIN_LINGER, FIN_RETRIES, LINGER_BLOCKED_MAX


class Closing:
    """Our FIN and the peer's. The `_at` attributes are deadlines; `inf` is off."""

    __slots__ = (
        "_interval",
        "_progress_at",
        "_transmissions",
        "expire_at",
        "fin_is_out",
        "hold_at",
        "linger_at",
        "next_deadline",
        "peer_fin",
        "repeat_at",
    )

    def __init__(self) -> None:
        self.linger_at = inf  # our FIN leaves, whatever is unacknowledged before it
        self.repeat_at = inf  # our FIN leaves again
        self.hold_at = inf  # what is missing before the peer's FIN is given up
        self.expire_at = inf  # all is over
        self.next_deadline = inf  # the earliest of these four
        self.peer_fin: int | None = None  # sequence number of the peer's FIN, while it waits for data that it overtook
        self.fin_is_out = False  # our FIN has left
        self._interval = 0.0
        self._transmissions = 0
        self._progress_at = 0.0

    def _note(self) -> None:
        """Follow a deadline that has changed."""
        self.next_deadline = min(self.linger_at, self.repeat_at, self.hold_at, self.expire_at)

    # --- our FIN -----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The user has closed; the FIN waits for what was written."""
        self.hold_at = inf
        self._progress_at = now
        self.linger_at = self.next_deadline = now + FIN_LINGER

    def on_progress(self, now: float, time_wait: float) -> None:
        """The peer takes what was written: the FIN, or the end, can wait."""
        self._progress_at = now
        if self.linger_at < inf:
            self.linger_at = now + FIN_LINGER
        if self.expire_at < inf:
            self.expire_at = now + time_wait
        self._note()

    def wait_for_reader(self, heard_at: float, now: float) -> bool:
        """Say whether to wait on: the peer answers, and has no room for what was written."""
        waits = now < heard_at + 2 * FIN_LINGER and now < self._progress_at + LINGER_BLOCKED_MAX
        if waits:
            self.linger_at = now + FIN_LINGER
            self._note()
        return waits

    def wait_for_data(self, heard_at: float, now: float, time_wait: float) -> bool:
        """Say whether to wait on with the end: what was written is not all there, and the peer still answers."""
        waits = now < heard_at + time_wait and now < self._progress_at + LINGER_BLOCKED_MAX
        if waits:
            self.expire_at = now + time_wait
            self._note()
        return waits

    def on_fin_sent(self, now: float, rto: float, time_wait: float) -> None:
        """Note our FIN leaving for the first time."""
        self.linger_at = inf
        self.fin_is_out = True
        self._transmissions = 1
        self._interval = rto
        self.repeat_at = now + rto
        self.expire_at = now + time_wait
        self._note()

    def repeat(self, now: float) -> bool:
        """Say whether our FIN leaves again. After a few times the peer has gone, or has answered and forgotten."""
        again = self._transmissions <= FIN_RETRIES
        if again:
            self._transmissions += 1
            self._interval = min(FIN_INTERVAL_MAX, self._interval * 2)
        self.repeat_at = now + self._interval if again else inf
        self._note()
        return again

    # --- the peer's --------------------------------------------------------------------------------------------------

    def hold(self, seq: int, now: float) -> None:
        """Keep the peer's FIN until what it overtook is there; the first one counts. Each sign of the peer restarts the wait."""
        if self.peer_fin is None:
            self.peer_fin = seq
        self.hold_at = now + FIN_HOLD
        self._note()

    def expire(self, at: float) -> None:
        """Stop everything but the end."""
        self.linger_at = self.repeat_at = self.hold_at = inf
        self.peer_fin = None
        self.expire_at = self.next_deadline = at
