"""The echo service on port 7: what `ping`, `traceroute` and `bench` talk to (`spec/services.md` §2).

Every chunk comes back as it came, without framing. A chunk that starts with `TRCE` is a question for the time:

    offset  size  field
    0       4     magic "TRCE"
    4       8     the sender's clock (u64, nanoseconds), returned as it came
    12      8     our clock (u64, nanoseconds since the epoch), in the answer; what a request has here is discarded
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

ECHO_PORT: Final = 7  # protocol, `spec/transport.md` §1.1
ECHO_WRITE_TIMEOUT: Final = 30.0  # seconds that a peer may leave an echo unread; protocol, `spec/services.md` §2
ECHO_CHUNK_MAX: Final = 65_536  # bytes echoed at a time; also all that a connection holds here

_TRACE_MAGIC: Final = b"TRCE"
_TRACE_REQUEST_SIZE: Final = 12
_CLOCK = struct.Struct("!Q")
assert _CLOCK.size == 8

_log = logging.getLogger("pilot_trio.echo")

AnyStream = TypeVar("AnyStream", bound=trio.abc.Stream)


async def serve_echo(
    listener: trio.abc.Listener[AnyStream],
    *,
    admit: Callable[[AnyStream], bool] | None = None,
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

    async def serve(stream: AnyStream) -> None:
        async with stream:
            try:
                if admit is None or admit(stream):
                    await echo(stream, clock_ns=clock_ns)
                else:
                    _log.debug("echo refused: peer not trusted (private node)", extra=_remote(stream))
            except Exception:
                # The border of one peer: whatever goes wrong with it is no reason to stop serving the others.
                _log.exception("echo failed", extra=_remote(stream))

    task_status.started()
    await trio.serve_listeners(serve, [listener])


async def echo(stream: trio.abc.Stream, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
    """Echo on one stream until its end, or until an echo is left unread for `ECHO_WRITE_TIMEOUT`.

    Every way in which the peer can end the stream is a normal end here.
    """
    try:
        while chunk := await stream.receive_some(ECHO_CHUNK_MAX):
            with trio.move_on_after(ECHO_WRITE_TIMEOUT) as scope:
                await stream.send_all(answer(chunk, clock_ns))
            if scope.cancelled_caught:
                _log.debug("echo ended: peer does not read", extra=_remote(stream))
                return
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def answer(chunk: bytes | bytearray, clock_ns: Callable[[], int]) -> bytes | bytearray:
    """Return what goes back for one chunk: itself, or the 20 bytes of a `TRCE` answer."""
    if len(chunk) < _TRACE_REQUEST_SIZE or not chunk.startswith(_TRACE_MAGIC):
        return chunk
    return bytes(chunk[:_TRACE_REQUEST_SIZE]) + _CLOCK.pack(clock_ns())


def _remote(stream: Any) -> dict[str, dict[str, str]]:
    return {"kv": {"remote": str(getattr(stream, "remote", ""))}}
