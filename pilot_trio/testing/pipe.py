"""Connected byte streams in memory, with buffers as small and as real as a kernel's.

`trio.testing` has memory streams without a bound, and lockstep ones without a buffer. A service that must survive a client
that stops reading can be tested with neither: it needs a buffer that takes some bytes and then no more. Here a connection
is two `Pipe`s, and each end is a `MemoryTransport` (what the IPC server reads and writes) or a `MemoryStream`
(`trio.abc.HalfCloseableStream`). Nothing here touches the operating system, so everything works under virtual time with
an autojump threshold of 0.

As with a Unix socket, closing a stream that holds unread bytes resets the connection: the other end still reads what it was
sent, then gets `trio.BrokenResourceError` where it would have got the end of the stream. A transport, as the daemon's real
one, reads and discards `DISCARD_MAX` bytes first.
"""

from __future__ import annotations

import operator
from typing import Final

import trio

from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.transport import Transport

PIPE_CAPACITY: Final = 65_536  # bytes per direction; small enough to fill quickly, large enough for any single request
DISCARD_MAX: Final = 65_536  # bytes; what the daemon's socket throws away on close, to end properly, and this one too
_CHUNK_MAX: Final = 65_536  # bytes that `receive_some` returns when the caller names no maximum


class Pipe:
    """One direction: a bounded byte buffer between a writing and a reading end."""

    def __init__(self, capacity: int = PIPE_CAPACITY) -> None:
        self._buffer = bytearray()
        self._capacity = capacity
        self._written = False  # the writing end is closed
        self._reset = False  # … and it was closed in a way that the reader must notice
        self._abandoned = False  # the reading end is closed
        self._held = False  # the network between the ends is down
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """Return how many bytes are in flight."""
        return len(self._buffer)

    @property
    def abandoned(self) -> bool:
        """True once the reading end is closed."""
        return self._abandoned

    @property
    def ended(self) -> bool:
        """True once the writing end is closed, or will write no more."""
        return self._written

    def put_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for; return how many bytes that were."""
        if self._abandoned and not self._held:
            raise trio.BrokenResourceError("the other end is closed")
        taken = min(len(data), self._capacity - len(self._buffer))
        self._buffer += data[:taken]
        if taken:
            self._readable.unpark_all()
        return taken

    def get_nowait(self, max_bytes: int) -> bytes | None:
        """Return up to `max_bytes` bytes, `b""` at the end, None if nothing has come yet."""
        if self._held:
            return None
        if self._buffer:
            data = bytes(self._buffer[:max_bytes])
            del self._buffer[:max_bytes]
            self._writable.unpark_all()
            return data
        if self._reset:
            raise trio.BrokenResourceError("connection reset by the other end")
        return b"" if self._written else None

    @property
    def readable(self) -> bool:
        """True when `get_nowait` has something to say: bytes, or an end."""
        return not self._held and (len(self._buffer) > 0 or self._written)

    async def wait_readable(self) -> None:
        """Wait until something changes for the reader."""
        await self._readable.park()

    async def wait_writable(self) -> None:
        """Wait until something changes for the writer."""
        await self._writable.park()

    @property
    def full(self) -> bool:
        """True while nothing more fits and the reader is still there."""
        return len(self._buffer) >= self._capacity and not self._abandoned

    def end(self, *, reset: bool = False) -> None:
        """Close the writing end."""
        self._written = True
        self._reset = self._reset or reset
        self.wake()

    def abandon(self) -> None:
        """Close the reading end; what it had not read is lost."""
        self._abandoned = True
        self._buffer.clear()
        self.wake()

    def hold(self, *, held: bool) -> None:
        """Let nothing through, or all that waits: neither end learns meanwhile what the other one does."""
        self._held = held
        self.wake()

    def wake(self) -> None:
        """Let both sides look again."""
        self._readable.unpark_all()
        self._writable.unpark_all()


class MemoryTransport(Transport):
    """One end of an in-memory connection, as the IPC server sees a client. Make a pair with `memory_transport_pair`."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once this end was closed."""
        return self._closed

    @property
    def readable(self) -> bool:
        """Whether `receive_some` would return or raise at once."""
        return self._closed or self._incoming.readable

    @property
    def unsent(self) -> int:
        """Bytes written here that the other end has not read."""
        return len(self._outgoing)

    @property
    def drained(self) -> bool:
        return not len(self._incoming)

    async def receive_some(self, max_bytes: int) -> bytes:
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            data = self._incoming.get_nowait(max_bytes)
            if data is not None:
                return data
            await self._incoming.wait_readable()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self._closed:
            raise trio.ClosedResourceError
        return self._outgoing.put_nowait(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while True:
            rest = rest[self.send_nowait(rest) :]
            if not rest:
                return
            await self._outgoing.wait_writable()

    async def wait_writable(self) -> None:
        """Wait until something can be sent, or until sending fails."""
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if not self._outgoing.full:
                return
            await self._outgoing.wait_writable()

    def send_eof(self) -> None:
        """Shut down the writing direction only."""
        if self._closed:
            raise trio.ClosedResourceError
        self._outgoing.end()

    def hung_up(self) -> bool:
        return self._incoming.ended and self._outgoing.abandoned

    def close(self) -> None:
        self.close_over(DISCARD_MAX)

    def close_over(self, discarded: int) -> None:
        """Close; if more than `discarded` bytes are unread, the other end is told by a reset."""
        if self._closed:
            return
        self._closed = True
        reset = len(self._incoming) > discarded
        self._incoming.abandon()
        self._outgoing.end(reset=reset)

    def hold(self, *, held: bool) -> None:
        """Let nothing through in either direction, as a network does that is down, or let all go on."""
        for pipe in (self._incoming, self._outgoing):
            pipe.hold(held=held)

    def break_connection(self) -> None:
        """Reset the connection under both ends, as a network failure does; what was in flight is lost."""
        for pipe in (self._incoming, self._outgoing):
            pipe.hold(held=False)
            pipe.abandon()
            pipe.end(reset=True)


class MemoryStream(trio.abc.HalfCloseableStream):
    """A `trio.abc.HalfCloseableStream` over a `MemoryTransport`. Make a pair with `memory_stream_pair`.

    `name` is a label for people and logs, for TCP connections the remote endpoint.
    """

    def __init__(self, transport: MemoryTransport, name: str = "") -> None:
        self.transport = transport
        self.name = name
        self.remote_endpoint: Endpoint | None = None
        """Where the other end is, on networks that know."""
        self._sending = False
        self._receiving = False
        self._eof_sent = False

    def __repr__(self) -> str:
        return f"<MemoryStream {self.name} {'closed' if self.transport.closed else 'open'}>"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._claim_sending()
        try:
            await trio.lowlevel.checkpoint()
            if self._eof_sent:
                raise trio.ClosedResourceError("send_eof was called")
            await self.transport.send_all(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        self._claim_sending()
        try:
            await trio.lowlevel.checkpoint()
            await self.transport.wait_writable()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        self._claim_sending()
        try:
            await trio.lowlevel.checkpoint()
            self.transport.send_eof()
            self._eof_sent = True
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        max_bytes = _CHUNK_MAX if max_bytes is None else operator.index(max_bytes)
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            if self.transport.readable:
                await trio.lowlevel.checkpoint()
            return await self.transport.receive_some(max_bytes)  # waits, which is a checkpoint, or has done so
        finally:
            self._receiving = False

    def close(self) -> None:
        """Close at once; what `aclose` does, without the checkpoint."""
        self.transport.close_over(0)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def _claim_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True


def memory_transport_pair(capacity: int = PIPE_CAPACITY) -> tuple[MemoryTransport, MemoryTransport]:
    """Return two connected ends; each direction holds at most `capacity` bytes."""
    there, back = Pipe(capacity), Pipe(capacity)
    return MemoryTransport(back, there), MemoryTransport(there, back)


def memory_stream_pair(capacity: int = PIPE_CAPACITY) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected streams; each direction holds at most `capacity` bytes."""
    left, right = memory_transport_pair(capacity)
    return MemoryStream(left), MemoryStream(right)
