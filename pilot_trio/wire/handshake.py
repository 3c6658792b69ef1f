"""The trust handshake message: one JSON object on one stream to port 444 (`spec/services.md` §1.2)."""

from __future__ import annotations

import base64
import json
from enum import Enum
from typing import Any, Final, Protocol

import attrs

from pilot_trio.errors import DecodeError, LocalProtocolError
from pilot_trio.wire import canonical_json
from pilot_trio.wire.json_text import member, parse_object
from pilot_trio.wire.registry import handshake_text

ENCODED_MAX: Final = 1150  # bytes of a message that we send; others parse what their first read returns, one segment
RECEIVED_MAX: Final = 64 << 10  # bytes of a message that we read; protocol, `spec/services.md` §1.3

_U32_MAX: Final = 0xFFFFFFFF
_I64_MAX: Final = (1 << 63) - 1


class Signer(Protocol):
    """A key pair."""

    @property
    def public_key_b64(self) -> str: ...

    def sign(self, message: bytes) -> bytes: ...


class Kind(Enum):
    """What a message says."""

    REQUEST = "handshake_request"
    ACCEPT = "handshake_accept"
    REJECT = "handshake_reject"
    REVOKE = "handshake_revoke"


@attrs.frozen
class HandshakeMessage:
    """One message. `type` may be a text that is no `Kind`: receivers ignore those."""

    type: str
    node_id: int
    public_key: str = ""  # base64; empty only in messages that other programs send
    justification: str = ""
    signature: str = ""  # base64, over `handshake:<sender>:<receiver>`: the same for every message between the two
    reason: str = ""
    timestamp: int = 0  # Unix seconds

    def encode(self) -> bytes:
        """Return the bytes of the message, members in the protocol's order."""
        text = json.dumps(attrs.asdict(self), ensure_ascii=False, separators=(",", ":"))
        return canonical_json.escape(text)

    @classmethod
    def decode(cls, data: bytes) -> HandshakeMessage:
        """Read a message: members in any order, unknown ones ignored, missing ones empty; raise `DecodeError`."""
        record = parse_object(data)
        return cls(
            type=member(record, "type", str, ""),
            node_id=_integer(record, "node_id", 0, _U32_MAX),
            public_key=member(record, "public_key", str, ""),
            justification=member(record, "justification", str, ""),
            signature=member(record, "signature", str, ""),
            reason=member(record, "reason", str, ""),
            timestamp=_integer(record, "timestamp", -_I64_MAX - 1, _I64_MAX),
        )


def make_message(
    kind: Kind, identity: Signer, sender: int, receiver: int, now: float, *, justification: str = "", reason: str = ""
) -> HandshakeMessage:
    """Return a signed message that fits into one segment; the free text is cut where it does not.

    Args:
      kind: what it says.
      identity: the sender's key pair.
      sender: own node id.
      receiver: the peer's node id.
      now: Unix seconds.
      justification: of a request.
      reason: of a rejection or revocation.
    """
    bare = HandshakeMessage(
        type=kind.value,
        node_id=sender,
        public_key=identity.public_key_b64,
        signature=base64.b64encode(identity.sign(handshake_text(sender, receiver).encode())).decode(),
        timestamp=int(now),
    )
    room = ENCODED_MAX - len(bare.encode())
    if room < 0:
        raise LocalProtocolError(f"a handshake of node {sender} does not fit into {ENCODED_MAX} bytes")
    reason = cut_to_encoded(reason, room)
    justification = cut_to_encoded(justification, room - _encoded_size(reason))
    return attrs.evolve(bare, justification=justification, reason=reason)


def cut_to_encoded(text: str, room: int) -> str:
    """Return the longest leading part of `text` that takes at most `room` bytes inside a JSON string."""
    used = 0
    for index, character in enumerate(text):
        used += _encoded_size(character)
        if used > room:
            return text[:index]
    return text


class MessageBoundary:
    """Finds the end of a JSON object in a byte stream without parsing it again for every chunk.

    Senders are asked to put the whole message into one segment, but some do not; so a receiver feeds this until it says
    that the object is complete, and parses once.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True once the outermost object or array has been closed."""
        for byte in data:
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == 0x5C:  # backslash
                    self._escaped = True
                elif byte == 0x22:
                    self._in_string = False
            elif byte == 0x22:
                self._in_string = True
            elif byte in b"{[":
                self._depth += 1
            elif byte in b"}]":
                self._depth -= 1
                if self._depth <= 0:
                    return True
        return False


def _integer(record: dict[str, Any], key: str, minimum: int, maximum: int) -> int:
    value: int = member(record, key, int, 0)
    if not minimum <= value <= maximum:
        raise DecodeError(f"json: cannot unmarshal number {value} into field {key}")
    return value


def _encoded_size(text: str) -> int:
    return len(canonical_json.escape(json.dumps(text, ensure_ascii=False))) - 2  # without the quotes
