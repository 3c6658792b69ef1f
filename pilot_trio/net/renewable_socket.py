"""A UDP socket that can be exchanged for a fresh one under those who use it.

Whatever is wrong with a socket, with the interface that it is bound to or with what routers on the way remember of it: a
fresh one has a port, or at least a past, of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from pilot_trio.net.network import Addr, DatagramSocket, Endpoint
from pilot_trio.net.udp import UDPStatistics

REOPEN_PAUSE: Final = 1.0  # seconds between attempts to bind again; a port can stay taken for a moment


class RenewableSocket(DatagramSocket):
    """Passes everything on to the socket of the moment.

    Args:
      sock: the first one.
      reopen: binds another one in the same place; raises `OSError`.
      keeps_port: that place names a port, so that the old socket has to go first.
    """

    def __init__(
        self, sock: DatagramSocket, reopen: Callable[[], Awaitable[DatagramSocket]], *, keeps_port: bool
    ) -> None:
        self._reopen = reopen
        self._keeps_port = keeps_port
        self._renewed: trio.Event | None = None  # set when the exchange under way is over
        self._gone = False  # the old socket is closed, and there is no new one yet
        self._successor = trio.lowlevel.ParkingLot()  # who waits for it
        self._closed = False
        self._use(sock)

    def _use(self, sock: DatagramSocket) -> None:
        self._sock = sock
        # The batched calls are the hot path: no frame of ours between caller and socket.
        self.send_batch = sock.send_batch  # type: ignore[method-assign]

    async def renew(self) -> None:
        """Exchange the socket; waits until there is a new one. Who is inside `receive` stays there and does not notice.

        Cancelled, it may leave no socket at all: then datagrams are lost, and who receives waits for the next exchange.
        """
        if self._renewed is not None:
            await self._renewed.wait()
            return
        self._renewed = trio.Event()
        try:
            old = self._sock
            if self._keeps_port:
                self._gone = True
                old.close()
            new = await self._open()
            self._use(new)
            self._gone = False
            old.close()
            self._successor.unpark_all()
            if self._closed:
                new.close()
        finally:
            self._renewed.set()
            self._renewed = None

    async def _open(self) -> DatagramSocket:
        while True:
            try:
                return await self._reopen()
            except OSError:
                await trio.sleep(REOPEN_PAUSE)

    @property
    def endpoint(self) -> Endpoint:
        return self._sock.endpoint

    @property
    def receive_buffer(self) -> int:
        return self._sock.receive_buffer

    def statistics(self) -> UDPStatistics | None:
        return self._sock.statistics()

    async def receive(self) -> tuple[bytes, Endpoint]:
        while True:
            sock = self._sock
            try:
                return await sock.receive()
            except trio.ClosedResourceError:
                await self._await_successor(sock)

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        while True:
            sock = self._sock
            try:
                return await sock.receive_batch()
            except trio.ClosedResourceError:
                await self._await_successor(sock)

    async def send_queued(self) -> None:
        while True:
            sock = self._sock
            try:
                await sock.send_queued()
            except trio.ClosedResourceError:
                await self._await_successor(sock)

    async def _await_successor(self, sock: DatagramSocket) -> None:
        """Return when there is another socket than `sock`, which is closed; raise what says so if there will be none."""
        while self._gone and not self._closed:
            await self._successor.park()
        if self._closed or sock is self._sock:
            raise trio.ClosedResourceError

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        try:
            return self._sock.send_nowait(data, to)
        except trio.ClosedResourceError:
            if self._closed or not self._gone:
                raise
            return False

    def close(self) -> None:
        self._closed = True
        self._sock.close()
        self._successor.unpark_all()
