"""The registry's binary protocol (`spec/registry.md` §2.3), optional: the same server speaks it behind `PREAMBLE`.

A frame is `u32 length` (of type byte and payload), `u8 type`, payload; all integers big-endian. JSON requests travel in
it too, as type `JSON` without an inner length.

Decoders take a payload and raise `DecodeError` and nothing else; those of requests with the text that the server puts
into its error frame. The values refuse what cannot be sent, so encoders cannot fail.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, Final

import attrs

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.errors import DecodeError, LocalProtocolError

MAGIC: Final = b"PILT"  # the first four bytes of a binary client, where a JSON client sends a length
VERSION: Final = 1  # of the binary protocol; protocol, §2.3
PREAMBLE: Final = MAGIC + bytes([VERSION])  # sent once by the client; there is no acknowledgement
SIGNATURE_SIZE: Final = 64  # bytes; Ed25519, raw
ERROR_TEXT_MAX: Final = 65_000  # bytes; protocol, §2.3
COUNT_MAX: Final = 1024  # networks or addresses in one answer; protocol, §2.3: clients refuse more
SHORT_MAX: Final = 0xFF  # bytes of a field behind a u8 length; longer ones are cut
LONG_MAX: Final = 0xFFFF  # bytes of a field behind a u16 length; longer ones are cut
KEY_AGE_UNKNOWN: Final = 0xFFFF_FFFF  # days; protocol, §2.3
KEY_EXPIRY_WARNING: Final = 0x01  # flag of a heartbeat's answer; protocol, §2.3
PUBLIC: Final = 0x01  # flag of a lookup's answer; protocol, §2.3


class BinaryType(IntEnum):
    """Type bytes; an answer is its request with the high bit set."""

    JSON = 0x00
    HEARTBEAT = 0x01
    LOOKUP = 0x02
    RESOLVE = 0x03
    HEARTBEAT_OK = 0x81
    LOOKUP_OK = 0x82
    RESOLVE_OK = 0x83
    ERROR = 0xFF


#   heartbeat     node id (u32), signature (64)
#   lookup        node id (u32)
#   resolve       node id, requester id (u32 each), signature (64)
#   heartbeat ok  unix seconds (u64), flags (u8)
#   lookup ok     node id (u32), flags (u8), reserved (u32), count (u16), count network ids (u16 each),
#                 short public key, short hostname, count (u8), count short tags, long address, short external id
#   resolve ok    node id (u32), long address, count (u16), count long LAN addresses, key age (u32, days)
#   error         length (u16), text
#   short, long   length (u8, u16), bytes
_HEADER = struct.Struct("!IB")
_HEARTBEAT = struct.Struct(f"!I{SIGNATURE_SIZE}s")
_LOOKUP = struct.Struct("!I")
_RESOLVE = struct.Struct(f"!II{SIGNATURE_SIZE}s")
_HEARTBEAT_OK = struct.Struct("!QB")
_LOOKUP_OK = struct.Struct("!IBI")
_U8 = struct.Struct("!B")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
assert _HEADER.size == 5 and _HEARTBEAT.size == 68 and _RESOLVE.size == 72
assert _HEARTBEAT_OK.size == 9 and _LOOKUP_OK.size == 9


def _check(condition: bool, text: str) -> None:
    if not condition:
        raise LocalProtocolError(text)


@attrs.frozen
class Heartbeat:
    """I am alive; the signature is over `heartbeat:<id>`."""

    node: NodeId
    signature: bytes = attrs.field(repr=bytes.hex)

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.node <= 0xFFFF_FFFF, f"node id {self.node}")
        _check(len(self.signature) == SIGNATURE_SIZE, f"signature of {len(self.signature)} bytes")

    def encode(self) -> bytes:
        """Return the payload."""
        return _HEARTBEAT.pack(self.node, self.signature)

    @classmethod
    def decode(cls, payload: bytes) -> Heartbeat:
        """Read the payload."""
        if len(payload) < _HEARTBEAT.size:
            raise DecodeError(f"heartbeat request too short: {len(payload)} bytes")
        return cls(*_HEARTBEAT.unpack_from(payload))


@attrs.frozen
class Lookup:
    """Who is this node?"""

    node: NodeId

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.node <= 0xFFFF_FFFF, f"node id {self.node}")

    def encode(self) -> bytes:
        """Return the payload."""
        return _LOOKUP.pack(self.node)

    @classmethod
    def decode(cls, payload: bytes) -> Lookup:
        """Read the payload."""
        if len(payload) < _LOOKUP.size:
            raise DecodeError(f"lookup request too short: {len(payload)} bytes")
        return cls(*_LOOKUP.unpack_from(payload))


@attrs.frozen
class Resolve:
    """Where is this node? The signature is over `resolve:<requester>:<node>`."""

    node: NodeId
    requester: NodeId
    signature: bytes = attrs.field(repr=bytes.hex)

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.node <= 0xFFFF_FFFF, f"node id {self.node}")
        _check(0 <= self.requester <= 0xFFFF_FFFF, f"requester id {self.requester}")
        _check(len(self.signature) == SIGNATURE_SIZE, f"signature of {len(self.signature)} bytes")

    def encode(self) -> bytes:
        """Return the payload."""
        return _RESOLVE.pack(self.node, self.requester, self.signature)

    @classmethod
    def decode(cls, payload: bytes) -> Resolve:
        """Read the payload."""
        if len(payload) < _RESOLVE.size:
            raise DecodeError(f"resolve request too short: {len(payload)} bytes")
        return cls(*_RESOLVE.unpack_from(payload))


@attrs.frozen
class HeartbeatOk:
    """The registry's clock, and whether the key expires within a day."""

    time: int  # unix seconds
    key_expiry_warning: bool = False

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.time < 1 << 64, f"time {self.time}")

    def encode(self) -> bytes:
        """Return the payload."""
        return _HEARTBEAT_OK.pack(self.time, KEY_EXPIRY_WARNING if self.key_expiry_warning else 0)

    @classmethod
    def decode(cls, payload: bytes) -> HeartbeatOk:
        """Read the payload."""
        if len(payload) < _HEARTBEAT_OK.size:
            raise DecodeError(f"heartbeat answer too short: {len(payload)} bytes")
        time, flags = _HEARTBEAT_OK.unpack_from(payload)
        return cls(time, bool(flags & KEY_EXPIRY_WARNING))


@attrs.frozen
class LookupOk:
    """What the registry says of a node. Over-long texts are cut on the wire, where their length has one byte."""

    node: NodeId
    public: bool
    networks: tuple[NetworkId, ...]
    public_key: bytes = attrs.field(repr=bytes.hex)
    hostname: str = ""
    tags: tuple[str, ...] = ()
    real_addr: str = ""  # host:port; empty unless public
    external_id: str = ""

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.node <= 0xFFFF_FFFF, f"node id {self.node}")
        _check(all(0 <= network <= 0xFFFF for network in self.networks), f"network ids {self.networks}")
        _check(len(self.networks) <= COUNT_MAX, f"{len(self.networks)} networks")
        _check(len(self.tags) <= SHORT_MAX, f"{len(self.tags)} tags")
        _check(len(self.public_key) <= SHORT_MAX, f"public key of {len(self.public_key)} bytes")

    def encode(self) -> bytes:
        """Return the payload."""
        count = len(self.networks)
        return b"".join(
            (
                _LOOKUP_OK.pack(self.node, PUBLIC if self.public else 0, 0),
                _U16.pack(count) + struct.pack(f"!{count}H", *self.networks),
                _short(self.public_key),
                _short(_text(self.hostname)),
                _U8.pack(len(self.tags)),
                *(_short(_text(tag)) for tag in self.tags),
                _long(_text(self.real_addr)),
                _short(_text(self.external_id)),
            )
        )

    @classmethod
    def decode(cls, payload: bytes) -> LookupOk:
        """Read the payload; trailing bytes are ignored."""
        reader = _Reader(payload, "lookup answer")
        node, flags, _reserved = reader.unpack(_LOOKUP_OK)
        networks = reader.unpack(struct.Struct(f"!{reader.count(_U16)}H"))
        public_key, hostname = reader.sized(_U8), reader.text(_U8)
        tags = tuple([reader.text(_U8) for _ in range(reader.count(_U8))])
        return cls(
            node, bool(flags & PUBLIC), networks, public_key, hostname, tags, reader.text(_U16), reader.text(_U8)
        )


@attrs.frozen
class ResolveOk:
    """Where a node is."""

    node: NodeId
    real_addr: str  # host:port
    lan_addrs: tuple[str, ...] = ()  # host:port each
    key_age_days: int | None = None  # None: unknown

    def __attrs_post_init__(self) -> None:
        _check(0 <= self.node <= 0xFFFF_FFFF, f"node id {self.node}")
        _check(len(self.lan_addrs) <= COUNT_MAX, f"{len(self.lan_addrs)} LAN addresses")
        _check(0 <= (self.key_age_days or 0) < KEY_AGE_UNKNOWN, f"key age {self.key_age_days}")

    def encode(self) -> bytes:
        """Return the payload."""
        age = KEY_AGE_UNKNOWN if self.key_age_days is None else self.key_age_days
        lan = b"".join(_long(_text(address)) for address in self.lan_addrs)
        head = _U32.pack(self.node) + _long(_text(self.real_addr)) + _U16.pack(len(self.lan_addrs))
        return head + lan + _U32.pack(age)

    @classmethod
    def decode(cls, payload: bytes) -> ResolveOk:
        """Read the payload; trailing bytes (some servers append a public key) are ignored."""
        reader = _Reader(payload, "resolve answer")
        (node,) = reader.unpack(_U32)
        real_addr = reader.text(_U16)
        lan_addrs = tuple([reader.text(_U16) for _ in range(reader.count(_U16))])
        (age,) = reader.unpack(_U32)
        return cls(node, real_addr, lan_addrs, None if age == KEY_AGE_UNKNOWN else age)


def encode_frame(kind: int, payload: bytes) -> bytes:
    """Return a complete frame."""
    return _HEADER.pack(1 + len(payload), kind) + payload


def encode_error(text: str) -> bytes:
    """Return a complete error frame; over-long texts are cut."""
    encoded = _text(text)[:ERROR_TEXT_MAX]
    return encode_frame(BinaryType.ERROR, _U16.pack(len(encoded)) + encoded)


def decode_error(payload: bytes) -> str:
    """Return the text of an error frame's payload; a length beyond its end is tolerated, as is no text at all."""
    if len(payload) < _U16.size:
        return "unknown error"
    (length,) = _U16.unpack_from(payload)
    return payload[_U16.size : _U16.size + length].decode("utf-8", "replace")


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _short(data: bytes) -> bytes:
    return _U8.pack(min(len(data), SHORT_MAX)) + data[:SHORT_MAX]


def _long(data: bytes) -> bytes:
    return _U16.pack(min(len(data), LONG_MAX)) + data[:LONG_MAX]


class _Reader:
    """Take fields from a payload one after the other; whatever is missing is a `DecodeError`."""

    def __init__(self, payload: bytes, what: str) -> None:
        self._payload = payload
        self._offset = 0
        self._what = what

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def count(self, layout: struct.Struct) -> int:
        count: int
        (count,) = self.unpack(layout)
        if count > COUNT_MAX:
            raise DecodeError(f"{self._what} counts {count} items (limit {COUNT_MAX})")
        return count

    def sized(self, layout: struct.Struct) -> bytes:
        (length,) = self.unpack(layout)
        return self._take(length)

    def text(self, layout: struct.Struct) -> str:
        return self.sized(layout).decode("utf-8", "replace")

    def _take(self, size: int) -> bytes:
        taken = self._payload[self._offset : self._offset + size]
        if len(taken) < size:
            raise DecodeError(f"{self._what} too short: {len(self._payload)} bytes")
        self._offset += size
        return taken
