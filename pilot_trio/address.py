"""Overlay addresses: 48 bits, network id then node id (`spec/transport.md` §1).

Text form `N:NNNN.HHHH.LLLL`: the network in decimal, then again as four hex digits, then the two halves of the node id.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple, NewType

from pilot_trio.errors import DecodeError

NodeId = NewType("NodeId", int)
NetworkId = NewType("NetworkId", int)
Port = NewType("Port", int)
ConnId = NewType("ConnId", int)

BACKBONE: Final = NetworkId(0)  # every node is a member; `spec/transport.md` §1
BROADCAST_NODE: Final = NodeId(0xFFFFFFFF)  # refused as an ordinary destination; `spec/transport.md` §7.3
EPHEMERAL_FIRST: Final = 49152  # first of 16,384 ephemeral ports; `spec/transport.md` §1.1
PORT_MAX: Final = 0xFFFF  # highest port; protocol, `spec/transport.md` §1.1

_ADDRESS = struct.Struct("!HI")
assert _ADDRESS.size == 6
_DECIMAL = re.compile(r"[0-9]+", re.ASCII)
_HEX4 = re.compile(r"[0-9a-fA-F]{4}", re.ASCII)


class Address(NamedTuple):
    """One node as seen from one network."""

    network: NetworkId
    node: NodeId

    def __str__(self) -> str:
        net, node = self
        return f"{net}:{net:04X}.{node >> 16:04X}.{node & 0xFFFF:04X}"

    def pack(self) -> bytes:
        """Return the six bytes used on the wire."""
        return _ADDRESS.pack(*self)

    @classmethod
    def unpack_from(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Address:
        """Read an address from six bytes at `offset`; the caller has checked the length."""
        net, node = _ADDRESS.unpack_from(data, offset)
        return cls(net, node)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse the text form; raise `DecodeError` with the protocol's text (`spec/transport.md` §1) if it is not one."""
        left, colon, right = text.partition(":")
        if not colon:
            raise DecodeError(f"invalid address: {quote(text)} (expected N:XXXX.YYYY.YYYY)")
        network = _parse_decimal(left, 0xFFFF, "invalid network ID")
        groups = right.split(".")
        if len(groups) != 3:
            raise DecodeError(f"invalid address: {quote(right)} (expected 3 dot-separated hex groups)")
        for group in groups:
            if len(group.encode("utf-8", "surrogateescape")) != 4:
                raise DecodeError(f"invalid hex group: {quote(group)} (expected 4 digits)")
        if _parse_hex(groups[0]) != network:
            raise DecodeError(f"network mismatch: decimal {network} != hex 0x{_parse_hex(groups[0]):04X}")
        return cls(NetworkId(network), NodeId(_parse_hex(groups[1]) << 16 | _parse_hex(groups[2])))


class SocketAddress(NamedTuple):
    """An address and a port, written `N:NNNN.HHHH.LLLL:PORT`."""

    address: Address
    port: Port

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Parse the text form; raise `DecodeError` with the protocol's text if it is not one."""
        left, colon, right = text.rpartition(":")
        if not colon:
            raise DecodeError(f"invalid socket address: {quote(text)} (no port)")
        address = Address.parse(left)
        return cls(address, Port(_parse_decimal(right, PORT_MAX, "invalid port")))


def quote(text: str) -> str:
    """Return `text` in double quotes, escaped as the protocol's error texts escape it."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f"}
    escapes["\v"] = "\\v"
    return '"' + "".join(escapes.get(c) or _escape(c) for c in text) + '"'


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _parse_decimal(text: str, maximum: int, what: str) -> int:
    prefix = f"{what}: {quote(text)}: strconv.ParseUint: parsing {quote(text)}: "
    if not _DECIMAL.fullmatch(text):
        raise DecodeError(prefix + "invalid syntax")
    # Longer digit strings are out of range whatever they say; int() on attacker-sized input would be slow.
    if len(text.lstrip("0")) > 10 or int(text) > maximum:
        raise DecodeError(prefix + "value out of range")
    return int(text)


def _parse_hex(group: str) -> int:
    if not _HEX4.fullmatch(group):
        quoted = quote(group)
        raise DecodeError(f"invalid hex group: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax")
    return int(group, 16)
