"""The local protocol from the side of a short-lived command: one plain socket, no event loop.

The async driver is `pilot_trio.driver`; loading it takes longer than most commands run. Every wait has a deadline, on the
monotonic clock; `math.inf` waits for ever, which only commands that watch something do.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from pilot_trio.address import Address
from pilot_trio.errors import DaemonError, DecodeError, PilotError
from pilot_trio.wire import ipc
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import Accepted, Code, ReceivedDatagram

if TYPE_CHECKING:
    from pathlib import Path

READ_SIZE: Final = 256 * 1024  # bytes per read; a benchmark's echo comes in large pieces
BACKLOG_POLL: Final = 0.01  # seconds between tries to connect to a daemon that has no room for new clients
DATAGRAMS_MAX: Final = 256  # datagrams kept while the command is busy; the reference's clients keep as many
UNKNOWN_STREAMS_MAX: Final = 64  # streams whose data may come before we know of them; `spec/ipc.md` §9

T = TypeVar("T")


class DaemonNotRunning(PilotError):
    """Nothing answers on the socket."""


class DaemonGone(PilotError):
    """The daemon closed the connection while something was expected of it."""


class DaemonTimeout(PilotError):
    """The daemon did not answer by the deadline."""


def deadline_in(seconds: float) -> float:
    """Return the deadline `seconds` from now."""
    return time.monotonic() + seconds


class ClientStream:
    """One overlay stream as this client sees it."""

    def __init__(self, client: IPCClient, conn_id: int) -> None:
        self._client = client
        self.conn_id = conn_id
        self.received = bytearray()
        self.ended = False

    def send(self, data: bytes, deadline: float) -> None:
        """Hand all of `data` to the daemon; what arrives meanwhile is kept in `received`."""
        for at in range(0, len(data), ipc.SEND_DATA_MAX):
            part = data[at : at + ipc.SEND_DATA_MAX]
            self._client.send(ipc.encode_conn(Code.SEND, self.conn_id, part), deadline)

    def receive(self, deadline: float) -> bytes:
        """Return what has arrived as soon as that is anything; `b""` at the end of the stream."""
        self._client.wait(lambda: True if self.received or self.ended else None, deadline)
        return self.take()

    def take(self) -> bytes:
        """Return what has arrived so far, without waiting."""
        data = bytes(self.received)
        self.received.clear()
        return data

    def close(self, deadline: float) -> None:
        """Close the stream and wait until the daemon has heard of it."""
        self._client.close_stream(self.conn_id, deadline)


def _connect(sock: socket.socket, path: Path | str, deadline: float) -> None:
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError as exc:
            # The daemon's backlog is full. The kernel will not say when it has room, and a connect that may wait cannot
            # be given a deadline.
            if time.monotonic() >= deadline:
                raise DaemonTimeout("the daemon does not accept connections") from exc
            time.sleep(BACKLOG_POLL)
        except OSError as exc:
            raise DaemonNotRunning(str(exc)) from exc
        else:
            return


class IPCClient:
    """A connection to the daemon. One request at a time; pushes are kept until asked for."""

    def __init__(self, path: Path | str, deadline: float = math.inf) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            _connect(self._socket, path, deadline)
        except BaseException:
            self._socket.close()
            raise
        self._poll = select.poll()
        self._frames = FrameDecoder(IPC_FRAME_MAX)
        self._expected: int | None = None  # reply code awaited
        self._reply: tuple[int, bytes] | None = None
        self._streams: dict[int, ClientStream] = {}
        self._accepted: deque[Accepted] = deque()
        self.datagrams: deque[ReceivedDatagram] = deque(maxlen=DATAGRAMS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def daemon_pid(self) -> int:
        """The process that listens, as the kernel knows it."""
        from pilot_trio.net.socket_file import peer_credentials  # loads more than most commands need

        return peer_credentials(self._socket).pid

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def request(self, code: Code, payload: bytes, deadline: float) -> bytes:
        """Send a request and return its reply's payload.

        Raises:
          DaemonError: the daemon answered with an error.
          DaemonTimeout: it did not answer in time; the connection is of no further use.
          DaemonGone: it hung up.
        """
        return self._ask(ipc.encode_frame(code, payload), code + 1, deadline)

    def dial(self, address: Address, port: int, deadline: float) -> ClientStream:
        """Open a stream; raises what `request` raises."""
        reply = self._ask(ipc.encode_target(Code.DIAL, address, port), Code.DIAL_OK, deadline)
        return self._stream(ipc.decode_conn(reply)[0])

    def close_stream(self, conn_id: int, deadline: float) -> None:
        """Close a stream, this client's or another's, and forget it."""
        self._ask(ipc.encode_conn(Code.CLOSE, conn_id), Code.CLOSE_OK, deadline)
        self._streams.pop(conn_id, None)

    def bind(self, port: int, deadline: float) -> int:
        """Listen on a port; return the port that the daemon names."""
        reply = self._ask(ipc.encode_port(Code.BIND, port), Code.BIND_OK, deadline)
        return ipc.decode_bind(reply)

    def accept(self, deadline: float) -> tuple[Accepted, ClientStream]:
        """Wait for the next stream to a port that this client has bound."""
        accepted = self.wait(lambda: self._accepted.popleft() if self._accepted else None, deadline)
        return accepted, self._stream(accepted.conn_id)

    def next_datagram(self, port: int, deadline: float) -> ReceivedDatagram:
        """Wait for the next datagram to `port`; those to other ports are dropped (every client gets them all)."""

        def take() -> ReceivedDatagram | None:
            while self.datagrams:
                datagram = self.datagrams.popleft()
                if datagram.destination_port == port:
                    return datagram
            return None

        return self.wait(take, deadline)

    def send_datagram(self, address: Address, port: int, data: bytes, deadline: float) -> None:
        """Send a datagram and wait until the daemon has handed it on."""
        self._ask(ipc.encode_target(Code.SEND_TO_CONFIRM, address, port, data), Code.SEND_TO_OK, deadline)

    def send(self, frame: bytes, deadline: float) -> None:
        """Write a frame. While the daemon does not take it, read what it sends: two full buffers would never empty."""
        view = memoryview(frame)
        while view:
            view = self._step(deadline, view)

    def wait(self, ready: Callable[[], T | None], deadline: float) -> T:
        """Read until `ready` returns something."""
        while True:
            found = ready()
            if found is not None:
                return found
            self._step(deadline, memoryview(b""))

    def _ask(self, frame: bytes, expected: int, deadline: float) -> bytes:
        self._expected, self._reply = expected, None
        self.send(frame, deadline)
        answered, body = self.wait(lambda: self._reply, deadline)
        self._expected = None
        if answered == Code.ERROR:
            raise DaemonError(ipc.decode_error(body))
        return body

    def _step(self, deadline: float, pending: memoryview) -> memoryview:
        """Wait once; read what there is, write what fits; return what is left to write."""
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if pending else 0))
        timeout = deadline - time.monotonic()
        events = self._poll.poll(None if math.isinf(timeout) else max(timeout, 0.0) * 1000)
        if not events:
            raise DaemonTimeout("the daemon did not answer in time")
        happened = events[0][1]
        if pending and happened & select.POLLOUT:
            pending = self._write(pending)
        if happened & ~select.POLLOUT:
            self._read()
        return pending

    def _write(self, pending: memoryview) -> memoryview:
        try:
            return pending[self._socket.send(pending) :]
        except BlockingIOError:
            return pending
        except OSError as exc:
            raise DaemonGone("daemon disconnected") from exc

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            raise DaemonGone("daemon disconnected") from exc
        if not data:
            raise DaemonGone("daemon disconnected")
        self._frames.feed(data)
        try:
            while (frame := self._frames.next_frame()) is not None:
                if frame:
                    self._handle(frame[0], frame[1:])
        except DecodeError as exc:
            raise DaemonGone(f"not the protocol of a pilot daemon: {exc}") from exc

    def _handle(self, code: int, body: bytes) -> None:
        if code in (Code.RECV, Code.CLOSE_OK):
            self._stream_event(code, body)
        elif code == Code.ACCEPT:
            self._accepted.append(ipc.decode_accept(body))
        elif code == Code.RECV_FROM:
            self.datagrams.append(ipc.decode_recv_from(body))
        if self._expected is not None and code in (self._expected, Code.ERROR) and self._reply is None:
            self._reply = (code, body)

    def _stream_event(self, code: int, body: bytes) -> None:
        conn_id, data = ipc.decode_conn(body)
        if conn_id not in self._streams and len(self._streams) >= UNKNOWN_STREAMS_MAX:
            return
        stream = self._stream(conn_id)
        if code == Code.RECV:
            stream.received += data
        else:
            stream.ended = True

    def _stream(self, conn_id: int) -> ClientStream:
        return self._streams.setdefault(conn_id, ClientStream(self, conn_id))
