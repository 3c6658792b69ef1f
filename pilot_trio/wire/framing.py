"""Length-prefixed frames: four bytes big-endian length, then that many bytes.

The IPC socket (`spec/ipc.md` §2) and the JSON registry protocol (`spec/registry.md` §2.1) both use it; they differ in
the limit alone.
"""

from __future__ import annotations

import struct
from typing import Final

from pilot_trio.errors import DecodeError

LENGTH: Final = struct.Struct("!I")
_read_length: Final = LENGTH.unpack_from
IPC_FRAME_MAX: Final = 1 << 20  # bytes, command byte included; protocol, `spec/ipc.md` §2
REST_MAX: Final = 16 * 1024  # bytes; so small a part of a frame is copied, so that frames are cut out of plain bytes
REGISTRY_FRAME_MAX: Final = 64 << 20  # bytes; protocol, `spec/registry.md` §2.1


class FrameDecoder:
    """Cut a byte stream into frames; how the bytes were chunked makes no difference.

    Feed it with `feed`; take complete bodies with `next_frame` until that returns None. An announced length above
    `limit` raises `DecodeError` as soon as its four bytes are there, after all frames before it were returned.
    Zero-length frames are returned as `b""`; the IPC plane skips them, the registry closes on them.
    """

    __slots__ = ("_buffer", "_limit", "_offset")

    def __init__(self, limit: int) -> None:
        self._buffer: bytes | bytearray = b""
        self._offset = 0  # start of the first frame not yet returned; moving it is cheaper than cutting the buffer
        self._limit = limit

    def __len__(self) -> int:
        """Return the number of bytes held that belong to frames not yet returned."""
        return len(self._buffer) - self._offset

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes as they came from the stream."""
        if not self._buffer:
            # The usual case, nothing left over: small requests are cut out of what was read, without another copy.
            self._buffer = bytes(data)
            return
        rest = len(self)
        if rest <= REST_MAX:
            self._buffer = bytes(memoryview(self._buffer)[self._offset :]) + data
            self._offset = 0
            return
        if self._offset or not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(memoryview(self._buffer)[self._offset :])
            self._offset = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next complete body, or None if more bytes are needed.

        Raises:
          DecodeError: the next frame announces more than `limit` bytes. Final: the stream cannot be resynchronised.
        """
        start = self._offset + 4
        if len(self._buffer) < start:
            return None
        (length,) = LENGTH.unpack_from(self._buffer, self._offset)
        if length > self._limit:
            raise DecodeError(f"frame too large: {length} bytes (limit {self._limit})")
        end = start + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[start:end])
        self._advance(end)
        return body

    def next_frames(self, count: int) -> list[bytes]:
        """Return the next complete bodies, at most `count`; an empty list if more bytes are needed.

        As `next_frame` so many times, in half the time. Raises `DecodeError` as it does, after the bodies before the
        offending frame were returned.
        """
        frames: list[bytes] = []
        buffer, at, limit = self._buffer, self._offset, self._limit
        source = (
            buffer if isinstance(buffer, bytes) else memoryview(buffer)
        )  # a slice of a bytearray would be a copy more
        size = len(buffer)
        while count and (start := at + 4) <= size:
            (length,) = _read_length(buffer, at)
            if length > limit:
                if not frames:
                    raise DecodeError(f"frame too large: {length} bytes (limit {limit})")
                break
            end = start + length
            if end > size:
                break
            frames.append(bytes(source[start:end]))
            at = end
            count -= 1
        self._advance(at)
        return frames

    def _advance(self, offset: int) -> None:
        self._offset = offset
        if offset == len(self._buffer):
            self._buffer = b""  # gives the memory of a large frame back
            self._offset = 0


def encode_frame(body: bytes) -> bytes:
    """Prefix `body` with its length."""
    return LENGTH.pack(len(body)) + body
