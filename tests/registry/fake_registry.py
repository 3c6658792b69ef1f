"""A registry that does what a test tells it to, on any network."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from pilot_trio.errors import DecodeError
from pilot_trio.net.network import Endpoint, Network
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame
from pilot_trio.wire.registry import Message, decode_message

REGISTRY = Endpoint("127.0.0.1", 9000)


class Hang(Exception):
    """Raised by a handler: never answer this one."""


class Close(Exception):
    """Raised by a handler: close the connection without an answer."""


@attrs.frozen
class Seen:
    connection: int  # counted from 1
    at: float
    message: Message

    @property
    def type(self) -> str:
        return str(self.message["type"])


def accept_all(message: Message) -> Message:
    return {"type": f"{message['type']}_ok"}


Handler = Callable[[Message], "Message | bytes"]


@attrs.define(eq=False)
class FakeRegistry:
    """Answers with `handler`: a message, raw bytes to send instead of a frame, or one of the exceptions above."""

    handler: Handler = accept_all
    delay: float = 0.0
    seen: list[Seen] = attrs.field(factory=list)
    accepted: int = 0
    closed: int = 0
    _scope: trio.CancelScope | None = None

    @property
    def types(self) -> list[str]:
        return [seen.type for seen in self.seen]

    def of(self, type_: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.type == type_]

    async def serve(self, listener: trio.abc.Listener[Any]) -> None:
        """Serve until `stop`; then every connection and the listener are closed."""
        with trio.CancelScope() as self._scope:
            await trio.serve_listeners(self._serve_one, [listener])

    def stop(self) -> None:
        assert self._scope is not None
        self._scope.cancel()

    async def _serve_one(self, stream: trio.abc.Stream) -> None:
        self.accepted += 1
        number = self.accepted
        decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(65_536):
                    decoder.feed(data)
                    while (body := decoder.next_frame()) is not None:
                        await self._answer(stream, number, decode_message(body))
        except (Close, DecodeError):
            pass
        finally:
            self.closed += 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.abc.Stream, number: int, message: Message) -> None:
        self.seen.append(Seen(number, trio.current_time(), message))
        if self.delay:
            await trio.sleep(self.delay)
        try:
            answer: Any = self.handler(message)
        except Hang:
            await trio.sleep_forever()
        await stream.send_all(answer if isinstance(answer, bytes) else encode_frame(canonical_json.dumps(answer)))


@asynccontextmanager
async def running(network: Network, registry: FakeRegistry, at: Endpoint = REGISTRY) -> AsyncIterator[FakeRegistry]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.serve, await network.listen_tcp(at))
        try:
            yield registry
        finally:
            nursery.cancel_scope.cancel()
