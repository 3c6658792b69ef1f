"""Bytes that were written and are not cut into segments yet (`spec/transport.md` §4.5, §6)."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final, final

from pilot_trio.proto.stream.send_queue import Run
from pilot_trio.proto.stream.settings import NAGLE_DELAY, SEGMENT
from pilot_trio.wire.sack import MAGIC, looks_like_sack

CHUNK: Final = 64 * 1024  # bytes that small writes are gathered into; a larger write is a chunk of its own

_MAGIC_FIRST = MAGIC[0]


class Outgoing:
    """A buffer with Nagle's algorithm. `size` is its bytes, `nagle_at` the deadline of a short tail that waits for more."""

    __slots__ = ("_chunks", "_pushed", "_start", "nagle_at", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray] = deque()  # bytes as long as nothing is added to them
        self._start = 0  # of what is not cut yet in the first chunk
        self.size = 0
        self._pushed = 0  # bytes that Nagle's algorithm must not hold back
        self.nagle_at = inf

    def append(self, data: bytes | memoryview, *, push: bool) -> None:
        """Add bytes; `push` if their tail must not wait for more."""
        chunks = self._chunks
        if chunks and len(chunks[-1]) + len(data) <= CHUNK:
            last = chunks[-1]
            if isinstance(last, bytes):
                last = chunks[-1] = bytearray(last)
            last += data
        else:
            chunks.append(bytes(data))
        self.size += len(data)
        if push:
            self._pushed = self.size

    def push(self) -> None:
        """Let nothing wait for more: there will not be more, or it has waited for long enough."""
        self._pushed = self.size
        self.nagle_at = inf

    def clear(self) -> None:
        """Forget what was written."""
        self._chunks.clear()
        self._start = self.size = self._pushed = 0
        self.nagle_at = inf

    def cut(self, position: int, segments: int, now: float, *, holds_short: bool, segment: int = SEGMENT) -> Run | None:
        """Cut at most so many segments of `segment` bytes, which start at `position`; None if nothing may leave now.

        A short tail had better wait while an earlier short segment is on its way, whose answer will release it. Short is
        what has less than `SEGMENT` bytes, so that larger segments hold nothing back that those would not.
        """
        full = min(self.size // segment, segments)
        size = full * segment
        tail, short = self.size - size, False
        if full < segments and tail:
            if tail >= SEGMENT:
                size += tail
            elif not holds_short or not self._waits(tail, size, now):
                size, short = size + tail, True
        if not size:
            return None
        data = self._peek(size)
        if _MAGIC_FIRST in data[::segment]:
            data, short = _without_lookalike(data, segment, short)
        if len(data) == self.size and len(self._chunks) == 1:
            self.clear()
        else:
            self._drop(len(data))
        return Run(position, data, segment=segment, short=short)

    def _waits(self, tail: int, before: int, now: float) -> bool:
        if tail <= self._pushed - before:
            return False
        if self.nagle_at == inf:
            self.nagle_at = now + NAGLE_DELAY
        return self.nagle_at > now

    def _peek(self, size: int) -> bytes:
        """Return the first bytes."""
        first = self._chunks[0]
        if not self._start and len(first) == size and isinstance(first, bytes):
            return first  # one write, one run: all of most conversations
        start, parts = self._start, []
        for chunk in self._chunks:
            part = bytes(memoryview(chunk)[start : start + size])
            parts.append(part)
            size -= len(part)
            start = 0
            if not size:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _drop(self, size: int) -> None:
        """Take the first bytes out."""
        self.size -= size
        self._pushed = max(0, self._pushed - size)
        self.nagle_at = inf
        start, chunks = self._start + size, self._chunks
        while chunks and start >= len(chunks[0]):
            start -= len(chunks.popleft())
        self._start = start


@final
class NothingWritten(Outgoing):
    """What streams have before they are written to, and after their end: one for all, so nothing may come into it."""

    __slots__ = ()

    def append(self, data: bytes | memoryview, *, push: bool) -> None:
        raise AssertionError(f"{len(data)} bytes were written to what all streams share")


def _without_lookalike(data: bytes, segment: int, short: bool) -> tuple[bytes, bool]:
    """Return as much of a run as peers would not swallow; of such a segment, "S" alone is safe, and so is the rest."""
    for at in range(0, len(data), segment):
        if looks_like_sack(data[at : at + segment]):
            return (data[:at] if at else data[:1]), False
    return data, short
