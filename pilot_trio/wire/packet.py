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
from typing import Final, NamedTuple
from zlib import crc32

from pilot_trio.address import Address
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

_HEADER = struct.Struct("!BBHHIHIHHIIHI")
_BARE = struct.Struct("!BBHHIHIHHIIH")  # the header without its checksum
_ZERO_CHECKSUM = bytes(4)
assert _HEADER.size == HEADER_SIZE and _BARE.size + 4 == HEADER_SIZE


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
        checksum = crc32(payload, crc32(_ZERO_CHECKSUM, crc32(bare)))
        return b"".join((bare, checksum.to_bytes(4, "big"), payload))


def decode(data: bytes) -> Packet:
    """Read a packet; bytes after the payload are ignored. Raise `DecodeError` with the protocol's text (§2)."""
    if len(data) < HEADER_SIZE:
        raise DecodeError(f"packet too short: {len(data)} bytes (min {HEADER_SIZE})")
    first, protocol, length, s_net, s_node, d_net, d_node, s_port, d_port, seq, ack, window, checksum = (
        _HEADER.unpack_from(data)
    )
    end = HEADER_SIZE + length
    if len(data) < end:
        raise DecodeError(f"packet truncated: have {len(data)} bytes, need {end}")
    payload = data[HEADER_SIZE:end]
    if crc32(payload, crc32(_ZERO_CHECKSUM, crc32(data[:30]))) != checksum:
        raise DecodeError("checksum mismatch")
    if first >> 4 != VERSION:
        raise DecodeError(f"unsupported protocol version {first >> 4} (expected {VERSION})")
    source, destination = Address(s_net, s_node), Address(d_net, d_node)
    return Packet(first & 0xF, protocol, source, destination, s_port, d_port, seq, ack, window, payload)
