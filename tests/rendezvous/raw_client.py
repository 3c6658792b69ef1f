"""A registry client without any manners of its own: it sends the bytes that a test gives it."""

from __future__ import annotations

from typing import Any

import trio

from pilot_trio.crypto.identity import Identity
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import Network
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame
from pilot_trio.wire.registry import (
    decode_message,
    handshake_text,
    heartbeat_text,
    node_text,
    register_text,
    resolve_text,
)

ALPHA = Identity.from_seed(bytes(range(32)))
BETA = Identity.from_seed(bytes(range(32, 64)))


def frame(**message: Any) -> bytes:
    """Return one request as it travels."""
    return encode_frame(canonical_json.dumps(message))


def register(identity: Identity = ALPHA, listen_addr: str = "127.0.0.1:4000", **fields: Any) -> dict[str, Any]:
    signature = identity.sign_text(register_text(listen_addr, identity.public_key_b64))
    message = {"type": "register", "listen_addr": listen_addr, "public_key": identity.public_key_b64}
    return message | {"signature": signature, "version": "1.18.0"} | fields


def heartbeat(node: int, identity: Identity = ALPHA) -> dict[str, Any]:
    return {"type": "heartbeat", "node_id": node, "signature": identity.sign_text(heartbeat_text(node))}


def resolve(requester: int, node: int, identity: Identity) -> dict[str, Any]:
    signature = identity.sign_text(resolve_text(requester, node))
    return {"type": "resolve", "requester_id": requester, "node_id": node, "signature": signature}


def about_oneself(kind: str, node: int, identity: Identity = ALPHA, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "node_id": node, "signature": identity.sign_text(node_text(kind, node))} | fields


def request_handshake(asking: int, asked: int, identity: Identity) -> dict[str, Any]:
    signature = identity.sign_text(handshake_text(asking, asked))
    message = {"type": "request_handshake", "from_node_id": asking, "to_node_id": asked}
    return message | {"justification": "hi", "signature": signature}


class RawClient:
    """One connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder(REGISTRY_FRAME_MAX)

    @classmethod
    async def connect(cls, network: Network, to: Endpoint | None) -> RawClient:
        assert to is not None
        return cls(await network.open_tcp(to))

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive_body(self) -> bytes | None:
        """Return the next frame's body, None at the end of the stream."""
        while (body := self._decoder.next_frame()) is None:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return body

    async def receive(self) -> dict[str, Any] | None:
        body = await self.receive_body()
        return None if body is None else decode_message(body)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        await self.send(frame(**message))
        answer = await self.receive()
        assert answer is not None, "closed without an answer"
        return answer

    async def is_closed(self) -> bool:
        """Wait until something comes; say whether it was the end."""
        return await self.receive_body() is None

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)
