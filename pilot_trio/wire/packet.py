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

from pilot_trio.address import Address, SocketAddress
from pilot_trio.errors import DecodeError

try:
    from zlib_ng.zlib_ng import crc32  # vectorised: a seventh of the time, which is a tenth of all that a segment costs
except ImportError:  # no wheel for this machine: the same sum, slower
    from zlib import crc32

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

HEADS_MAX: Final = 1024  # heads remembered as read; all full segments of a stream begin with the same

_PAIR_AT, _PAIR_END = 4, 16  # where the addresses are
_VARYING_AT: Final = 20  # bytes; what differs from one segment of a stream to the next begins here
_CHECKSUM_AT: Final = 30
_Head = tuple[int, int, int, Address, Address, int, int, int]
"""Flags, protocol, payload length, addresses and ports of a packet, and the state of the checksum after them."""
_new = tuple.__new__
_HEAD = struct.Struct("!BBHHIHIHH")
_BARE = struct.Struct("!BBHHIHIHHIIH")  # the header without its checksum
_FLOW = struct.Struct("!HIHIHH")  # addresses and ports
_FLOWED = struct.Struct("!BBH16sIIH")  # the header without its checksum, addresses and ports being encoded already
_VARYING = struct.Struct("!IIHI")
_pack_varying, _unpack_varying = _VARYING.pack, _VARYING.unpack_from
_ZERO_CHECKSUM = bytes(4)
assert _HEAD.size == _VARYING_AT and _VARYING_AT + _VARYING.size == HEADER_SIZE and _BARE.size == _CHECKSUM_AT


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
    """The packets that one end of a stream sends; what they share is encoded once, checksum included.

    Args:
      source: this end.
      destination: the other one.
      segment: bytes of payload in a full segment.
    """

    __slots__ = ("_crc", "_flow", "_head", "_segment")

    def __init__(self, source: SocketAddress, destination: SocketAddress, segment: int) -> None:
        self._flow = _FLOW.pack(*source.address, *destination.address, source.port, destination.port)
        self._segment = segment
        self._head = b""  # made with the first full segment: most streams carry less
        self._crc = 0

    def packet(self, flags: int, seq: int, ack: int, window: int, payload: bytes = b"") -> bytes:
        """Return one packet, as `Packet.encode` does."""
        bare = _FLOWED.pack(VERSION << 4 | flags, STREAM, len(payload), self._flow, seq, ack, window)
        return b"%b%b%b" % (bare, crc32(payload, crc32(bare + _ZERO_CHECKSUM)).to_bytes(4, "big"), payload)

    def segments(self, data: bytes, seq: int, ack: int, window: int) -> list[bytes]:
        """Return the packets that carry `data` from sequence number `seq` on, cut into full segments and a tail.

        Args:
          data: bytes of the stream, one at least.
          seq: sequence number of the first of them.
          ack: acknowledgment number of all packets.
          window: window field of all packets, in segments.
        """
        size = len(data)
        if size < self._segment:
            return [self.packet(ACK, seq, ack, window, data)]
        full = size - size % self._segment
        out = self._full_segments(data, full, seq, ack, window)
        if full < size:
            out.append(self.packet(ACK, (seq + full) & 0xFFFF_FFFF, ack, window, data[full:]))
        return out

    def _full_segments(self, data: bytes, size: int, seq: int, ack: int, window: int) -> list[bytes]:
        segment = self._segment
        if not self._head:
            self._head = self.packet(ACK, 0, 0, 0, bytes(segment))[:_VARYING_AT]
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
    head = data[:_VARYING_AT]
    flags, protocol, length, source, destination, s_port, d_port, state = _heads[head]
    seq, ack, window, checksum = _unpack_varying(data, _VARYING_AT)
    end = HEADER_SIZE + length
    if size < end:
        raise DecodeError(f"packet truncated: have {size} bytes, need {end}")
    payload = data[HEADER_SIZE:end]
    if crc32(payload, crc32(data[_VARYING_AT:_CHECKSUM_AT] + _ZERO_CHECKSUM, state)) != checksum:
        raise DecodeError("checksum mismatch")
    if head[0] >> 4 != VERSION:
        raise DecodeError(f"unsupported protocol version {head[0] >> 4} (expected {VERSION})")
    # The constructor of a NamedTuple is one Python call more, which counts when there is one per segment.
    return _new(Packet, (flags, protocol, source, destination, s_port, d_port, seq, ack, window, payload))


class _Heads(dict[bytes, _Head]):
    """Heads as read; those of datagrams are not kept, as each datagram comes from another port."""

    def __missing__(self, data: bytes) -> _Head:
        first, protocol, length, *_, s_port, d_port = _HEAD.unpack(data)
        source, destination = _pairs[data[_PAIR_AT:_PAIR_END]]
        head = (first & 0xF, protocol, length, source, destination, s_port, d_port, crc32(data))
        if protocol != DATAGRAM:
            if len(self) >= HEADS_MAX:
                self.clear()
            self[data] = head
        return head


class _Pairs(dict[bytes, tuple[Address, Address]]):
    """Source and destination as read."""

    def __missing__(self, data: bytes) -> tuple[Address, Address]:
        if len(self) >= HEADS_MAX:
            self.clear()
        pair = self[data] = Address.unpack_from(data), Address.unpack_from(data, 6)
        return pair


# Caches of values, so one for all is harmless.
_heads, _pairs = _Heads(), _Pairs()
