"""The connections of one driver: which there are, and which one carries a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from pilot_trio.driver.link import Link
from pilot_trio.net.transport import Transport
from pilot_trio.wire.ipc import Accepted, Code, ReceivedDatagram

REQUESTS_MAX: Final = 64  # ordinary requests at once; each may need a connection, of which the daemon has 1,024
IDLE_LINKS_MAX: Final = 2  # extra connections kept for the next request; opening one costs less than a millisecond

Connect = Callable[[], Awaitable[Transport]]


@final
class Links:
    """Connections to one daemon.

    The *main* one is there from the start. *Extra* ones are opened for ordinary requests while the main one waits for the
    answer to another; `IDLE_LINKS_MAX` of them stay open for reuse. Streams and listeners get one each, by `open`.

    Args:
      nursery: where their tasks run.
      connect_with: opens further connections.
      transport: the first one.
      on_datagram, on_close: see `Link`; for the main connection.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        connect_with: Connect,
        transport: Transport,
        *,
        on_datagram: Callable[[ReceivedDatagram], None],
        on_close: Callable[[Exception], None],
    ) -> None:
        self._nursery = nursery
        self._connect = connect_with
        self._open: set[Link] = set()
        self._idle: list[Link] = []
        self._requests = trio.CapacityLimiter(REQUESTS_MAX)
        self.opened = 0
        """How many were opened so far."""
        self.main: Final = self._start(Link(transport, on_datagram=on_datagram, on_close=on_close))

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    @property
    def requests(self) -> int:
        """Ordinary requests under way."""
        return self._requests.borrowed_tokens

    @property
    def owed(self) -> int:
        """Answers of cancelled requests still to come."""
        return sum(link.owed for link in self._open)

    @property
    def streams(self) -> int:
        """Streams on all of them."""
        return sum(link.streams for link in self._open)

    @property
    def unread(self) -> int:
        """Bytes received and not read, over all streams."""
        return sum(link.unread for link in self._open)

    async def request(self, command: Code, payload: bytes = b"") -> bytes:
        """Make an ordinary request where no other one is in its way; raises as `Link.request`."""
        async with self._requests:
            self.main.check()
            link = self._free(command) or await self.open()
            try:
                return await link.request(command, payload)
            finally:
                self._give_back(link, command)

    async def open(
        self,
        *,
        on_accept: Callable[[Accepted], None] | None = None,
        on_close: Callable[[Exception], None] | None = None,
    ) -> Link:
        """Open another connection; raises `DaemonUnavailable` if that fails."""
        return self._start(Link(await self._connect(), on_accept=on_accept, on_close=on_close))

    def close(self) -> None:
        """Close all of them at once; the daemon closes what belongs to them."""
        for link in list(self._open):
            link.close()

    def _start(self, link: Link) -> Link:
        self._open.add(link)
        self.opened += 1
        self._nursery.start_soon(self._run, link)
        return link

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._open.discard(link)
            if link in self._idle:
                self._idle.remove(link)

    def _free(self, command: Code) -> Link | None:
        if self.main.is_free(command):
            return self.main
        return self._idle.pop() if self._idle else None

    def _give_back(self, link: Link, command: Code) -> None:
        if link is self.main:
            return  # an answer still owed keeps it busy for ordinary requests until that answer has come
        if link.is_free(command) and len(self._idle) < IDLE_LINKS_MAX:
            self._idle.append(link)
        else:
            link.close()
