"""A client that speaks frames on a memory transport and does what no decent client does: stop reading, vanish, flood."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from pilot_trio.testing.memory_transport import MemoryTransportListener
from pilot_trio.testing.pipe import MemoryTransport


class RawClient:
    """The client's end. It writes and reads only when it is told to."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    @classmethod
    async def connect(cls, listener: MemoryTransportListener) -> RawClient:
        return cls(await listener.open_transport())

    def write(self, data: bytes) -> None:
        """Write what must fit into the socket at once."""
        taken = self.transport.send_nowait(data)
        assert taken == len(data), "the socket is full; use `write_all`"

    async def write_all(self, data: bytes) -> None:
        await self.transport.send_all(data)

    async def flood(self, frame: bytes) -> None:
        """Write the same frame for ever, as fast as the server takes it; ends when either side closes."""
        data = frame * (16_384 // len(frame))
        try:
            while True:
                await self.transport.send_all(data)
                await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def shut_down_write(self) -> None:
        self.transport.send_eof()

    def close(self) -> None:
        self.transport.close()

    async def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.transport.receive_some(size - len(data))
            if not more:
                raise EOFError(f"connection ended after {len(data)} of {size} bytes")
            data += more
        return data

    async def read_frame(self) -> bytes:
        """Return one frame without its length."""
        length = int.from_bytes(await self.read_exactly(4), "big")
        return await self.read_exactly(length)

    async def read_frames(self, count: int) -> list[bytes]:
        return [await self.read_frame() for _ in range(count)]

    async def read_to_end(self) -> list[bytes]:
        """Return every frame up to the end of the stream, which must not tear one."""
        return split_frames(await self.read_bytes_to_end())

    async def read_bytes_to_end(self) -> bytes:
        data = b""
        try:
            while more := await self.transport.receive_some(1 << 20):
                data += more
        except trio.BrokenResourceError:
            pass  # the server closed with our flood unread; what it sent before was read
        return data

    async def ask(self, frame: bytes) -> bytes:
        self.write(frame)
        return await self.read_frame()

    async def drain_at(self, bytes_per_second: float, step: float = 0.1) -> int:
        """Read at a steady rate until the server closes; return how many bytes that were."""
        total, owed = 0, 0.0
        try:
            while True:
                owed += bytes_per_second * step
                while owed >= 1:
                    data = await self.transport.receive_some(math.floor(owed))
                    if not data:
                        return total
                    owed -= len(data)
                    total += len(data)
                await trio.sleep(step)
        except trio.BrokenResourceError:
            return total


def split_frames(data: bytes) -> list[bytes]:
    """Cut a byte stream that must consist of whole frames."""
    frames = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        assert end <= len(data), "torn frame at the end"
        frames.append(data[at + 4 : end])
        at = end
    return frames


async def settled(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("never settled")
