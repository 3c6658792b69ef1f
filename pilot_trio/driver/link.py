"""One IPC connection as a client: requests out, answers and pushes in.

A link has one reader task and one writer task and no knowledge of commands. Frames leave whole and in order: what the
socket does not take at once waits for the writer, so a caller that is cancelled never tears a frame. What arrives is
routed in the reader, before anything else is read, so that data cannot overtake the answer that announces its stream.

An unread stream must not fill the memory, and the protocol has no flow control towards clients but one: not to read. A
daemon cuts a client that does not read for ten seconds, though. So past `STREAM_BUFFER` the reader slows down instead of
stopping: it takes a piece only every `PAUSE_SHARED` or `PAUSE_ALONE` seconds until the stream's reader has caught up.
Within ten seconds those pieces are more than a kernel's socket buffer, so the daemon gets something written in time. A
stream left alone for so long that it holds `STREAM_BUFFER_MAX` is given up; the others on the link never are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from pilot_trio.address import ConnId
from pilot_trio.errors import DaemonError, DecodeError, IPCClosedError
from pilot_trio.net.transport import Transport
from pilot_trio.proto.reply_matcher import Answer, ReplyMatcher, Request
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import (
    Accepted,
    Code,
    ReceivedDatagram,
    decode_accept,
    decode_conn,
    decode_recv_from,
    encode_conn,
    encode_frame,
)

READ_SIZE: Final = 64 * 1024  # bytes per read; with the pauses below it is the slowest rate at which we ever read
SEND_BUFFER: Final = 64 * 1024  # bytes that may wait for the socket before senders wait too; hides a loop turn
STREAM_BUFFER: Final = 256 * 1024  # bytes unread on one stream before its link slows down; as much as a daemon queues
STREAM_BUFFER_MAX: Final = 16 << 20  # bytes unread on one stream before it is given up; minutes, thanks to the pauses
PAUSE_ALONE: Final = 2.0  # seconds between reads while a link's only stream is full; five per daemon deadline of 10 s
PAUSE_SHARED: Final = 0.5  # seconds between reads where other streams share the link; they wait behind the full one
JOIN_MAX: Final = 64 * 1024  # bytes joined into one write of the writer task; one system call instead of many


_TURNED_AWAY: Final = (
    "the daemon closed the connection without a word: it is shutting down, serves 1,024 clients already, "
    "or belongs to another user"
)


class Inbox(Protocol):
    """What a link needs to know of a stream."""

    @property
    def unread(self) -> int:
        """Bytes received and not read yet."""
        ...

    def feed(self, data: bytes) -> None:
        """Take data that arrived."""
        ...

    def broke(self) -> None:
        """Learn that the end, which follows, is no proper one."""
        ...

    def end(self, cause: Exception | None = None) -> None:
        """Learn that no more data will come: properly if `cause` is None, else because of it."""
        ...


@attrs.define(eq=False)
class _Waiting:
    """Somebody waits for an answer."""

    on_success: Callable[[bytes], None]
    answer: Answer | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


class Link:
    """One IPC connection. Start `run` in a nursery; everything else may be called from any task."""

    def __init__(
        self,
        transport: Transport,
        *,
        on_accept: Callable[[Accepted], None] | None = None,
        on_datagram: Callable[[ReceivedDatagram], None] | None = None,
        on_close: Callable[[Exception], None] | None = None,
    ) -> None:
        self._transport = transport
        self._on_accept = on_accept
        self._on_datagram = on_datagram
        self._on_close = on_close
        self._matcher = ReplyMatcher()
        self._waiting: dict[Request, _Waiting] = {}
        self._streams: dict[ConnId, Inbox] = {}
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._leftover = trio.Event()  # set when the writer has something to do
        self._changed = trio.lowlevel.ParkingLot()  # room to send, an answer received, a stream or the link closed
        self._full: set[ConnId] = set()  # streams with more than STREAM_BUFFER unread
        self._drained = trio.Event()  # set when `_full` becomes empty
        self._failure: Exception | None = None
        self._scope = trio.CancelScope()
        self._heard = False
        self._send_failed = False

    @property
    def failure(self) -> Exception | None:
        """Why the link is of no use any more, None while it is."""
        return self._failure

    @property
    def streams(self) -> int:
        """How many streams are on it."""
        return len(self._streams)

    @property
    def unread(self) -> int:
        """Bytes received and not read, over all streams."""
        return sum(stream.unread for stream in self._streams.values())

    @property
    def owed(self) -> int:
        """Answers still to come that nobody waits for."""
        return self._matcher.owed

    @property
    def has_room(self) -> bool:
        """Whether there is no point in waiting before the next `post`."""
        return self._unsent_bytes < SEND_BUFFER or self._send_failed

    def is_free(self, command: Code) -> bool:
        """Whether a request could start right now."""
        return self._failure is None and self._matcher.can_begin(command)

    async def run(self) -> None:
        """Read and write until the connection ends or `close` is called. Never raises anything but `Cancelled`."""
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_leftovers)
                    await self._read()
            finally:
                self._fail(IPCClosedError("this connection to the daemon was closed"))

    def close(self) -> None:
        """Close at once. The daemon closes the streams and ports that belong to this link."""
        self._fail(IPCClosedError("this connection to the daemon was closed"))

    async def request(
        self, command: Code, payload: bytes = b"", *, on_success: Callable[[bytes], None] = lambda _: None
    ) -> bytes:
        """Send a request and return the payload of its answer.

        Waits for its turn first if another request's answer could not be told from its own. `on_success` is called
        with the payload in the reader, before the next frame is looked at.

        Cancelled before the request was sent, nothing has happened; afterwards the daemon carries it out and its
        answer is dropped when it comes.

        Raises:
          DaemonError: the daemon said no.
          IPCClosedError: the connection ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._failure is None and not (self.has_room and self._matcher.can_begin(command)):
            await self._changed.park()
        frame = encode_frame(command, payload)
        self.check()
        request = self._matcher.begin(command)
        waiting = self._waiting[request] = _Waiting(on_success)
        try:
            with contextlib.suppress(IPCClosedError):  # the reader will find out why, and wake us
                self.post(frame)
            await waiting.done.wait()
        finally:
            self._matcher.abandon(request)
            del self._waiting[request]
        if waiting.answer is None:
            raise IPCClosedError(str(self._failure)) from self._failure
        if waiting.answer.error is not None:
            raise DaemonError(waiting.answer.error)
        return waiting.answer.payload

    def post(self, frame: bytes) -> None:
        """Send a frame without waiting: what the socket does not take now, the writer task sends in order.

        Callers that can send much wait for `has_room` first (`wait_changed`).

        Raises:
          IPCClosedError: the connection ended.
        """
        self.check()
        if self._send_failed:
            raise _disconnected()
        if not self._unsent:
            try:
                sent = self._transport.send_nowait(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                # The reader decides when the connection has ended: what the daemon said last may still be unread.
                self._send_failed = True
                raise _disconnected() from exc
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        self._leftover.set()

    async def wait_changed(self) -> None:
        """Wait until it is worth looking again: room to send, an answer, an end."""
        await self._changed.park()

    def wake(self) -> None:
        """Make everybody in `wait_changed` look again."""
        self._changed.unpark_all()

    def check(self) -> None:
        """Raise `IPCClosedError` if the link is of no use any more."""
        if self._failure is not None:
            raise IPCClosedError(str(self._failure)) from self._failure

    def add_stream(self, conn_id: ConnId, stream: Inbox) -> None:
        """Hand everything that arrives for `conn_id` to `stream`."""
        self._streams[conn_id] = stream

    def drop_stream(self, conn_id: ConnId) -> None:
        """Ignore everything further that arrives for `conn_id`."""
        self._streams.pop(conn_id, None)
        self._not_full(conn_id)
        self._changed.unpark_all()

    def note_read(self, conn_id: ConnId, unread: int) -> None:
        """Learn that a stream has been read; `unread` bytes are left."""
        if unread < STREAM_BUFFER:
            self._not_full(conn_id)

    def _not_full(self, conn_id: ConnId) -> None:
        if conn_id in self._full:
            self._full.discard(conn_id)
            if not self._full:
                self._drained.set()

    # Reading

    async def _read(self) -> None:
        decoder = FrameDecoder(IPC_FRAME_MAX)
        cause: Exception | None = None
        try:
            while True:
                await self._wait_for_readers()
                if self._failure is not None:
                    return  # closed while it waited
                data = await self._transport.receive_some(READ_SIZE)
                if not data:
                    break
                self._heard = True
                decoder.feed(data)
                while (body := decoder.next_frame()) is not None:
                    if body:
                        self._route(body)
                await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError, DecodeError) as exc:
            cause = exc
        failure = _disconnected() if self._heard else IPCClosedError(_TURNED_AWAY)
        failure.__cause__ = cause
        self._fail(failure)

    async def _wait_for_readers(self) -> None:
        """Wait until no stream is full, but not for so long that the daemon would take us for dead."""
        if not self._full:
            return
        self._drained = trio.Event()
        with trio.move_on_after(PAUSE_ALONE if len(self._streams) == 1 else PAUSE_SHARED):
            await self._drained.wait()

    def _route(self, body: bytes) -> None:
        code, payload = body[0], body[1:]
        match code:
            case Code.RECV:
                self._deliver(*decode_conn(payload))
            case Code.BROKEN:
                if (broken := self._streams.get(decode_conn(payload)[0])) is not None:
                    broken.broke()
            case Code.CLOSE_OK if (conn_id := decode_conn(payload)[0]) in self._streams:
                self._streams.pop(conn_id).end()
                self._not_full(conn_id)
                self._changed.unpark_all()
            case Code.ACCEPT:
                if self._on_accept is not None:
                    self._on_accept(decode_accept(payload))
            case Code.RECV_FROM:
                if self._on_datagram is not None:
                    self._on_datagram(decode_recv_from(payload))
            case _:
                self._answer(code, payload)

    def _deliver(self, conn_id: ConnId, data: bytes) -> None:
        stream = self._streams.get(conn_id)
        if stream is None:
            return  # closed by us a moment ago; the daemon did not know yet
        stream.feed(data)
        unread = stream.unread
        if unread >= STREAM_BUFFER_MAX:
            stream.end(IPCClosedError(f"{unread} bytes were received and not read; the connection was given up"))
            self.drop_stream(conn_id)
            with contextlib.suppress(IPCClosedError):  # then the reader will notice on its own
                self.post(encode_conn(Code.CLOSE, conn_id))
        elif unread >= STREAM_BUFFER:
            self._full.add(conn_id)

    def _answer(self, code: int, payload: bytes) -> None:
        answer = self._matcher.receive(code, payload)
        if answer is not None:
            waiting = self._waiting[answer.request]
            waiting.answer = answer
            if answer.error is None:
                waiting.on_success(answer.payload)
            waiting.done.set()
        self._changed.unpark_all()

    # Writing

    async def _write_leftovers(self) -> None:
        try:
            while True:
                await self._leftover.wait()
                self._leftover = trio.Event()
                while self._unsent:
                    await self._write_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # Only the reader ends a link, after it has read what the daemon said last.
            self._send_failed = True
            self._changed.unpark_all()

    async def _write_some(self) -> None:
        """Write the oldest leftovers as one piece; they stay in the queue until they are written, to keep the order."""
        pieces = [self._unsent[0]]
        size = len(pieces[0])
        for piece in itertools.islice(self._unsent, 1, None):
            if size + len(piece) > JOIN_MAX:
                break
            pieces.append(piece)
            size += len(piece)
        await self._transport.send_all(b"".join(pieces))
        for _ in pieces:
            self._unsent.popleft()
        self._unsent_bytes -= size
        self._changed.unpark_all()

    # The end

    def _fail(self, failure: Exception) -> None:
        """End the link, once: everybody who waits learns why."""
        if self._failure is not None:
            return
        self._failure = failure
        self._transport.close()
        self._scope.cancel()
        for waiting in self._waiting.values():
            waiting.done.set()
        for stream in list(self._streams.values()):
            stream.end(failure)
        self._streams.clear()
        self._changed.unpark_all()
        self._drained.set()
        if self._on_close is not None:
            self._on_close(failure)


def _disconnected() -> IPCClosedError:
    return IPCClosedError("daemon disconnected")
