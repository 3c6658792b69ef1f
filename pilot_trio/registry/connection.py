"""One TCP connection to the registry: open it, exchange a request for its answer (`spec/registry.md` §2.1)."""

from __future__ import annotations

import os
from typing import Final

import trio

from pilot_trio.errors import AuthenticationError, DecodeError, PilotError
from pilot_trio.net.network import Endpoint, Network
from pilot_trio.registry.tls import TLSPolicy
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder

DIAL_TIMEOUT: Final = 5.0  # seconds per attempt, TLS handshake included; protocol, `spec/registry.md` §2.5

_READ_SIZE: Final = 65_536  # bytes per read; answers are mostly far smaller


class ConnectionLost(PilotError):
    """The answer did not come because the connection ended; the request may or may not have been carried out."""


class DialFailed(PilotError):
    """No connection could be opened. `final`: trying again would end the same way."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Connection:
    """An open connection. One exchange at a time; after a failed or cancelled one only `close` makes sense."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        self.opened_at = trio.current_time()
        self.used_at = self.opened_at

    @property
    def age(self) -> float:
        """Seconds since it was opened."""
        return trio.current_time() - self.opened_at

    @property
    def in_step(self) -> bool:
        """False if the registry sent more than the answers that were asked for: the next one could not be told apart."""
        return len(self._decoder) == 0

    async def exchange(self, frame: bytes) -> bytes:
        """Send one request and return the body of its answer.

        Raises:
          ConnectionLost: the connection ended first.
          DecodeError: the answer is no frame.
        """
        try:
            await self._stream.send_all(frame)
        except trio.BrokenResourceError as exc:
            raise ConnectionLost("send: broken pipe") from exc
        except trio.ClosedResourceError as exc:
            raise ConnectionLost("registry client closed: request aborted") from exc
        while (body := self._decoder.next_frame()) is None:
            self._decoder.feed(await self._receive())
        if not body:
            raise DecodeError("malformed response (empty frame)")
        self.used_at = trio.current_time()
        return body

    async def _receive(self) -> bytes:
        try:
            data = await self._stream.receive_some(_READ_SIZE)
        except trio.BrokenResourceError as exc:
            raise ConnectionLost("recv: connection reset by peer") from exc
        except trio.ClosedResourceError as exc:
            raise ConnectionLost("registry client closed: request aborted") from exc
        if not data:
            raise ConnectionLost("recv: unexpected EOF" if len(self._decoder) else "recv: EOF")
        return bytes(data)

    async def close(self) -> None:
        """Close at once, without a farewell and without waiting, also in a cancelled task."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


async def dial(network: Network, endpoint: Endpoint, tls: TLSPolicy | None) -> Connection:
    """Open a connection within `DIAL_TIMEOUT`; raise `DialFailed` if that does not work. Cancellation leaves nothing open."""
    try:
        with trio.move_on_after(DIAL_TIMEOUT):
            stream = await network.open_tcp(endpoint)
            if tls is not None:
                stream = await tls.wrap(stream, endpoint.host)
            return Connection(stream)
    except OSError as exc:
        raise DialFailed(f"dial tcp {endpoint}: {_reason(exc)}") from exc
    except AuthenticationError as exc:
        raise DialFailed(str(exc), final=True) from exc
    raise DialFailed(f"dial tcp {endpoint}: i/o timeout")


def _reason(exc: OSError) -> str:
    """Return what went wrong in the words of the operating system; a name with several addresses has several causes."""
    cause = exc.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        exc = cause
    if exc.errno and isinstance(exc, ConnectionError):
        return f"connect: {os.strerror(exc.errno).lower()}"
    return exc.strerror or str(exc) or type(exc).__name__
