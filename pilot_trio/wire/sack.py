"""Selective acknowledgements: the payload of an ACK packet that carries no data (`spec/transport.md` §4.5).

    offset  size  field
    0       4     magic "SACK"
    4       1     count n, 1 to 4
    5       8*n   left edge, right edge (u32 each; right is exclusive)

There is no other mark: user data that begins like this at a segment boundary is taken for it by every version. A sender
must therefore cut its segments so that none does; `looks_like_sack` is the test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

MAGIC: Final = b"SACK"
BLOCKS_MAX: Final = 4  # blocks; protocol §4.5
_BLOCK = struct.Struct("!II")
assert _BLOCK.size == 8
_PREFIX = len(MAGIC) + 1

Block = tuple[int, int]
"""Left and right edge; the right one is the sequence number after the last byte received."""


def encode(blocks: Sequence[Block]) -> bytes:
    """Return the payload for one to four blocks."""
    return MAGIC + bytes((len(blocks),)) + b"".join(_BLOCK.pack(*block) for block in blocks)


def decode(payload: bytes) -> list[Block] | None:
    """Return the blocks, or None if the payload is user data. Bytes after the blocks are ignored."""
    if len(payload) < _PREFIX or not payload.startswith(MAGIC):
        return None
    count = payload[4]
    if not 1 <= count <= BLOCKS_MAX or len(payload) < _PREFIX + count * _BLOCK.size:
        return None
    return [_BLOCK.unpack_from(payload, _PREFIX + i * _BLOCK.size) for i in range(count)]


def looks_like_sack(payload: bytes) -> bool:
    """Say whether a peer would take a segment with this payload for a selective acknowledgement."""
    return payload.startswith(MAGIC) and decode(payload) is not None
