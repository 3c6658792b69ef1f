"""Overlay packets: what travels inside a tunnel frame (`spec/transport.md` §2).

offset  size  field
0       1     version (high nibble, 1) and flags (low nibble)
1       1     protocol
2       2     payload length
4       6     source address
10      6     destination address
16      2     source port
18      2     destination port
20      4     sequence number
24      4     acknowledgment number
28      2     window, in segments
30      4     CRC-32 of the header with this field zero, then the payload
34      n     payload
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple
from zlib import crc32

from pilot_trio.address import Address, SocketAddress
from pilot_trio.errors import DecodeError

VERSION: Final = 1  # the only one; protocol
SYN: Final = 0x1  # flag; protocol
ACK: Final = 0x2  # flag; protocol
FIN: Final = 0x4  # flag; protocol
RST: Final = 0x8  # flag; protocol
STREAM: Final = 1  # protocol number; protocol
DATAGRAM: Final = 2  # protocol number; protocol
CONTROL: Final = 3  # protocol number; protocol
HEADER_SIZE: Final = 34  # bytes; protocol
PAYLOAD_MAX: Final = 0xFFFF  # bytes; protocol, `spec/transport.md` §2

FLOWS_MAX: Final = 1024  # address and port fields remembered as read; a stream's packets all have the same

_Flow = tuple[Address, Address, int, int]
_new = tuple.__new__
_flows: dict[bytes, _Flow] = {}  # a cache of values, so one for all is harmless

_HEADER = struct.Struct("!BBHHIHIHHIIHI")
_VARYING = struct.Struct("!BBH16xIIHI")  # the header without addresses and ports
_FLOW = struct.Struct("!HIHIHH")  # these
_FLOW_AT, _FLOW_END = 4, 20
_BARE = struct.Struct("!BBHHIHIHHIIH")  # the header without its checksum
_ZERO_CHECKSUM = bytes(4)
_VARYING_AT = 20  # what differs from one segment of a stream to the next begins here
_pack_varying = struct.Struct("!IIHI").pack
assert _HEADER.size == _VARYING.size == HEADER_SIZE and _FLOW.size == 16 and _BARE.size + 4 == HEADER_SIZE


class Packet(NamedTuple):
    """One packet. A NamedTuple because one is made per segment."""

    flags: int
    protocol: int
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    seq: int = 0
    ack: int = 0
    window: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes on the wire; the caller keeps the payload within `PAYLOAD_MAX`."""
        flags, protocol, source, destination, source_port, destination_port, seq, ack, window, payload = self
        bare = _BARE.pack(
            VERSION << 4 | flags,
            protocol,
            len(payload),
            *source,
            *destination,
            source_port,
            destination_port,
            seq,
            ack,
            window,
        )
        return b"%b%b%b" % (bare, crc32(payload, crc32(bare + _ZERO_CHECKSUM)).to_bytes(4, "big"), payload)


class Flow:
    """What is the same in all data segments that one end of a stream sends: encoded once, checksum included.

    Args:
      flags: of every segment.
      source: this end.
      destination: the other one.
      segment: bytes of payload in a full segment.
    """

    __slots__ = ("_addresses", "_crc", "_flags", "_head", "_segment")

    def __init__(self, flags: int, source: SocketAddress, destination: SocketAddress, segment: int) -> None:
        self._flags = flags
        self._addresses = (source.address, destination.address, source.port, destination.port)
        self._segment = segment
        self._head = b""  # made with the first full segment: most streams carry less
        self._crc = 0

    def encode(self, data: bytes, seq: int, ack: int, window: int) -> list[bytes]:
        """Return the packets that carry `data` from sequence number `seq` on, cut into full segments and a tail.

        Args:
          data: bytes of the stream.
          seq: sequence number of the first of them.
          ack: acknowledgment number of all packets.
          window: window field of all packets, in segments.
        """
        segment = self._segment
        full = len(data) - len(data) % segment
        out = self._encode_full(data, full, seq, ack, window) if full else []
        if full < len(data):
            here = (seq + full) & 0xFFFF_FFFF
            out.append(Packet(self._flags, STREAM, *self._addresses, here, ack, window, data[full:]).encode())
        return out

    def _encode_full(self, data: bytes, size: int, seq: int, ack: int, window: int) -> list[bytes]:
        segment = self._segment
        if not self._head:
            self._head = Packet(self._flags, STREAM, *self._addresses, payload=bytes(segment)).encode()[:_VARYING_AT]
            self._crc = crc32(self._head)
        head, state, pack = self._head, self._crc, _full_packer(segment)
        out = []
        for at in range(0, size, segment):
            payload = data[at : at + segment]
            here = (seq + at) & 0xFFFF_FFFF
            checksum = crc32(payload, crc32(_pack_varying(here, ack, window, 0), state))
            out.append(pack(head, here, ack, window, checksum, payload))
        return out


@cache
def _full_packer(segment: int) -> Callable[..., bytes]:
    return struct.Struct(f"!{_VARYING_AT}sIIHI{segment}s").pack


def decode(data: bytes) -> Packet:
    """Read a packet; bytes after the payload are ignored. Raise `DecodeError` with the protocol's text (§2)."""
    size = len(data)
    if size < HEADER_SIZE:
        raise DecodeError(f"packet too short: {size} bytes (min {HEADER_SIZE})")
    first, protocol, length, seq, ack, window, checksum = _VARYING.unpack_from(data)
    end = HEADER_SIZE + length
    if size < end:
        raise DecodeError(f"packet truncated: have {size} bytes, need {end}")
    payload = data[HEADER_SIZE:end]
    if crc32(payload, crc32(data[:30] + _ZERO_CHECKSUM)) != checksum:
        raise DecodeError("checksum mismatch")
    if first >> 4 != VERSION:
        raise DecodeError(f"unsupported protocol version {first >> 4} (expected {VERSION})")
    flow = data[_FLOW_AT:_FLOW_END]
    try:
        source, destination, s_port, d_port = _flows[flow]
    except KeyError:
        source, destination, s_port, d_port = _read_flow(flow)
    # The constructor of a NamedTuple is one Python call more, which counts when there is one per segment.
    return _new(Packet, (first & 0xF, protocol, source, destination, s_port, d_port, seq, ack, window, payload))


def _read_flow(data: bytes) -> _Flow:
    s_net, s_node, d_net, d_node, s_port, d_port = _FLOW.unpack(data)
    flow = (Address(s_net, s_node), Address(d_net, d_node), s_port, d_port)
    if len(_flows) >= FLOWS_MAX:
        _flows.clear()
    _flows[data] = flow
    return flow
