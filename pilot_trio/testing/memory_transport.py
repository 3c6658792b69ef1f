"""The IPC socket without a socket: a `TransportListener` that clients reach by a method call."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from pilot_trio.net.transport import Transport, TransportListener
from pilot_trio.testing.pipe import PIPE_CAPACITY, MemoryStream, MemoryTransport, memory_transport_pair

BACKLOG: Final = 1024  # clients that wait to be accepted; the daemon's socket has the same, `spec/ipc.md` §1
_ACCEPT_MAX: Final = 64  # clients handed over per call, so that a crowd does not keep the server from serving


class MemoryTransportListener(TransportListener):
    """Where in-memory IPC clients arrive. The server side calls `accept_some`, the client side one of the `open_` methods.

    `capacity` is the size of the buffer in each direction: fill it by not reading, and the server is in the position of a
    daemon whose client has stalled.
    """

    def __init__(self, capacity: int = PIPE_CAPACITY) -> None:
        self._capacity = capacity
        self._waiting: deque[MemoryTransport] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = False

    async def open_transport(self) -> MemoryTransport:
        """Connect; wait while the backlog is full.

        Raises:
          ConnectionRefusedError: nobody listens any more.
        """
        await trio.lowlevel.checkpoint()
        while not self._closed and len(self._waiting) >= BACKLOG:
            await self._changed.park()
        if self._closed:
            raise ConnectionRefusedError("the in-memory listener is closed")
        client, server = memory_transport_pair(self._capacity)
        self._waiting.append(server)
        self._changed.unpark_all()
        return client

    async def open_stream(self) -> MemoryStream:
        """Connect as `open_transport` does, and return a Trio stream."""
        return MemoryStream(await self.open_transport())

    async def accept_some(self) -> list[Transport]:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._waiting:
                break
            await self._changed.park()
        accepted: list[Transport] = [self._waiting.popleft() for _ in range(min(len(self._waiting), _ACCEPT_MAX))]
        self._changed.unpark_all()
        return accepted

    def close(self) -> None:
        self._closed = True
        while self._waiting:
            self._waiting.popleft().close()
        self._changed.unpark_all()
