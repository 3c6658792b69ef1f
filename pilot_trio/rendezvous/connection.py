"""One registry connection: bytes in, frames cut, answers joined, bytes out, and every way in which that can end.

The order of work is strict: read, answer what is complete, settle, send, read again. So a client that does not read its
answers stops being read, and never has more than one batch of answers waiting for it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import attrs
import trio

from pilot_trio.errors import DecodeError, StoreError
from pilot_trio.proto.directory import PeerInfo
from pilot_trio.proto.limits import KeyedBuckets
from pilot_trio.rendezvous.dialects import Answer, BinaryDialect, Dialect, JSONDialect
from pilot_trio.rendezvous.registrar import Registrar
from pilot_trio.rendezvous.sources import source_of
from pilot_trio.wire.framing import FrameDecoder
from pilot_trio.wire.registry_binary import MAGIC, PREAMBLE, VERSION, encode_error

# Fixed by the protocol (`spec/registry.md` §2.1).
IDLE_TIMEOUT: Final = 300.0  # seconds without a complete request; protocol, registry §2.1
WRITE_TIMEOUT: Final = 5.0  # seconds for a batch of answers to be taken by the kernel; protocol, registry §2.1

# Ours.
REQUEST_MAX: Final = 1 << 20  # bytes; the protocol allows 64 MiB, but the longest real request, a policy, has a few KiB
FRAME_TIMEOUT: Final = 30.0  # seconds from a request's first byte to its last; a megabyte at 35 kB/s
READ_MAX: Final = 16_384  # bytes per read; a hundred requests
BATCH_REQUESTS: Final = 8  # requests answered before others get a turn; about 1 ms when each needs a signature check
BATCH_BYTES: Final = 65_536  # answers joined into one write; the write deadline is meant for about this much
HELD_BYTES_MAX: Final = 64 << 20  # half requests and unsent answers of all connections together; then the asker is cut
RATE_RETRY: Final = 0.1  # seconds between two tries of a request over its source's rate; ten tokens come in it
RATE_PATIENCE: Final = 5.0  # seconds that a request over the rate waits before it is cut off; clients give up at 8


class Ending(Enum):
    """Why a connection ended."""

    CLIENT_CLOSED = "closed by the client"
    BROKEN = "broken"
    MALFORMED = "malformed request"  # too large ones included
    IDLE = "idle"
    SLOW_REQUEST = "slow request"
    UNSAVED = "store failed"  # what was asked cannot be confirmed
    UNREAD = "answers not read"
    RATE = "rate limit"
    MEMORY = "memory limit"
    REFUSED = "refused"  # answered with a final error
    TLS = "TLS handshake failed"
    FAILED = "internal error"
    STOPPED = "server stopped"


class _Ended(Exception):
    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


@attrs.define(eq=False)
class ByteBudget:
    """Bytes that all connections of a server may hold together."""

    limit: int = HELD_BYTES_MAX
    held: int = attrs.field(default=0, init=False)

    def move(self, old: int, new: int) -> bool:
        """Change one holder's share; False, and no change, if that would exceed the limit."""
        held = self.held - old + new
        if new > old and held > self.limit:
            return False
        self.held = held
        return True


@attrs.define(eq=False)
class Connection:
    """Serves one client. `run` says how it ended; it does not close the stream.

    Args:
      rates: request rate per source host; None: no limit for this client.
      budget: shared by all connections.
    """

    stream: trio.abc.Stream
    peer: PeerInfo
    registrar: Registrar
    rates: KeyedBuckets[str] | None
    budget: ByteBudget
    _decoder: FrameDecoder = attrs.field(factory=lambda: FrameDecoder(REQUEST_MAX), init=False)
    _request_since: float | None = attrs.field(default=None, init=False)  # when the first byte of a half request came
    _answers: list[bytes] = attrs.field(factory=list, init=False)  # not sent yet
    _answer_bytes: int = attrs.field(default=0, init=False)
    _promise: bool = attrs.field(default=False, init=False)  # one of them promises something
    _held: int = attrs.field(default=0, init=False)  # our share of the budget

    async def run(self) -> Ending:
        """Serve until the client leaves, misbehaves or is silent for too long."""
        try:
            dialect = await self._find_dialect()
            while True:
                await self._answer_complete_requests(dialect)
                self._decoder.feed(await self._read(len(self._decoder)))
        except _Ended as end:
            return end.ending
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return Ending.BROKEN
        except StoreError:
            return Ending.UNSAVED
        finally:
            self.budget.move(self._held, 0)

    async def _find_dialect(self) -> Dialect:
        """Learn the client's language from its first bytes."""
        start = b""
        while len(start) < len(MAGIC):
            start += await self._read(len(start))
        if not start.startswith(MAGIC):
            self._decoder.feed(start)
            return JSONDialect(self.registrar, self.peer)
        while len(start) < len(PREAMBLE):
            start += await self._read(len(start))
        version = start[len(MAGIC)]
        if version != VERSION:
            self._add(Answer(encode_error(f"unsupported wire version {version}"), final=True))
            await self._flush()
            raise _Ended(Ending.REFUSED)
        self._decoder.feed(start[len(PREAMBLE) :])
        return BinaryDialect(self.registrar, self.peer)

    async def _answer_complete_requests(self, dialect: Dialect) -> None:
        try:
            while (body := self._decoder.next_frame()) is not None:
                self._request_since = None
                if not self._within_rate():
                    await self._flush()
                    await self._wait_for_rate()
                answer = dialect.answer(body)
                self._add(answer)
                if answer.final:
                    await self._flush()
                    raise _Ended(Ending.REFUSED)
                if len(self._answers) >= BATCH_REQUESTS or self._answer_bytes >= BATCH_BYTES:
                    await self._flush()
        except DecodeError:
            await self._flush()  # what was asked before the nonsense gets its answer
            raise _Ended(Ending.MALFORMED) from None
        await self._flush()

    async def _read(self, partial: int) -> bytes:
        """Return the next bytes; `partial` are held already, of a request that is not complete."""
        self._hold(partial)
        now = trio.current_time()
        if partial == 0:
            deadline, ending = now + IDLE_TIMEOUT, Ending.IDLE
        else:
            # Counted from the request's first byte, so that a byte now and then does not keep it alive.
            self._request_since = now if self._request_since is None else self._request_since
            deadline, ending = self._request_since + FRAME_TIMEOUT, Ending.SLOW_REQUEST
        with trio.move_on_at(deadline):
            data = await self.stream.receive_some(READ_MAX)
            if not data:
                raise _Ended(Ending.CLIENT_CLOSED)
            return bytes(data)
        raise _Ended(ending)

    def _within_rate(self) -> bool:
        return self.rates is None or self.rates.take(source_of(self.peer.host), trio.current_time())

    async def _wait_for_rate(self) -> None:
        """Let a request wait for its turn. The reference cuts the connection at once, and the client comes back with more."""
        with trio.move_on_after(RATE_PATIENCE):
            while not self._within_rate():  # noqa: ASYNC110 - no event: tokens come with time, to whoever asks first
                await trio.sleep(RATE_RETRY)
            return
        raise _Ended(Ending.RATE)

    def _add(self, answer: Answer) -> None:
        self._answers.append(answer.data)
        self._answer_bytes += len(answer.data)
        self._promise |= answer.promise
        self._hold(len(self._decoder) + self._answer_bytes)

    async def _flush(self) -> None:
        """Send the answers, once everything in them is safe."""
        if not self._answers:
            return
        data, promise = b"".join(self._answers), self._promise
        self._answers.clear()
        self._answer_bytes, self._promise = 0, False
        await self.registrar.settle(promise=promise)
        with trio.move_on_after(WRITE_TIMEOUT):
            await self.stream.send_all(data)
            return
        raise _Ended(Ending.UNREAD)

    def _hold(self, size: int) -> None:
        if not self.budget.move(self._held, size):
            raise _Ended(Ending.MEMORY)
        self._held = size
