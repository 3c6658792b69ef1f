"""The two languages of the registry: bytes of one frame in, bytes of its answer out. No I/O.

JSON is what every 1.18.0 program speaks; the binary one is optional and begins with a magic number (`spec/registry.md` §2.1,
§2.3). Both ask the same registrar.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from pilot_trio.errors import DecodeError
from pilot_trio.proto.directory import PeerInfo, Refused
from pilot_trio.rendezvous.registrar import Registrar, promises
from pilot_trio.wire import canonical_json, framing, registry_binary
from pilot_trio.wire.registry import UNKNOWN_NODE, Message, decode_message
from pilot_trio.wire.registry_binary import (
    COUNT_MAX,
    BinaryType,
    Heartbeat,
    HeartbeatOk,
    Lookup,
    LookupOk,
    Resolve,
    ResolveOk,
)

_REPLICATION: Final = "subscribe_replication"  # refused, and the connection closed behind it; §9.3


class Answer(NamedTuple):
    """What to send."""

    data: bytes
    promise: bool = False  # it says that something was done: it may leave only when that is on disk
    final: bool = False  # the connection is closed behind it


class Dialect(Protocol):
    """How one connection speaks."""

    def answer(self, body: bytes) -> Answer:
        """Answer the body of one frame; raise `DecodeError` if the connection is to be closed without an answer."""
        ...


class JSONDialect:
    """Length-prefixed JSON objects."""

    def __init__(self, registrar: Registrar, peer: PeerInfo) -> None:
        self._registrar = registrar
        self._peer = peer

    def answer(self, body: bytes) -> Answer:
        """Answer one message."""
        request = decode_message(body)
        message = self._registrar.answer(request, self._peer)
        data = framing.encode_frame(canonical_json.dumps(message))
        return Answer(data, promises(request), final=request.get("type") == _REPLICATION)


class BinaryDialect:
    """Typed frames; requests that have no type of their own travel as JSON in a frame."""

    def __init__(self, registrar: Registrar, peer: PeerInfo) -> None:
        self._registrar = registrar
        self._peer = peer
        self._handlers: Final[dict[int, Callable[[bytes], Answer]]] = {
            BinaryType.JSON: self._json,
            BinaryType.HEARTBEAT: self._heartbeat,
            BinaryType.LOOKUP: self._lookup,
            BinaryType.RESOLVE: self._resolve,
        }

    def answer(self, body: bytes) -> Answer:
        """Answer one frame. Refusals carry their text unmasked; only an empty frame raises `DecodeError`."""
        if not body:
            raise DecodeError("frame without a type")
        handler = self._handlers.get(body[0])
        if handler is None:
            return _error(f"unknown message type 0x{body[0]:02x}")
        try:
            return handler(body[1:])
        except DecodeError as exc:
            return _error(str(exc))
        except Refused as exc:
            return _error(_binary_text(str(exc)))

    def _json(self, payload: bytes) -> Answer:
        try:
            request = decode_message(payload)
        except DecodeError as exc:
            return _error(f"json decode: {exc}")
        if request.get("type") == _REPLICATION:
            return _error("replication not supported over binary protocol")
        message = self._registrar.answer(request, self._peer)
        return _frame(BinaryType.JSON, canonical_json.dumps(message), promise=promises(request))

    def _heartbeat(self, payload: bytes) -> Answer:
        request = Heartbeat.decode(payload)
        message = self._ask({"type": "heartbeat", "node_id": request.node, "signature": _base64(request.signature)})
        answer = HeartbeatOk(message["time"], key_expiry_warning=message.get("key_expiry_warning", False))
        return _frame(BinaryType.HEARTBEAT_OK, answer.encode())

    def _lookup(self, payload: bytes) -> Answer:
        request = Lookup.decode(payload)
        message = self._ask({"type": "lookup", "node_id": request.node})
        answer = LookupOk(
            node=request.node,
            public=message["public"],
            networks=tuple(message["networks"][:COUNT_MAX]),
            public_key=base64.b64decode(message["public_key"]),
            hostname=message.get("hostname", ""),
            tags=tuple(message.get("tags", ())),
            real_addr=message.get("real_addr", ""),
        )
        return _frame(BinaryType.LOOKUP_OK, answer.encode())

    def _resolve(self, payload: bytes) -> Answer:
        request = Resolve.decode(payload)
        signature = _base64(request.signature)
        message = self._ask(
            {
                "type": "resolve",
                "node_id": request.node,
                "requester_id": request.requester,
                "signature": signature,
            }
        )
        answer = ResolveOk(
            node=request.node,
            real_addr=message["real_addr"],
            lan_addrs=tuple(message.get("lan_addrs", ())),
            key_age_days=message.get("key_age_days"),
        )
        return _frame(BinaryType.RESOLVE_OK, answer.encode())

    def _ask(self, request: Message) -> Message:
        return self._registrar.answer_unmasked(request, self._peer)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _frame(kind: BinaryType, payload: bytes, *, promise: bool = False) -> Answer:
    return Answer(registry_binary.encode_frame(kind, payload), promise)


def _error(text: str) -> Answer:
    return Answer(registry_binary.encode_error(text))


def _binary_text(text: str) -> str:
    """Return a refusal as binary clients know it: an unknown node reads `node 1: not found` there (§2.3)."""
    return text.removesuffix(UNKNOWN_NODE) + "not found" if text.endswith(f": {UNKNOWN_NODE}") else text
