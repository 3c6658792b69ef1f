"""A bound port: `trio.abc.Listener`, so that `trio.serve_listeners` works on it unchanged."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from pilot_trio.address import ConnId, Port, SocketAddress
from pilot_trio.driver.link import Link
from pilot_trio.driver.replies import Info
from pilot_trio.driver.stream import CLOSE_TIMEOUT, PilotStream
from pilot_trio.errors import DaemonError, IPCClosedError
from pilot_trio.wire.ipc import Accepted, Code, encode_conn

ACCEPT_QUEUE: Final = 1024  # streams that wait for `accept`; as many as the daemon lets live on one port


@final
class PilotListener(trio.abc.Listener[PilotStream]):
    """A port of the node on which this program accepts streams. Made by `Driver.listen`.

    Streams beyond `ACCEPT_QUEUE` that nobody accepts are closed at once and counted in `refused`.

    The protocol hands all streams of a port to the connection that bound it, so accepted streams share one: while one of
    them has more than 256 KiB unread, the others receive slowly, and while the other end of one does not read what is
    sent to it, the others may have to wait before they can send. Dialled streams have a connection each.
    """

    def __init__(self, port: Port, link: Link, ask_info: Callable[[], Awaitable[Info]]) -> None:
        self.port = port
        self.refused = 0
        self._link = link
        self._ask_info = ask_info
        self._waiting: deque[PilotStream] = deque()
        self._alive = 0  # streams, accepted or waiting, that are not closed yet
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self._unbound = False
        self._cause: Exception | None = None

    def __repr__(self) -> str:
        return f"<PilotListener port {self.port} {'closed' if self._closed else 'open'}>"

    async def accept(self) -> PilotStream:
        """Wait for the next stream; see `trio.abc.Listener.accept`. Several tasks may wait at once.

        Raises:
          trio.BrokenResourceError: the daemon is gone.
          trio.ClosedResourceError: this listener was closed here.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this listener was closed here")
            if self._waiting:
                return self._waiting.popleft()
            if self._cause is not None:
                raise trio.BrokenResourceError(str(self._cause)) from self._cause
            await self._arrived.park()

    async def aclose(self) -> None:
        """Give the port back. Streams already accepted live on; those that nobody accepted are closed. Idempotent.

        Waits until the daemon has confirmed, at most `CLOSE_TIMEOUT` seconds: then the port can be bound again.
        Cancelled, it closes all the same, only without waiting.
        """
        if not self._closed:
            self._closed = True
            self._arrived.unpark_all()
            try:
                await self._unbind()
            finally:
                self._unbound = True
                while self._waiting:
                    self._waiting.popleft().discard()
                self._release_if_unused()
        await trio.lowlevel.checkpoint()

    # What the link calls

    def on_accept(self, accepted: Accepted) -> None:
        """Take a new stream from the daemon."""
        if self._closed or len(self._waiting) >= ACCEPT_QUEUE:
            self.refused += 1
            self._refuse(accepted.conn_id)
            return
        remote = SocketAddress(accepted.remote, accepted.remote_port)
        stream = PilotStream(
            self._link, accepted.conn_id, remote, accepted.local_port, self._on_stream_closed, self._ask_info
        )
        self._alive += 1
        self._waiting.append(stream)
        self._arrived.unpark()

    def on_link_closed(self, cause: Exception) -> None:
        """Learn that the daemon is gone."""
        self._cause = cause
        self._arrived.unpark_all()

    async def _unbind(self) -> None:
        with contextlib.suppress(DaemonError, IPCClosedError), trio.move_on_after(CLOSE_TIMEOUT):
            # A daemon too old for Unbind says so; then the port is free when the last stream on it is closed.
            await self._link.request(Code.UNBIND, self.port.to_bytes(2, "big"))

    def _refuse(self, conn_id: ConnId) -> None:
        with contextlib.suppress(IPCClosedError):
            self._link.post(encode_conn(Code.CLOSE, conn_id))

    def _on_stream_closed(self) -> None:
        self._alive -= 1
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._unbound and self._alive == 0:
            self._link.close()
