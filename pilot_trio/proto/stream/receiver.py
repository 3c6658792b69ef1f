"""The receiving half: what was received, and when to say so (`spec/transport.md` §4.1 to §4.3, §9.3)."""

from __future__ import annotations

from math import inf
from typing import Any, Final, final

from pilot_trio.proto.stream.reassembly import NothingReceived, Reassembly
from pilot_trio.proto.stream.settings import (
    ACK_DELAY,
    ANSWER_SEGMENTS,
    QUICK_ACKS,
    RECEIVE_SLOTS,
    SEGMENT,
    SYN_TIMEOUT,
    WINDOW_UPDATE_BELOW,
)

SEGMENTS_PER_ACK: Final = 2  # in order; protocol, §4.2
STEP: Final = 3 * SEGMENT  # bytes; as many whole segments as an acknowledgment may count for, §5.1


class Receiver:
    """Counts the acknowledgments that are owed. `ack_at` is the deadline of a delayed one."""

    __slots__ = (
        "_heard_at",
        "_most",
        "_quick_acks",
        "_unacknowledged",
        "ack_at",
        "advertised",
        "data",
        "is_open",
        "owed",
    )

    def __init__(self, data: Reassembly) -> None:
        self.data = data
        self.is_open = True  # someone may still read what arrives
        self.owed = 0  # acknowledgments; more than one where the sender counts duplicates
        self.ack_at = inf
        self.advertised = RECEIVE_SLOTS  # the window that the peer was told last
        self._unacknowledged = 0  # segments received since the last acknowledgment
        self._heard_at = -inf  # when data arrived in order last, since data of ours left
        self._most = SEGMENTS_PER_ACK  # as many segments are acknowledged at once
        self._quick_acks = QUICK_ACKS

    def on_segment(self, seq: int, payload: bytes, now: float) -> bool:
        """Take a segment with data; return True if bytes became readable. Something is owed for each (§4.2)."""
        data = self.data
        had_gap = data.has_gap
        readable = data.receive(seq, payload)
        if had_gap or not readable:
            # Early, late, or filling a gap: a reference sender counts these answers, so each gets its own.
            self.owed += 1
            return readable
        self.on_run(1, now)
        return readable

    def on_run(self, segments: int, now: float) -> None:
        """Note segments that arrived in order."""
        self._heard_at = now
        self._unacknowledged += segments
        if self._unacknowledged >= self._most:
            self.owe()
        elif self._quick_acks:
            self._quick_acks -= 1
            self.owe()
        elif self.ack_at > now + ACK_DELAY:
            self.ack_at = now + ACK_DELAY

    def owe(self) -> None:
        """Owe an acknowledgment, if none is owed yet."""
        self.owed = self.owed or 1

    def owe_some_day(self, now: float) -> None:
        """Owe an acknowledgment that nobody waits for: it may travel with whatever comes next."""
        self.ack_at = now + SYN_TIMEOUT  # when there is a timer anyway

    def steps(self) -> list[int]:
        """Return the positions on the way to what is to be acknowledged that a reference sender wants to hear of.

        It grows its window by acknowledgments, each for `STEP` bytes at most (§5.1): one for a whole batch holds it down.
        They are ends of segments, as it knows no others.
        """
        steps: list[int] = []
        boundaries = self.data.boundaries
        if boundaries:
            next_after, last = boundaries[0] + STEP - SEGMENT, boundaries[-1]
            for position in boundaries:
                if position >= next_after and position < last:
                    steps.append(position)
                    next_after = position + STEP
        return steps

    def settle(self) -> None:
        """Note that everything owed has been said."""
        self.owed = self._unacknowledged = 0
        if self.data.boundaries:
            self.data.boundaries.clear()
        self.ack_at = inf

    def settle_with_data(self, now: float, *, own_kind: bool) -> None:
        """Note that data of ours has said it.

        If it follows theirs within the time for which an acknowledgment may wait, it carries one, or would have: this is a
        conversation, and the next question will carry the next. A sender of our own kind has no use for an acknowledgment
        of every other segment of a short answer, either.
        """
        if now < self._heard_at + ACK_DELAY:
            self._quick_acks = 0
            self._most = ANSWER_SEGMENTS if own_kind else SEGMENTS_PER_ACK
        self._heard_at = -inf
        self.settle()

    def on_ack_delay_over(self) -> None:
        """The stream paused; whoever talks next wants quick answers."""
        self.ack_at = inf
        self._quick_acks = QUICK_ACKS
        self._most = SEGMENTS_PER_ACK
        self.owe()

    def on_read(self) -> None:
        """Owe an acknowledgment if the peer was told that there is hardly room, and now that bytes were read there is."""
        if self.is_open and self.advertised < WINDOW_UPDATE_BELOW:
            grown = self.data.window - self.advertised
            if grown >= RECEIVE_SLOTS // 4 or not self.data.queued_bytes:
                self.owe()

    def window_field(self) -> int:
        """Return the window to advertise in the packet that is being made."""
        data = self.data
        self.advertised = data.window if data.queued_bytes else RECEIVE_SLOTS
        return self.advertised

    def has_better_news(self) -> bool:
        """Say whether the peer believes that there is hardly room while there is more (§9.3)."""
        if self.advertised >= WINDOW_UPDATE_BELOW:
            return False
        return self.advertised == 0 or self.data.window > self.advertised

    def close(self) -> None:
        """Discard what is there and what comes: nobody will read it."""
        self.is_open = False
        if self.data.queued_bytes or self.data.has_gap:
            self.data.discard()

    def row(self) -> dict[str, Any]:
        """Return this half's part of the connection list's row; clients are told the window in units of 4096."""
        return {"ooo_buf": self.data.early_count, "recv_win": self.data.window * 4096}


@final
class Spent(Receiver):
    """What streams have whose end was reached and whose bytes were read: one for all, so nothing may be owed for any."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(NothingReceived())
        self.is_open = False

    def owe(self) -> None:
        raise AssertionError("an acknowledgment is owed on a stream that has ended")
