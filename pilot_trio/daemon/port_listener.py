"""A bound port, and the connections that wait on it for whoever has bound it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

import trio

from pilot_trio.address import Port
from pilot_trio.daemon.connection import Connection, ConnState

ACCEPT_BACKLOG_MAX: Final = 64  # connections that wait for `accept`, per port; protocol, `spec/ipc.md` §8


class PortListener:
    """A bound port and the connections that wait on it. Made by `StreamTable.bind`."""

    def __init__(self, port: Port, owner: Hashable, on_close: Callable[[PortListener], None]) -> None:
        self.port: Final = port
        self.owner: Final = owner
        self.coming = 0  # connections that were accepted, and will be delivered before anything else happens
        self._on_close = on_close
        self._backlog: deque[Connection] = deque()
        self._consumer: Callable[[], None] | None = None
        self._acceptors = trio.lowlevel.ParkingLot()
        self._closed = False

    def accept_nowait(self) -> Connection:
        """Return the next connection.

        Raises:
          trio.WouldBlock: none is waiting.
          trio.ClosedResourceError: the port was unbound.
        """
        if self._closed:
            raise trio.ClosedResourceError(f"port {self.port} was unbound")
        while self._backlog:
            connection = self._backlog.popleft()
            if connection.state is not ConnState.CLOSED:  # reset before anybody saw it
                return connection
        raise trio.WouldBlock

    async def accept(self) -> Connection:
        """Return the next connection, waiting for one; not a checkpoint if one is waiting. Raises as `accept_nowait`."""
        while True:
            try:
                return self.accept_nowait()
            except trio.WouldBlock:
                await self._acceptors.park()

    def attach(self, consumer: Callable[[], None]) -> None:
        """Call `consumer` whenever a connection arrives, in place of waking a task in `accept`; it must not wait."""
        self._consumer = consumer

    def close(self) -> None:
        """Unbind the port. Accepted connections live on; those that still wait are reset. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        for connection in self._backlog:
            if not connection.state.ended:
                connection.reset()
        self._backlog.clear()
        self._consumer = None
        self._acceptors.unpark_all()

    @property
    def full(self) -> bool:
        """Whether another connection would exceed the backlog."""
        return len(self._backlog) + self.coming >= ACCEPT_BACKLOG_MAX

    def deliver(self, connection: Connection) -> None:
        """Put a new connection in the queue; the caller has asked `full`."""
        if self._closed:
            connection.reset()
            return
        self._backlog.append(connection)
        if self._consumer is not None:
            self._consumer()
        else:
            self._acceptors.unpark()
