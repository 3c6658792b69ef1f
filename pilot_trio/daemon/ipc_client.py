"""One IPC client: what happens to a request on the way from bytes to reply.

`ipc` has the diagram and the accept loop, `ipc_session` the life of a client, `outbound` the queue and the writer,
`in_flight` the limit of requests that wait. The life of a request is `handle` → `_dispatch` → (`_answer_later` or
`_answer`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, final

import attrs
import trio

from pilot_trio.daemon.coalescing import Coalescer
from pilot_trio.daemon.dispatch import Client, CommandTable, Lane, Later, Promise, Route, RunRoute, Shared
from pilot_trio.daemon.hang_up import HangUpWatch
from pilot_trio.daemon.in_flight import InFlight
from pilot_trio.daemon.outbound import FRAME_SIZE_MAX, Outbound
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import IPCClosedError, PilotError
from pilot_trio.net.transport import Transport
from pilot_trio.wire.framing import IPC_FRAME_MAX, LENGTH, FrameDecoder
from pilot_trio.wire.ipc import encode_error

TURN_QUANTUM: Final = 64  # units of work per client and loop turn; more would delay the other clients
TASK_COST: Final = 16  # units of starting a task, so 4 a turn: a flood of dials is the dearest that a client can do
SHARE_COST: Final = 8  # units of joining a question that others may share, so 8 a turn
READ_COST: Final = 16  # units of a read that left more to read, so 256 KiB a turn, though it may be all one frame
DISPATCH_COST: Final = 4  # units of calling a handler, so 16 a turn
REPEAT_COST: Final = 1  # units of what needs no handler: a repeated request, an empty frame
JOINED_MAX: Final = 1024  # requests of one client that wait along with others; bounds what is answered at once
REPLY_BATCH_MAX: Final = 64 * 1024  # bytes of replies joined before they are sent; bounds what a batch can hold

_HEAD: Final = LENGTH.size
_read_length: Final = LENGTH.unpack_from
_INTERNAL_ERROR: Final = "internal error"  # all that a client learns of a handler's crash; the log has the rest

_log = logging.getLogger("pilot_trio.ipc")


@attrs.define(eq=False)
class Counters:
    """What the server counts over all its clients; never goes down."""

    accepted: int = 0
    refused: int = 0
    cut: int = 0
    crashes: int = 0
    dropped_offers: int = 0


@final
class IPCClient(Client):
    """One connected client, as handlers see it and as its session drives it."""

    __slots__ = (
        "_asked",
        "_budget",
        "_client_id",
        "_commands",
        "_counters",
        "_decoder",
        "_handling",
        "_hang_ups",
        "_in_flight",
        "_joined",
        "_questions",
        "_releases",
        "_replies",
        "_replies_size",
        "_snapshot",
        "_snapshot_code",
        "_transport",
        "_turn",
        "nursery",
        "outbound",
    )

    def __init__(
        self,
        client_id: int,
        transport: Transport,
        commands: CommandTable,
        counters: Counters,
        hang_ups: HangUpWatch,
        turn: Turn,
        questions: Coalescer,
    ) -> None:
        self._client_id = client_id
        self._transport = transport
        self._commands = commands
        self._counters = counters
        self._hang_ups = hang_ups
        self._turn = turn
        self._questions = questions
        self._handling = False  # frames are being handled: what is posted joins their replies
        self._decoder = FrameDecoder(IPC_FRAME_MAX)
        self._in_flight = InFlight()
        self._budget = TURN_QUANTUM  # what is left of this turn
        self._replies: list[bytes] = []  # of this read batch, not yet sent
        self._replies_size = 0
        self._snapshot_code = -1  # command whose last answer, `_snapshot`, is still true; -1: none
        self._snapshot = b""
        self._asked: _Pending | None = None  # the request handled last, if it shares a question; None between two runs
        self._joined = 0  # requests that wait along with one before them
        self._releases: list[Callable[[], None]] | None = []  # None once called
        self.nursery: trio.Nursery | None = None  # where requests run that wait; the session's
        self.outbound = Outbound(transport)

    # --- what handlers may do (see `dispatch.Client`) ------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        return self._client_id

    @property
    def closed(self) -> bool:
        return self.outbound.closed

    @property
    def room(self) -> int:
        return self.outbound.room

    def when_room(self, wake: Callable[[], None]) -> None:
        if self._handling:
            self._post_replies()  # they come before whatever the room is wanted for
        self.outbound.when_room(wake)

    def post(self, frame: bytes) -> None:
        if self._handling:
            self._reply(frame)
        else:
            self.outbound.post(frame)

    def offer_all(self, frames: Sequence[bytes]) -> int:
        """Offer frames one after the other; return how many were taken. They are joined: a call each would cost the most."""
        at, count, lost = 0, len(frames), 0
        while at < count:
            room, end, size = self.outbound.room, at + 1, len(frames[at])
            if size > room:
                at, lost = end, lost + 1
                continue
            bound = min(room, REPLY_BATCH_MAX)
            while end < count and (size := size + len(frames[end])) <= bound:
                end += 1
            self.post(frames[at] if end - at == 1 else b"".join(frames[at:end]))
            at = end
        self._counters.dropped_offers += lost
        return count - lost

    def on_release(self, release: Callable[[], None]) -> None:
        if self._releases is None:
            self._call_release(release)
        else:
            self._releases.append(release)

    # --- what its session asks of it (see `ipc_session`) -------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests being worked on in tasks of their own."""
        return len(self._in_flight)

    def end_if_hung_up(self) -> bool:
        """Cancel everything if the client has closed both directions; say whether it has."""
        if not self._transport.hung_up():
            return False
        self.end()
        return True

    def end(self) -> None:
        """Cancel everything that is done for the client."""
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    async def settle(self) -> None:
        """After the end of input: let the requests in flight finish, as long as somebody may read the answers."""
        if self.in_flight and not self.end_if_hung_up():
            with self._hang_ups.watching(self):
                await self._in_flight.wait_until_idle()

    def release(self) -> None:
        """Call what was left with `on_release`."""
        releases, self._releases = self._releases, None
        for release in releases or ():
            self._call_release(release)

    def _call_release(self, release: Callable[[], None]) -> None:
        try:
            release()
        except Exception as exc:
            self._note_crash("release", exc)

    # --- the life of a request ---------------------------------------------------------------------------------------

    def answer_at_once(self, data: bytes) -> bool:
        """Answer a read that is one request for a snapshot and nothing else; say whether it was, and was answered.

        Who waits for each answer before asking again pays for nothing that serves requests in a row. Nor does it need a
        budget: after a read that left nothing, the next one waits. What cannot be answered here is for `handle`.
        """
        if len(data) <= _HEAD or _read_length(data)[0] != len(data) - _HEAD or self._decoder:
            return False
        route = self._commands.get(data[_HEAD])
        if not isinstance(route, Route) or not route.snapshot or not self._transport.drained:
            return False
        try:
            answer = route.handler(self, data[_HEAD + 1 :])
        except Exception as exc:
            answer = self._failure(data[_HEAD], route, exc)
        return isinstance(answer, bytes) and self.outbound.send_now(_fit(answer, route))

    async def handle(self, data: bytes) -> None:
        """Handle every frame that this read completes, a quantum at a time. Replies leave together, and before every await.

        Raises:
          DecodeError: there is a frame that makes no sense; those before it were handled.
          IPCClosedError: the client is gone.
        """
        self._decoder.feed(data)
        if self._transport.drained:
            self._budget = TURN_QUANTUM  # others had their turn
        else:
            self._budget -= READ_COST
            await self._yield_if_spent()
        self._snapshot_code = -1  # others may have run
        while frames := self._decoder.next_frames(TURN_QUANTUM):
            at = 0
            while at < len(frames):
                at, pending = self._handle_run(frames, at)
                if pending is not None:
                    await self._begin(pending)
                if self._budget <= 0 or self._replies_size > REPLY_BATCH_MAX:
                    await self._flush()
                    await self._yield_if_spent()
            if self._replies:
                await self._flush()
            if self.outbound.queued_bytes and not self.outbound.room:
                self._snapshot_code = -1
                await self.outbound.wait_for_room()
            if not self._decoder:
                return

    async def _yield_if_spent(self) -> None:
        if self._budget <= 0:
            await trio.lowlevel.checkpoint()
            self._snapshot_code = -1
            self._budget = TURN_QUANTUM

    def _handle_run(self, frames: list[bytes], at: int) -> tuple[int, _Pending | None]:
        """Handle frames until one has to wait, or is enough for now; return where to go on, and what has to wait.

        What they cause to be posted to this client joins their replies, and what they send to other nodes leaves together.
        """
        self._handling = True
        try:
            with self._turn:
                while at < len(frames):
                    frame = frames[at]
                    at += 1
                    self._budget -= REPEAT_COST
                    # Zero-length frames are skipped, though not for free.
                    pending = None
                    if frame and frame[0] == self._snapshot_code:
                        at = self._repeat_snapshot(frames, at)
                    elif frame and self._asked and frame == frames[at - 2] and self._joined < JOINED_MAX:
                        self._asked.joined += 1
                        self._joined += 1
                    elif frame:
                        pending = self._dispatch(frame)
                    if isinstance(pending, RunRoute):
                        at, pending = self._handle_alike(pending, frames, at - 1)
                    if pending is not None or self._budget <= 0 or self._replies_size > REPLY_BATCH_MAX:
                        return at, pending
                return at, None
        finally:
            self._handling = False
            self._asked = None  # its question may leave before the next request comes

    def _repeat_snapshot(self, frames: list[bytes], at: int) -> int:
        """Answer the request before `at`, and those from there on that ask the same, with what is still true.

        Returns where to go on.
        """
        snapshot, code = self._snapshot, self._snapshot_code
        room = (REPLY_BATCH_MAX - self._replies_size) // len(snapshot)
        start, last = at, min(len(frames), at + max(0, min(self._budget, room)))
        while at < last and frames[at] and frames[at][0] == code:
            at += 1
        self._budget -= (at - start) * REPEAT_COST
        self._reply(snapshot * (at - start + 1))
        return at

    def _handle_alike(self, route: RunRoute, frames: list[bytes], at: int) -> tuple[int, _Pending | None]:
        """Handle the frame there, which was counted, with those behind it that begin alike; return as `_handle_run` does."""
        head = frames[at][: route.head]
        end = at + 1
        # As a dispatch, which costs more than one unit too, a run may begin with the last one.
        last = min(len(frames), end + max(0, self._budget) + DISPATCH_COST)
        while end < last and frames[end][: route.head] == head:
            end += 1
        self._budget -= REPEAT_COST * (end - at - 1)
        try:
            later = route.handler(self, frames[at:end])
        except Exception as exc:
            self._failure(head[0], route, exc)
            later = None
        return end, None if later is None else _Pending(head[0], route, later)

    def _dispatch(self, frame: bytes) -> _Pending | RunRoute | None:
        """Call the handler; keep its reply, or return what has to wait, or the route if it wants to handle more at once."""
        code = frame[0]
        self._budget -= DISPATCH_COST - REPEAT_COST
        self._snapshot_code = -1  # whatever this request does, an earlier answer may be wrong after it
        self._asked = None
        route = self._commands.get(code)
        if route is None:
            self._reply(encode_error(f"unknown command: 0x{code:02X}"))
            return None
        if isinstance(route, RunRoute):
            return route
        try:
            answer = route.handler(self, frame[1:])
        except Exception as exc:
            answer = self._failure(code, route, exc)
        if answer is None:
            return None
        if isinstance(answer, bytes):
            self._reply(_fit(answer, route))
            if route.snapshot:
                self._snapshot_code, self._snapshot = code, answer
            return None
        pending = _Pending(code, route, answer)
        if not isinstance(answer, Later) and self._in_flight.add_nowait(pending):
            self._start(pending)
            return None
        return pending

    async def _begin(self, pending: _Pending) -> None:
        """Work on what has to wait: here if nothing may overtake it, in a task of its own otherwise."""
        work = pending.work
        if pending.route.lane is Lane.FIFO and isinstance(work, Later):
            await self._flush()
            with self._hang_ups.watching(self):
                reply = await self._run(pending.code, pending.route, work)
            if reply is not None:
                self._reply(reply)
            return
        if not self._in_flight.add_nowait(pending):
            await self._flush()
            with self._hang_ups.watching(self):
                await self._in_flight.add(pending)
        self._start(pending)

    def _start(self, pending: _Pending) -> None:
        """Start what was counted as being in flight."""
        work = pending.work
        if isinstance(work, Later):
            self._budget -= TASK_COST - DISPATCH_COST
            assert self.nursery is not None
            self.nursery.start_soon(self._answer_later, pending, work)
            return
        answer = partial(self._answer, pending)
        if isinstance(work, Shared):
            self._budget -= SHARE_COST - DISPATCH_COST
            self._questions.ask(work.key, work.run, answer)
            self._asked = pending if self._handling else None
            return
        self._budget -= TASK_COST - DISPATCH_COST
        try:
            work.start(answer)
        except Exception as exc:
            answer(exc)

    async def _answer_later(self, pending: _Pending, later: Later) -> None:
        """The task of one request."""
        try:
            reply = await self._run(pending.code, pending.route, later)
            if reply is not None:
                await self.outbound.send(reply)
        except IPCClosedError:
            pass  # nobody is left to answer
        finally:
            self._in_flight.remove(pending)

    def _answer(self, pending: _Pending, answer: bytes | Exception) -> None:
        """Answer a request without a task. Such answers are small, and no more than may be in flight."""
        if isinstance(answer, Exception):
            reply = self._failure(pending.code, pending.route, answer)
        else:
            reply = _fit(answer, pending.route)
        if reply is not None:
            left = 1 + pending.joined
            while left:
                count = min(left, 1 + REPLY_BATCH_MAX // len(reply))
                self._post_answer(reply * count)
                left -= count
        self._joined -= pending.joined
        self._in_flight.remove(pending)

    def _post_answer(self, reply: bytes) -> None:
        """Post an answer; those that come up together leave together."""
        if self._handling or not self._questions.turn.depth:
            self.post(reply)
            return
        if not self._replies:
            self._questions.turn.at_end(self._post_replies)
        self._reply(reply)
        if self._replies_size > REPLY_BATCH_MAX:
            self._post_replies()

    async def _run(self, code: int, route: Route | RunRoute, later: Later) -> bytes | None:
        try:
            reply = await later.run()
        except Exception as exc:
            reply = self._failure(code, route, exc)
        return None if reply is None else _fit(reply, route)

    # --- replies -----------------------------------------------------------------------------------------------------

    def _reply(self, frame: bytes) -> None:
        self._replies.append(frame)
        self._replies_size += len(frame)

    async def _flush(self) -> None:
        if self._replies:
            replies = self._take_replies()
            if not self.outbound.send_now(replies):
                self._snapshot_code = -1  # others run now
                await self.outbound.send_replies(replies)

    def _post_replies(self) -> None:
        if self._replies:
            self.outbound.post(self._take_replies())

    def _take_replies(self) -> bytes:
        replies = self._replies[0] if len(self._replies) == 1 else b"".join(self._replies)
        self._replies.clear()
        self._replies_size = 0
        return replies

    def _failure(self, code: int, route: Route | RunRoute, exc: Exception) -> bytes | None:
        """Turn an exception into the request's reply: one failed request is nobody else's business."""
        if isinstance(exc, PilotError):
            text = str(exc)
        else:
            self._note_crash(f"command 0x{code:02X}", exc)
            text = _INTERNAL_ERROR
        if not route.replies:
            _log.debug("IPC request dropped: %s code=0x%02X client=%d", text, code, self._client_id)
            return None
        return encode_error(route.error_prefix + text)

    def _note_crash(self, where: str, exc: Exception) -> None:
        self._counters.crashes += 1
        _log.error("IPC handler crashed: %s client=%d", where, self._client_id, exc_info=exc)


@attrs.define(eq=False)  # each is a borrower of its own
class _Pending:
    code: int
    route: Route | RunRoute
    work: Later | Promise | Shared
    joined: int = 0  # requests right behind it that are the same, and get the same answer


def _fit(reply: bytes, route: Route | RunRoute) -> bytes:
    """Replace a reply that is longer than a frame may be: clients take it for a broken connection."""
    if len(reply) <= FRAME_SIZE_MAX:
        return reply
    return encode_error(f"{route.error_prefix}reply too large: {len(reply)} bytes (limit {FRAME_SIZE_MAX})")
