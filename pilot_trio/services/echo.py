"""The echo service on port 7: what `ping`, `traceroute` and `bench` talk to (`spec/services.md` §2).

Every chunk comes back as it came, without framing. A chunk that starts with `TRCE` is a question for the time:

    offset  size  field
    0       4     magic "TRCE"
    4       8     the sender's clock (u64, nanoseconds), returned as it came
    12      8     our clock (u64, nanoseconds since the epoch), in the answer; what a request has here is discarded

It is there to measure round trips, so it adds nothing to them: an echo is written in the very call that says that there
is something to read, and travels with the acknowledgment. A task is started only for a peer that does not read.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

import trio

ECHO_WRITE_TIMEOUT: Final = 30.0  # seconds that a peer may leave an echo unread; protocol, `spec/services.md` §2
ECHO_CHUNK_MAX: Final = 65_536  # bytes echoed at a time; also all that a connection holds here

_TRACE_MAGIC: Final = b"TRCE"
_TRACE_REQUEST_SIZE: Final = 12
_CLOCK = struct.Struct("!Q")
assert _CLOCK.size == 8

_log = logging.getLogger("pilot_trio.echo")


class EchoConnection(Protocol):
    """What the service needs of a connection; `daemon.connection` says what each does."""

    @property
    def remote(self) -> object: ...
    def attach(self, consumer: Callable[[], None], /) -> None: ...
    def detach(self) -> None: ...
    @property
    def has_input(self) -> bool: ...
    def receive_nowait(self, max_bytes: int, /) -> bytes: ...
    def write_nowait(self, data: bytes, /) -> int: ...
    async def write_all(self, data: memoryview, /) -> None: ...
    def close(self) -> None: ...


C = TypeVar("C", bound=EchoConnection)
C_co = TypeVar("C_co", bound=EchoConnection, covariant=True)


class EchoListener(Protocol[C_co]):
    """What the service needs of a listener."""

    def attach(self, consumer: Callable[[], None], /) -> None: ...
    def accept_nowait(self) -> C_co: ...
    def close(self) -> None: ...


async def serve_echo(
    listener: EchoListener[C],
    *,
    admit: Callable[[C], bool] | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Echo on every connection of `listener`, until cancelled.

    Args:
      listener: where connections arrive; closed when this ends.
      admit: says whether a peer may use the service; one that may not is closed at once. None admits all.
      clock_ns: nanoseconds since the epoch, for `TRCE`.
      task_status: reports the start.
    """

    def accept() -> None:
        try:
            while True:
                _serve(listener.accept_nowait())
        except (trio.WouldBlock, trio.ClosedResourceError):
            return

    def _serve(connection: C) -> None:
        try:
            if admit is None or admit(connection):
                connection.attach(_Echo(connection, nursery, clock_ns))
                return
            _log.debug("echo refused: peer not trusted (private node)", extra=_remote(connection))
        except Exception:
            # The border of one peer: whatever goes wrong with it is no reason to stop serving the others.
            _log.exception("echo failed", extra=_remote(connection))
        connection.close()

    async with trio.open_nursery() as nursery:
        listener.attach(accept)
        accept()  # those who were there before
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            listener.close()


class _Echo(Generic[C]):
    """Echoes on one connection until its end; every way in which the peer can end it is a normal one."""

    __slots__ = ("_clock_ns", "_connection", "_nursery", "_waiting")

    def __init__(self, connection: C, nursery: trio.Nursery, clock_ns: Callable[[], int]) -> None:
        self._connection = connection
        self._nursery = nursery
        self._clock_ns = clock_ns
        self._waiting = False  # until the peer reads

    def __call__(self) -> None:
        connection = self._connection
        try:
            while not self._waiting:
                chunk = connection.receive_nowait(ECHO_CHUNK_MAX)
                if not chunk:
                    self._end()
                    return
                echo = answer(chunk, self._clock_ns)
                taken = connection.write_nowait(echo)
                if taken < len(echo):
                    self._waiting = True
                    self._nursery.start_soon(self._finish, memoryview(echo)[taken:])
                elif not connection.has_input:
                    return
        except trio.WouldBlock:
            return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()

    async def _finish(self, rest: memoryview) -> None:
        """Write what the peer has no room for, or give up."""
        try:
            with trio.move_on_after(ECHO_WRITE_TIMEOUT) as scope:
                await self._connection.write_all(rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()
            return
        if scope.cancelled_caught:
            _log.debug("echo ended: peer does not read", extra=_remote(self._connection))
            self._end()
            return
        self._waiting = False
        self()

    def _end(self) -> None:
        self._connection.detach()
        self._connection.close()


def answer(chunk: bytes, clock_ns: Callable[[], int]) -> bytes:
    """Return what goes back for one chunk: itself, or the 20 bytes of a `TRCE` answer."""
    if len(chunk) < _TRACE_REQUEST_SIZE or not chunk.startswith(_TRACE_MAGIC):
        return chunk
    return chunk[:_TRACE_REQUEST_SIZE] + _CLOCK.pack(clock_ns())


def _remote(connection: EchoConnection) -> dict[str, dict[str, str]]:
    return {"kv": {"remote": str(connection.remote)}}
