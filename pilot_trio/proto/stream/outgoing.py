"""Bytes that were written and are not cut into segments yet (`spec/transport.md` §4.5, §6)."""

from __future__ import annotations

from math import inf

from pilot_trio.proto.stream.send_queue import Segment
from pilot_trio.proto.stream.settings import NAGLE_DELAY, SEGMENT
from pilot_trio.wire.sack import looks_like_sack

_COMPACT = 64 * SEGMENT  # bytes cut before the buffer is moved up; moving costs as much as what is left


class Outgoing:
    """A buffer with Nagle's algorithm. `nagle_at` is the deadline of a short tail that waits for more."""

    __slots__ = ("_data", "_pushed", "_start", "nagle_at")

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0  # of what is not cut yet; moving it is cheaper than cutting the buffer
        self._pushed = 0  # bytes that Nagle's algorithm must not hold back
        self.nagle_at = inf

    def __len__(self) -> int:
        return len(self._data) - self._start

    def append(self, data: bytes | memoryview, *, push: bool) -> None:
        """Add bytes; `push` if their tail must not wait for more."""
        self._data += data
        if push:
            self._pushed = len(self)

    def push(self) -> None:
        """Let nothing wait for more: there will not be more."""
        self._pushed = len(self)

    def clear(self) -> None:
        """Forget what was written."""
        self._data.clear()
        self._start = self._pushed = 0
        self.nagle_at = inf

    def waits(self, holds_short: bool, now: float) -> bool:
        """Say whether a short tail had better wait: an earlier short segment is on its way, and its answer will release it."""
        size = len(self)
        if size >= SEGMENT or size <= self._pushed or not holds_short:
            return False
        if self.nagle_at == inf:
            self.nagle_at = now + NAGLE_DELAY
        return self.nagle_at > now

    def cut(self, position: int) -> Segment:
        """Cut the next segment, which starts at `position`; there must be something to cut."""
        self.nagle_at = inf
        size = min(SEGMENT, len(self))
        payload = bytes(memoryview(self._data)[self._start : self._start + size])
        short = size < SEGMENT
        if looks_like_sack(payload):
            payload, short = payload[:1], False  # peers would swallow it; "S" alone is safe, and so is the rest
        self._start += len(payload)
        self._pushed = max(0, self._pushed - len(payload))
        if self._start == len(self._data) or self._start >= _COMPACT:
            del self._data[: self._start]
            self._start = 0
        return Segment(position, payload, short=short)
