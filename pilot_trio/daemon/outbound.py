"""One IPC client's way out: a bounded queue, the line of producers before it, and the writer that empties it.

    reader (replies) ──►  socket, while nothing is queued
    request tasks ─────►  line (FIFO) ──► channel of 256 frames, ──► writer ──► transport
    stream pushers ────►                  at most 256 KiB            16 KiB pieces, each within 10 s

Nothing here knows a command, and nothing here waits for a client for longer than `WRITE_DEADLINE`:

- While nothing is queued a frame goes straight to the socket. What that does not take at once, a torn frame included,
  becomes the first entry of the queue. Nobody can get in between: there is no await before it is there.
- A frame is queued only while there is a slot *and* the bytes queued stay within `QUEUE_BYTES_MAX`; slots alone would let
  a client that reads nothing pin a megabyte in each. Who finds no room stands in one line, strictly first come, first
  served, so that frames never overtake each other: a task parks, anybody else leaves a callback.
- The writer joins what is queued and sends pieces of at most `WRITE_BOUND` bytes, each under a deadline of its own. So
  the slowest client that is tolerated reads `WRITE_BOUND / WRITE_DEADLINE` = 1,638 bytes/s, however long a frame is
  (1,725 bytes/s on a real socket, where room may be noticed `SEND_RETRY_INTERVAL` late).
- When the writer gives up, the line breaks: every parked producer gets `IPCClosedError` in that same turn of the loop,
  and every later one before it can enqueue anything.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Final, final

import attrs
import trio

from pilot_trio.errors import IPCClosedError, LocalProtocolError
from pilot_trio.net.transport import Transport
from pilot_trio.wire.framing import IPC_FRAME_MAX

QUEUE_SLOTS: Final = 256  # frames queued per client; protocol, `spec/ipc.md` §8
QUEUE_BYTES_MAX: Final = 256 * 1024  # bytes queued per client; what a stalled one costs, and what a reply waits behind
QUEUE_BYTES_READ_ON: Final = QUEUE_BYTES_MAX - 16 * 1024  # bytes; with more queued, no request of that client is read
WRITE_DEADLINE: Final = 10.0  # seconds for one piece to a live client; protocol, `spec/ipc.md` §7.3
DRAIN_WRITE_DEADLINE: Final = 3.0  # seconds for one piece after an orderly close; protocol, `spec/ipc.md` §7.4
WRITE_BOUND: Final = 16 * 1024  # bytes per piece; smaller tolerates slower clients, larger saves system calls
WRITE_TURN: Final = 128 * 1024  # bytes written before others get a turn; a turn of the loop costs as much as 20 KiB
FRAME_SIZE_MAX: Final = IPC_FRAME_MAX + 4  # bytes of a whole frame, its length field included


class Ending(Enum):
    """Why the writer stopped."""

    DRAINED = auto()
    """Everything queued was sent after `finish`."""
    STALLED = auto()
    """The client did not take one piece within its deadline."""
    HUNG_UP = auto()
    """The connection broke."""
    OUT_OF_TIME = auto()
    """The time that `finish_within` allowed was over."""


@attrs.define(eq=False)
class _Waiter:
    """A producer in the line; its frame is empty if it waits for room only."""

    wake: Callable[[], None]
    frame: bytes = b""
    admitted: bool = False


@final
class Outbound:
    """The outbound half of one client. One task runs `write_frames`; any number may call the rest."""

    __slots__ = (
        "_closed",
        "_frames_in",
        "_frames_out",
        "_line",
        "_piece_deadline",
        "_serving",
        "_transport",
        "_waits",
        "_writer_scope",
        "_written",
        "queued_bytes",
        "queued_frames",
    )

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        channel: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]
        channel = trio.open_memory_channel(QUEUE_SLOTS)
        self._frames_in, self._frames_out = channel
        self._line: dict[_Waiter, None] = {}  # an ordered set: first come, first served, and quick to leave
        self._serving = False  # somebody at the head of the line is told of room
        self._closed = False
        # The writer outlives a cancellation of its surroundings, to finish the frame in hand and drain the queue; it is
        # bounded by its deadlines and `finish_within` instead.
        self._writer_scope = trio.CancelScope(shield=True)
        self._piece_deadline = WRITE_DEADLINE
        self._waits = False  # the writer, for a frame
        self._written = 0  # bytes, since the writer gave others a turn
        self.queued_bytes = 0  # in the channel and in the writer's hand
        self.queued_frames = 0  # slots in use; joined replies count as one

    @property
    def closed(self) -> bool:
        """True once nothing can be queued any more."""
        return self._closed

    @property
    def room(self) -> int:
        """Bytes that can be sent or queued now; 0 while others wait, or while there is not enough to be worth a frame."""
        if self._closed or (self._line and not self._serving):
            return 0
        if self.queued_bytes > QUEUE_BYTES_READ_ON or (self.queued_bytes and self.queued_frames == QUEUE_SLOTS):
            return 0
        return QUEUE_BYTES_MAX - self.queued_bytes

    # --- producers ---------------------------------------------------------------------------------------------------

    async def send(self, frame: bytes) -> None:
        """Send or queue a frame, waiting in line while there is no room. Not a checkpoint if there is.

        Raises:
          IPCClosedError: the client is gone, or went while this waited; the frame was not queued.
          LocalProtocolError: the frame is longer than the protocol allows; it would cost the client its connection.
        """
        if len(frame) > FRAME_SIZE_MAX:
            raise LocalProtocolError(f"IPC frame too large: {len(frame)} bytes")
        await self.send_replies(frame)

    async def send_replies(self, replies: bytes) -> None:
        """Do as `send` with a batch of whole frames."""
        if not self.send_now(replies):
            await self._stand_in_line(replies)

    def send_now(self, replies: bytes) -> bool:
        """Send or queue a batch of whole frames if there is room; say whether there was. Raises as `send` does."""
        if self._closed:
            raise IPCClosedError("IPC client is gone")
        return not self._line and self._put(replies)

    async def wait_for_room(self) -> None:
        """Wait until the queue has room for some replies; raise `IPCClosedError` if the client goes first."""
        if self._closed:
            raise IPCClosedError("IPC client is gone")
        if not self.room:
            await self._stand_in_line(b"")

    def post(self, frame: bytes) -> None:
        """Send or queue a frame; while there is no `room`, it stands in line, alone. Nothing happens after the end."""
        if not self._closed and ((self._line and not self._serving) or not self._put(frame)):
            self._line[_Waiter(_nothing, frame)] = None

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call `wake` once when there is `room`, after those who came earlier, or when the client is gone.

        To be asked for when there is none: nobody looks at the line otherwise.
        """
        self._line[_Waiter(wake)] = None

    def _put(self, frame: bytes) -> bool:
        """Send or queue the frame if both bounds allow it. One longer than the whole budget is queued when it is alone."""
        if not self.queued_bytes:
            try:
                sent = self._transport.send_nowait(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                sent = 0  # the writer will find that out, and end everything
            if sent == len(frame):
                return True
            frame = frame[sent:]
        elif self.queued_bytes + len(frame) > QUEUE_BYTES_MAX:
            return False
        try:
            self._frames_in.send_nowait(frame)
        except trio.WouldBlock:
            return False
        if self._waits:
            self._waits = False  # it got the frame, and no slot is in use
        else:
            self.queued_frames += 1
        self.queued_bytes += len(frame)
        return True

    async def _stand_in_line(self, frame: bytes) -> None:
        waiter = _Waiter(partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()), frame)
        self._line[waiter] = None

        def leave_line(_: object) -> trio.lowlevel.Abort:
            del self._line[waiter]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave_line)
        if not waiter.admitted:
            raise IPCClosedError("IPC client went away while this frame waited for room")

    def _admit_from_line(self) -> None:
        # The frames are moved here and not by the tasks once they wake: Trio promises no order among tasks that wake in
        # the same turn, and a newcomer could slip in before them.
        if self._serving:
            return
        self._serving = True
        try:
            while self._line:
                waiter = next(iter(self._line))
                if not (self._put(waiter.frame) if waiter.frame else self.room):
                    return
                del self._line[waiter]
                waiter.admitted = True
                waiter.wake()
        finally:
            self._serving = False

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Accept nothing more and let the writer drain what is queued. Idempotent."""
        self._piece_deadline = DRAIN_WRITE_DEADLINE
        self._close()

    def finish_within(self, seconds: float) -> None:
        """As `finish`, but abandon what is not sent after that many seconds."""
        self.finish()
        deadline = trio.current_time() + seconds
        self._writer_scope.deadline = min(self._writer_scope.deadline, deadline)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._frames_in.close()
            waiting, self._line = self._line, {}
            for waiter in waiting:
                waiter.wake()

    # --- the writer --------------------------------------------------------------------------------------------------

    async def write_frames(self) -> Ending:
        """Send what is queued until `finish` and the queue is empty; say why it ended. Whoever waits is released."""
        ending = Ending.OUT_OF_TIME
        with self._writer_scope:
            try:
                while await self._write(self._join_queued(await self._next_frame())):
                    pass
                ending = Ending.STALLED
            except trio.EndOfChannel:
                ending = Ending.DRAINED
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                ending = Ending.HUNG_UP
        self._close()
        self._frames_out.close()
        self.queued_bytes = self.queued_frames = 0
        return ending

    async def _next_frame(self) -> bytes:
        """Take a frame from the queue. Others get a turn when it is empty, and after every `WRITE_TURN`."""
        if self._written >= WRITE_TURN:
            self._written = 0
            await trio.lowlevel.checkpoint()
        try:
            frame = self._frames_out.receive_nowait()
        except trio.WouldBlock:
            self._written, self._waits = 0, True
            return await self._frames_out.receive()
        self.queued_frames -= 1
        return frame

    def _join_queued(self, frame: bytes) -> bytes:
        """Add queued frames while the piece stays within the bound: one system call for many small frames."""
        size = len(frame)
        frames = [frame]
        while size < WRITE_BOUND:
            try:
                frame = self._frames_out.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            self.queued_frames -= 1
            frames.append(frame)
            size += len(frame)
        self._admit_from_line()  # the slots are free, whatever becomes of the write
        return frame if len(frames) == 1 else b"".join(frames)

    async def _write(self, data: bytes) -> bool:
        """Send `data` in pieces; return False if one of them was not taken in time."""
        view = memoryview(data)
        self._written += len(data)
        for start in range(0, len(view), WRITE_BOUND):
            piece = view[start : start + WRITE_BOUND]
            sent = self._transport.send_nowait(piece)
            if sent < len(piece):
                with trio.move_on_after(self._piece_deadline) as scope:
                    await self._transport.send_all(piece[sent:])
                if scope.cancelled_caught:
                    return False
            self.queued_bytes -= len(piece)
            self._admit_from_line()
        return True


def _nothing() -> None:
    """Wake nobody."""
