"""A Unix socket pair in memory: bounded, virtual in time, and as unfriendly as the kernel is."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from pilot_trio.net.transport import Transport, TransportListener

KERNEL_BUFFER = 64 * 1024  # bytes that one direction holds unread


class Pipe:
    """One direction: a bounded buffer of bytes."""

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray()
        self.capacity = capacity
        self.ended = False  # the writer shut its side down
        self.broken = False  # the reader is gone
        self._changed = trio.Event()

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> None:
        await self._changed.wait()

    def put(self, data: bytes | bytearray | memoryview) -> int:
        if self.broken:
            raise trio.BrokenResourceError("peer is gone")
        taken = min(len(data), self.capacity - len(self.buffer))
        if taken:
            self.buffer += data[:taken]
            self.changed()
        return taken

    def take(self, max_bytes: int) -> bytes:
        data = bytes(self.buffer[:max_bytes])
        del self.buffer[:max_bytes]
        if data:
            self.changed()
        return data


class MemoryTransport(Transport):
    """The server's end."""

    def __init__(self, capacity: int = KERNEL_BUFFER, chunk: int | None = None) -> None:
        self.inbound = Pipe(1 << 30)
        self.outbound = Pipe(capacity)
        self.closed = False
        self.peer_closed = False
        self.sends: list[int] = []  # sizes that `send_nowait` took, with zeros
        self._chunk = chunk

    async def receive_some(self, max_bytes: int) -> bytes:
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if data := self.inbound.take(min(max_bytes, self._chunk or max_bytes)):
                return data
            if self.inbound.ended:
                return b""
            await self.inbound.wait()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self.closed:
            raise trio.ClosedResourceError
        sent = self.outbound.put(data)
        self.sends.append(sent)
        return sent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view := view[self.send_nowait(view) :]:
            await self.outbound.wait()

    def hung_up(self) -> bool:
        return self.closed or self.peer_closed

    def close(self) -> None:
        self.closed = True
        self.outbound.ended = True
        self.outbound.changed()
        self.inbound.broken = True
        self.inbound.changed()


class MemoryClient:
    """The client's end: writes what it likes, reads when it likes."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def write(self, data: bytes) -> None:
        self.transport.inbound.put(data)

    def shut_down_write(self) -> None:
        self.transport.inbound.ended = True
        self.transport.inbound.changed()

    def close(self) -> None:
        self.transport.peer_closed = True
        self.transport.outbound.broken = True
        self.transport.outbound.changed()
        self.shut_down_write()

    async def read(self, max_bytes: int) -> bytes:
        """Return some bytes, b"" at the end."""
        pipe = self.transport.outbound
        while True:
            if data := pipe.take(max_bytes):
                return data
            if pipe.ended:
                return b""
            await pipe.wait()

    async def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.read(size - len(data))
            if not more:
                raise EOFError(f"connection ended after {len(data)} of {size} bytes")
            data += more
        return data

    async def read_frame(self) -> bytes:
        """Return one frame without its length."""
        length = int.from_bytes(await self.read_exactly(4), "big")
        return await self.read_exactly(length)

    async def read_to_end(self) -> list[bytes]:
        """Return every frame up to the end of the stream; the last may not be torn."""
        data = b""
        while more := await self.read(1 << 20):
            data += more
        return split_frames(data)

    async def drain_at(self, bytes_per_second: float, step: float = 0.1) -> None:
        """Read at a steady rate until the end, in steps of `step` seconds."""
        owed = 0.0
        while not (self.transport.outbound.ended and not self.transport.outbound.buffer):
            owed += bytes_per_second * step
            self.transport.outbound.take(math.floor(owed))
            owed -= math.floor(owed)
            await trio.sleep(step)


class MemoryListener(TransportListener):
    """Hands out the transports that tests connect."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Transport](2048)
        self.closed = False

    def connect(self, transport: MemoryTransport | None = None) -> MemoryClient:
        transport = transport or MemoryTransport()
        self._send.send_nowait(transport)
        return MemoryClient(transport)

    async def accept_some(self) -> list[Transport]:
        return [await self._receive.receive()]

    def close(self) -> None:
        self.closed = True


def split_frames(data: bytes) -> list[bytes]:
    """Cut a byte stream that must consist of whole frames."""
    frames = []
    while data:
        length = int.from_bytes(data[:4], "big")
        assert len(data) >= 4 + length, "torn frame at the end"
        frames.append(data[4 : 4 + length])
        data = data[4 + length :]
    return frames


async def settled(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("never settled")
