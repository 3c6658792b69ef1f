"""Resumable file transfer inside data exchange frames of type 7 (`spec/services.md` §3.6).

offset  size  field
0       1     kind
1       16    transfer id: first half of the content's SHA-256, so that a retry resumes
17      n     body, per kind
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pilot_trio.errors import DecodeError

ID_SIZE: Final = 16  # bytes
_HEADER = struct.Struct("!B16s")
_INIT = struct.Struct("!Q32sIH")
_U64 = struct.Struct("!Q")
assert _HEADER.size == 17 and _INIT.size == 46


class Kind(IntEnum):
    """Kinds of file stream messages; the arrow is seen from the sender of the file."""

    INIT = 1  #: → size, hash, chunk size, name
    CHUNK = 2  #: → offset, data
    ACK = 3  #: ← highest contiguous offset
    DONE = 4  #: →
    INIT_ACK = 5  #: ← offset to resume at
    COMPLETE = 6  #: ← 0 or 1, text
    ABORT = 7  #: ↔ text


class StreamMessage(NamedTuple):
    """One message, its body not yet read."""

    kind: int
    transfer_id: bytes
    body: bytes


class Init(NamedTuple):
    """What is going to be sent."""

    size: int
    sha256: bytes
    chunk_size: int
    name: str


class Complete(NamedTuple):
    """How a transfer ended for the receiver."""

    ok: bool
    text: str


class Chunk(NamedTuple):
    """A piece of the file."""

    offset: int
    data: bytes


def encode(kind: int, transfer_id: bytes, body: bytes = b"") -> bytes:
    """Return the payload of a type 7 frame."""
    return _HEADER.pack(kind, transfer_id) + body


def decode(payload: bytes) -> StreamMessage:
    """Split a payload; the all-zero id is not an id."""
    if len(payload) < _HEADER.size:
        raise DecodeError("malformed stream frame")
    kind, transfer_id = _HEADER.unpack_from(payload)
    return StreamMessage(kind, transfer_id, payload[_HEADER.size :])


def decode_init(body: bytes) -> Init:
    """Read the body of an INIT."""
    if len(body) < _INIT.size:
        raise DecodeError("malformed INIT")
    size, sha256, chunk_size, name_length = _INIT.unpack_from(body)
    raw_name = body[_INIT.size :]
    if len(raw_name) != name_length:
        raise DecodeError("malformed INIT")
    return Init(size, sha256, chunk_size, raw_name.decode("utf-8", "replace"))


def decode_chunk(body: bytes) -> Chunk:
    """Read the body of a CHUNK."""
    if len(body) < _U64.size:
        raise DecodeError("malformed CHUNK")
    return Chunk(_U64.unpack_from(body)[0], body[_U64.size :])


def decode_offset(body: bytes) -> int:
    """Read the body of an ACK or INIT_ACK."""
    if len(body) < _U64.size:
        raise DecodeError("malformed ACK")
    offset: int = _U64.unpack_from(body)[0]
    return offset


def decode_complete(body: bytes) -> Complete:
    """Read the body of a COMPLETE."""
    if not body:
        raise DecodeError("malformed COMPLETE")
    return Complete(body[0] == 0, body[1:].decode("utf-8", "replace"))


def encode_init(transfer_id: bytes, init: Init) -> bytes:
    """Return an INIT payload."""
    name = init.name.encode("utf-8", "surrogateescape")  # what a file system allows
    return encode(Kind.INIT, transfer_id, _INIT.pack(init.size, init.sha256, init.chunk_size, len(name)) + name)


def encode_offset(kind: int, transfer_id: bytes, offset: int) -> bytes:
    """Return an ACK or INIT_ACK payload, or the head of a CHUNK."""
    return encode(kind, transfer_id, _U64.pack(offset))


def encode_complete(transfer_id: bytes, failure: str = "") -> bytes:
    """Return a COMPLETE payload: success, or a failure with its text."""
    return encode(Kind.COMPLETE, transfer_id, (b"\x01" + failure.encode()) if failure else b"\x00")
