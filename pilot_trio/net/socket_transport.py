"""A `Transport` on a connected, non-blocking Unix stream socket.

It does without `trio.SocketStream`: the server needs a send that never waits, and a thousand idle clients should cost
little. What is left of Trio's machinery is `wait_readable`, `wait_writable` and `notify_closing`.

Two habits of Linux shape the sending side:

- The kernel accounts for what is unread by whole buffers (one per send call) and frees a buffer when its last byte is
  read. So no single call hands over more than `SEND_CALL_MAX`: the reader never has to take more than that before the
  next call can succeed.
- `poll` reports a full Unix socket as writable only once three quarters of its send buffer are free again, although a
  send would succeed long before. A slow but living reader may need minutes for that. So `send_all` also tries again
  every `SEND_RETRY_INTERVAL` without being told.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Final, final

import trio

from pilot_trio.net.transport import Transport

SEND_CALL_MAX: Final = 16 * 1024  # bytes per send call; what the peer must read, at worst, before the next one succeeds
SEND_BUFFER: Final = 512 * 1024  # bytes asked for; Linux grants them twice, or twice its limit, usually 208 KiB:
# while a client waits for its turn on the processor, a thousand datagrams may arrive for it
SEND_RETRY_INTERVAL: Final = 0.5  # seconds between sends to a full socket; bounds how late freed room is noticed
_DISCARD_MAX: Final = 64 * 1024  # bytes of unread input thrown away on close, so that the peer sees EOF, not a reset


@final
class SocketTransport(Transport):
    """See `Transport`. Takes over the socket and makes it non-blocking."""

    __slots__ = ("_at_end", "_read_everything", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sock = sock
        self._at_end = False
        self._read_everything = False  # the last read emptied the socket; trying again first would be a wasted call

    @property
    def drained(self) -> bool:
        return self._read_everything

    async def receive_some(self, max_bytes: int) -> bytes:
        while True:
            if self._read_everything:
                await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(max_bytes)
            except BlockingIOError:
                # No wait in here: it would keep the exception alive for as long as a client idles.
                self._read_everything = True
                continue
            except OSError as exc:
                raise self._translate(exc) from exc
            self._read_everything = len(data) < max_bytes
            self._at_end = not data
            return data

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        total = len(data)
        sent = 0
        try:
            if total <= SEND_CALL_MAX:
                return self._sock.send(data)
            view = memoryview(data)
            while sent < total:
                sent += self._sock.send(view[sent : sent + SEND_CALL_MAX])
        except BlockingIOError:
            pass
        except OSError as exc:
            raise self._translate(exc) from exc
        return sent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        sent = self.send_nowait(view)
        while sent < len(view):
            with trio.move_on_after(SEND_RETRY_INTERVAL):
                await trio.lowlevel.wait_writable(self._sock)
            sent += self.send_nowait(view[sent:])

    def hung_up(self) -> bool:
        if self._sock.fileno() < 0:
            return True
        # After the peer's close the kernel says POLLHUP; after a mere shutdown of its write side, POLLRDHUP alone.
        poller = select.poll()
        poller.register(self._sock, 0)  # no interest in readiness; hang-ups are reported always
        return bool(poller.poll(0))

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        if not self._at_end:
            # Closing a Unix socket with unread input gives the peer ECONNRESET in place of EOF.
            with contextlib.suppress(OSError):
                self._sock.recv(_DISCARD_MAX)
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._read_everything = False  # whoever reads now shall find out, not wait

    def _translate(self, exc: OSError) -> Exception:
        if self._sock.fileno() < 0:
            return trio.ClosedResourceError("this IPC connection was closed")
        return trio.BrokenResourceError(f"IPC client is gone: {exc.strerror}")
