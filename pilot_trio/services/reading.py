"""Read exact amounts from a Trio stream, for the services whose frames announce their length."""

from __future__ import annotations

from typing import Final

import trio

CHUNK: Final = 64 << 10  # bytes asked for at a time; also how much a mere announcement can make us hold


class ExactReader:
    """A buffer in front of a stream. For one task."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def exactly(self, size: int, *, stall_timeout: float) -> bytes | None:
        """Return exactly `size` bytes, or None if the stream ends first.

        Memory grows with what arrives, not with `size`.

        Raises:
          trio.TooSlowError: nothing arrived for `stall_timeout` seconds.
          trio.BrokenResourceError, trio.ClosedResourceError: as the stream does.
        """
        while len(self._buffer) < size:
            with trio.fail_after(stall_timeout):
                data = await self._stream.receive_some(CHUNK)
            if not data:
                return None
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken
