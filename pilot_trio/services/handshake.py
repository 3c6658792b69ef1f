"""The handshake service on port 444: reads one message per stream and hands it on (`spec/services.md` §1.3).

Nothing is ever answered on the stream; answers are new streams the other way. What a message means is decided
elsewhere (`daemon/trust.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, TypeVar

import trio

from pilot_trio.errors import DecodeError
from pilot_trio.wire.handshake import RECEIVED_MAX, HandshakeMessage, MessageBoundary

READ_TIMEOUT: Final = 10.0  # seconds for the whole message; protocol, §1.3
LINGER: Final = 0.5  # seconds until a stream is closed after its message; protocol, §1.2, §1.3
STREAMS_MAX: Final = 64  # messages being read at once; further streams wait in the port's backlog
STREAMS_PER_PEER_MAX: Final = 8  # of them from one peer; its further streams are closed, or it could hold all of them

_log = logging.getLogger("pilot_trio.trust")

AnyStream = TypeVar("AnyStream", bound=trio.abc.Stream)


async def serve_handshakes(
    listener: trio.abc.Listener[AnyStream],
    receive: Callable[[HandshakeMessage, AnyStream], Awaitable[None]],
    *,
    peer_of: Callable[[AnyStream], Hashable] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read messages from `listener`'s streams until cancelled; closes the listener.

    Args:
      listener: any Trio listener.
      receive: called with each message and its stream; has to check both.
      peer_of: names the peer of a stream; None: every stream is another peer's.
      task_status: reports the start.
    """
    slots = trio.Semaphore(STREAMS_MAX)
    reading: Counter[Hashable] = Counter()  # streams by peer

    async def serve(stream: AnyStream) -> None:
        peer = stream if peer_of is None else peer_of(stream)
        reading[peer] += 1
        try:
            async with stream:
                if reading[peer] <= STREAMS_PER_PEER_MAX:
                    await _serve_one(stream, receive)
        except Exception:
            # The border of one peer: whatever goes wrong with it is no reason to stop serving the others.
            _log.exception("handshake failed")
        finally:
            reading[peer] -= 1
            if not reading[peer]:
                del reading[peer]
            slots.release()

    async with listener, trio.open_nursery() as nursery:
        task_status.started()
        while True:
            await slots.acquire()
            nursery.start_soon(serve, await listener.accept())


async def read_message(stream: trio.abc.Stream) -> HandshakeMessage:
    """Read a message as far as it reaches: complete JSON, end of stream, or `RECEIVED_MAX` bytes.

    Raises:
      DecodeError: what arrived is no message.
      trio.BrokenResourceError: the stream was reset.
    """
    data = bytearray()
    boundary = MessageBoundary()
    while len(data) < RECEIVED_MAX:
        chunk = await stream.receive_some(RECEIVED_MAX - len(data))
        data += chunk
        if not chunk or boundary.feed(bytes(chunk)):
            break
    return HandshakeMessage.decode(bytes(data))


async def close_later(stream: trio.abc.Stream) -> None:
    """Close a stream on which a message was written or read, once the other side had time for it."""
    async with stream:
        await trio.sleep(LINGER)


async def _serve_one(stream: AnyStream, receive: Callable[[HandshakeMessage, AnyStream], Awaitable[None]]) -> None:
    message = None
    with trio.move_on_after(READ_TIMEOUT):
        try:
            message = await read_message(stream)
        except (DecodeError, trio.BrokenResourceError) as exc:
            _log.debug("handshake message unreadable", extra={"kv": {"error": str(exc)}})
    if message is not None:
        await receive(message, stream)
        await trio.sleep(LINGER)
