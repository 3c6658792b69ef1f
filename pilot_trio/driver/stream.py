"""A stream to a program on this or another node: `trio.abc.Stream` on a connection of the daemon."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from pilot_trio.address import Address, ConnId, Port, SocketAddress
from pilot_trio.driver.link import Link
from pilot_trio.driver.replies import Info, PilotStreamStatistics
from pilot_trio.errors import IPCClosedError
from pilot_trio.wire.ipc import Code, encode_conn

SEND_PIECE: Final = 64 * 1024  # bytes per Send frame; smaller than the protocol allows, so that streams take turns
CLOSE_TIMEOUT: Final = 10.0  # seconds that `aclose` waits for the daemon; as long as that waits for a client
_RECEIVE_DEFAULT: Final = 64 * 1024  # bytes that `receive_some` returns at most when the caller names no number


@final
class PilotStream(trio.abc.Stream):
    """One end of an overlay stream. Made by `Driver.dial` and by `PilotListener.accept`.

    A `trio.abc.Stream` and not a half-closeable one: the overlay ends both directions at once (`spec/transport.md` §0).
    Read the reply, then close.

    What is sent has reached the daemon, or a buffer of 64 KiB on the way to it; that it has reached the other program,
    only an answer of that program can tell.

    Attributes:
      conn_id: the daemon's number for this connection, as in `pilotctl connections`.
      remote: address and port of the other end.
      local_port: the port that was dialled, for accepted streams; 0 for dialled ones, whose port the daemon keeps.
    """

    def __init__(
        self,
        link: Link,
        conn_id: ConnId,
        remote: SocketAddress,
        local_port: Port,
        on_close: Callable[[], None],
        ask_info: Callable[[], Awaitable[Info]],
    ) -> None:
        self.conn_id = conn_id
        self.remote = remote
        self.local_port = local_port
        self._link = link
        self._on_close = on_close
        self._ask_info = ask_info
        self._received = bytearray()
        self._ended = False  # nothing more will come …
        self._cause: Exception | None = None  # … because of this, if not properly
        self._closed = False
        self._sending = False
        self._receiving = False
        self._readable = trio.lowlevel.ParkingLot()
        link.add_stream(conn_id, self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended else "open"
        return f"<PilotStream {self.conn_id} to {self.remote} {state}>"

    @property
    def remote_address(self) -> Address:
        """The node at the other end."""
        return self.remote.address

    @property
    def unread(self) -> int:
        """Bytes that have arrived and were not received yet."""
        return len(self._received)

    async def statistics(self) -> PilotStreamStatistics:
        """Ask the daemon what this stream is doing: state, round trip, window, repetitions, path.

        Raises:
          trio.ClosedResourceError: it has ended, and the daemon has forgotten it.
        """
        for stream in (await self._ask_info()).streams():
            if stream.conn_id == self.conn_id:
                return stream
        raise trio.ClosedResourceError(f"the daemon knows no stream {self.conn_id} any more")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; see `trio.abc.SendStream.send_all`.

        If it is cancelled, some beginning of the data has been sent and the stream can go on being used.

        Raises:
          trio.BrokenResourceError: the other end has closed, or the daemon is gone.
          trio.ClosedResourceError: this stream was closed here, perhaps while this was running.
          trio.BusyResourceError: another task is sending.
        """
        self._claim_sending()
        try:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            with memoryview(data) as view:
                for start in range(0, len(view), SEND_PIECE):
                    await self._wait_for_room()
                    self._post(encode_conn(Code.SEND, self.conn_id, bytes(view[start : start + SEND_PIECE])))
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` would begin at once; see `trio.abc.SendStream`. Raises as `send_all`."""
        self._claim_sending()
        try:
            await trio.lowlevel.checkpoint()
            await self._wait_for_room()
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes` bytes, waiting for the first; `b""` once the other end closed.

        Data that arrived before an end, proper or not, is returned first. Cancelling loses nothing.

        Raises:
          trio.BrokenResourceError: the stream did not end properly: the other end has reset it or was not heard any more,
            the daemon is gone, or this stream was not read for so long that it was given up. An original 1.18.0 daemon
            does not say so of the first two, and they look like a proper end.
          trio.ClosedResourceError: this stream was closed here, perhaps while this was waiting.
          trio.BusyResourceError: another task is receiving.
        """
        max_bytes = _RECEIVE_DEFAULT if max_bytes is None else operator.index(max_bytes)
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not (self._received or self._ended or self._closed):
                await self._readable.park()
        finally:
            self._receiving = False
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if not self._received and self._cause is not None:
            raise trio.BrokenResourceError(str(self._cause)) from self._cause
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        self._link.note_read(self.conn_id, len(self._received))
        return data

    async def aclose(self) -> None:
        """Close both directions; what was sent before is still delivered. Idempotent.

        Waits until the daemon has confirmed, at most `CLOSE_TIMEOUT` seconds: then everything sent is in its hands.
        Cancelled, it closes all the same, only without waiting, and bytes not yet with the daemon may be lost.
        """
        if not self._closed:
            try:
                if self._begin_closing():
                    with trio.move_on_after(CLOSE_TIMEOUT):
                        while not self._ended:
                            await self._readable.park()
            finally:
                self._finish_closing()
        await trio.lowlevel.checkpoint()

    def discard(self) -> None:
        """Close without waiting; what `aclose` does when it is cancelled."""
        if not self._closed:
            self._begin_closing()
            self._finish_closing()

    def _begin_closing(self) -> bool:
        """Ask the daemon to close; return whether there is an answer to wait for."""
        self._closed = True
        self._received.clear()
        self._readable.unpark_all()
        self._link.note_read(self.conn_id, 0)
        self._link.wake()
        try:
            # Also after the other end has closed: the daemon keeps its half until we have closed ours.
            self._link.post(encode_conn(Code.CLOSE, self.conn_id))
        except IPCClosedError:
            return False
        return not self._ended

    def _finish_closing(self) -> None:
        self._link.drop_stream(self.conn_id)
        self._on_close()

    # What the link calls

    def feed(self, data: bytes) -> None:
        """Take data that arrived."""
        if not self._closed:
            self._received += data
            self._readable.unpark_all()

    def broke(self) -> None:
        """Learn that the end, which follows, is not where the other end's data ended."""
        self._cause = trio.BrokenResourceError("the other end has reset the stream, or was not heard any more")

    def end(self, cause: Exception | None = None) -> None:
        """Learn that no more data will come."""
        self._ended = True
        self._cause = self._cause or cause
        self._readable.unpark_all()
        self._link.wake()

    def _claim_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True

    async def _wait_for_room(self) -> None:
        self._check_sendable()
        while not self._link.has_room:
            await self._link.wait_changed()
            self._check_sendable()

    def _check_sendable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self._ended:
            raise trio.BrokenResourceError(str(self._cause or "the other end has closed")) from self._cause

    def _post(self, frame: bytes) -> None:
        try:
            self._link.post(frame)
        except IPCClosedError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
