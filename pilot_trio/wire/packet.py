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
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
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

HEADS_MAX: Final = 1024  # heads remembered as read; packets of one size between two nodes begin with the same

_HEAD_END: Final = (
    16  # bytes; up to here all full segments of a stream are alike, and all datagrams of one size to a node
)
_CHECKSUM_AT: Final = 30
_Head = tuple[int, int, int, Address, Address, int]
"""Flags, protocol, end of the payload and addresses of a packet, and the state of the checksum after them."""
_new = tuple.__new__
_HEAD = struct.Struct("!BBH12s")
_PAIR = struct.Struct("!HIHI")  # addresses
_REST = struct.Struct("!HHIIHI")  # of the header, from the ports on
_BARE = struct.Struct("!BBHHIHIHHIIH")  # the header without its checksum
_FLOW = struct.Struct("!HIHIHH")  # addresses and ports
_FLOWED = struct.Struct("!BBH16sIIH")  # the header without its checksum, addresses and ports being encoded already
_VARYING = struct.Struct("!IIHI")  # what differs from one segment of a stream to the next
_VARYING_AT: Final = 20  # bytes
_pack_varying, _unpack_rest = _VARYING.pack, _REST.unpack_from
_ZERO_CHECKSUM = bytes(4)
_ENDLESS: Final = 1 << 32  # the end of a packet that is none, whatever its length
assert _HEAD.size == _HEAD_END and _HEAD_END + _REST.size == HEADER_SIZE == _VARYING_AT + _VARYING.size
assert _BARE.size == _CHECKSUM_AT


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


def encode_datagrams(
    source: Address, destination: Address, port: int, source_ports: Iterable[int], payloads: Iterable[bytes]
) -> list[bytes]:
    """Return a datagram for each source port and payload, as `Packet.encode` does; what they share is encoded once.

    Args:
      source: this node.
      destination: the other one.
      port: destination port of all of them.
      source_ports: one for each payload.
      payloads: each within `PAYLOAD_MAX`.
    """
    pair, rest, size = _PAIR.pack(*source, *destination), _REST.pack, -1
    head, state = b"", 0
    packets: list[bytes] = []
    for source_port, payload in zip(source_ports, payloads, strict=True):
        if len(payload) != size:
            size = len(payload)
            head = _HEAD.pack(VERSION << 4, DATAGRAM, size, pair)
            state = crc32(head)
        checksum = crc32(payload, crc32(rest(source_port, port, 0, 0, 0, 0), state))
        packets.append(b"%b%b%b" % (head, rest(source_port, port, 0, 0, 0, checksum), payload))
    return packets


class Flow:
    """The packets that one end of a stream sends; what they share is encoded once, checksum included.

    Args:
      source: this end.
      destination: the other one.
    """

    __slots__ = ("_crc", "_flow", "_head", "_segment")

    def __init__(self, source: SocketAddress, destination: SocketAddress) -> None:
        self._flow = _FLOW.pack(*source.address, *destination.address, source.port, destination.port)
        self._segment = 0  # bytes of payload that `_head` is for; none yet: most streams carry less than a full segment
        self._head = b""
        self._crc = 0

    def packet(self, flags: int, seq: int, ack: int, window: int, payload: bytes = b"") -> bytes:
        """Return one packet, as `Packet.encode` does."""
        bare = _FLOWED.pack(VERSION << 4 | flags, STREAM, len(payload), self._flow, seq, ack, window)
        return b"%b%b%b" % (bare, crc32(payload, crc32(bare + _ZERO_CHECKSUM)).to_bytes(4, "big"), payload)

    def segments(self, data: bytes, segment: int, seq: int, ack: int, window: int) -> list[bytes]:
        """Return the packets that carry `data` from sequence number `seq` on, cut into full segments and a tail.

        Args:
          data: bytes of the stream, one at least.
          segment: bytes of payload in a full segment.
          seq: sequence number of the first of them.
          ack: acknowledgment number of all packets.
          window: window field of all packets, in segments.
        """
        size = len(data)
        if size < segment:
            return [self.packet(ACK, seq, ack, window, data)]
        full = size - size % segment
        out = self._full_segments(data, full, segment, seq, ack, window)
        if full < size:
            out.append(self.packet(ACK, (seq + full) & 0xFFFF_FFFF, ack, window, data[full:]))
        return out

    def _full_segments(self, data: bytes, size: int, segment: int, seq: int, ack: int, window: int) -> list[bytes]:
        if self._segment != segment:
            self._segment = segment
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


@lru_cache(maxsize=64)  # sizes of segments; a probe may have any
def _full_packer(segment: int) -> Callable[..., bytes]:
    return struct.Struct(f"!{_VARYING_AT}sIIHI{segment}s").pack


def decode(data: bytes) -> Packet:
    """Read a packet; bytes after the payload are ignored. Raise `DecodeError` with the protocol's text (§2)."""
    packets = read_packets((data,))
    if not packets:
        raise DecodeError(_fault(data))
    return packets[0]


def read_packets(run: Sequence[bytes]) -> list[Packet]:
    """Read packets as `decode` does, up to the first one that it refuses."""
    heads, read, zero, new = _heads, _unpack_rest, _ZERO_CHECKSUM, _new
    packets: list[Packet] = []
    for data in run:
        size = len(data)
        if size < HEADER_SIZE:
            break
        flags, protocol, end, source, destination, state = heads[data[:_HEAD_END]]
        if size < end:
            break
        source_port, port, seq, ack, window, checksum = read(data, _HEAD_END)
        payload = data[HEADER_SIZE:end]
        if crc32(payload, crc32(data[_HEAD_END:_CHECKSUM_AT] + zero, state)) != checksum:
            break
        # The constructor of a NamedTuple is one Python call more, which counts when there is one per packet.
        packets.append(
            new(Packet, (flags, protocol, source, destination, source_port, port, seq, ack, window, payload))
        )
    return packets


def _fault(data: bytes) -> str:
    """Say why `read_packets` stopped."""
    size = len(data)
    if size < HEADER_SIZE:
        return f"packet too short: {size} bytes (min {HEADER_SIZE})"
    first, _, length, _ = _HEAD.unpack_from(data)
    end = HEADER_SIZE + length
    if size < end:
        return f"packet truncated: have {size} bytes, need {end}"
    bare, payload = data[:_CHECKSUM_AT] + _ZERO_CHECKSUM, data[HEADER_SIZE:end]
    if crc32(payload, crc32(bare)) != int.from_bytes(data[_CHECKSUM_AT:HEADER_SIZE], "big"):
        return "checksum mismatch"
    return f"unsupported protocol version {first >> 4} (expected {VERSION})"


class _Heads(dict[bytes, _Head]):
    """Heads as read."""

    def __missing__(self, data: bytes) -> _Head:
        if len(self) >= HEADS_MAX:
            self.clear()
        first, protocol, length, pair = _HEAD.unpack(data)
        end = HEADER_SIZE + length if first >> 4 == VERSION else _ENDLESS
        head = self[data] = (first & 0xF, protocol, end, *_pairs[pair], crc32(data))
        return head


class _Pairs(dict[bytes, tuple[Address, Address]]):
    """Source and destination as read; heads of several lengths share them."""

    def __missing__(self, data: bytes) -> tuple[Address, Address]:
        if len(self) >= HEADS_MAX:
            self.clear()
        pair = self[data] = Address.unpack_from(data), Address.unpack_from(data, 6)
        return pair


# Caches of values, so one for all is harmless.
_heads, _pairs = _Heads(), _Pairs()
