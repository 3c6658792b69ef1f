"""Data exchange on port 1001: messages and files, one reply frame per frame (`spec/services.md` §3).

    offset  size  field
    0       4     type
    4       4     length L of the payload
    8       L     payload

Decoders raise `DecodeError`; the service answers that by closing the stream, except where the protocol has a reply.
"""

from __future__ import annotations

import json
import re
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from pilot_trio.errors import DecodeError

HEADER: Final = struct.Struct("!II")
assert HEADER.size == 8
FRAME_MAX_DEFAULT: Final = 64 << 20  # bytes of payload; protocol §3.1, changed by PILOT_DATAEXCHANGE_MAX_FRAME
FRAME_MAX_LEAST: Final = 64 << 10  # bytes; the smallest limit that may be configured, protocol §3.1
FRAME_MAX_MOST: Final = (1 << 31) - 1  # bytes; the largest one, protocol §3.1
TAG_HEADER_MAX: Final = 1024  # bytes of the JSON header of a tagged frame; protocol §3.4
NAME_MAX: Final = 255  # bytes of a file name; protocol §3.3
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_TRACE = struct.Struct("!IQ")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class FrameType(IntEnum):
    """Frame types (§3.1). 8 and 9 are retired: known by name, answered with an error."""

    TEXT = 1
    BINARY = 2
    JSON = 3
    FILE = 4
    TRACE = 5
    FILESTREAM = 7
    GOVERNED = 8
    GOVERNED_FILESTREAM = 9
    TAGGED = 10


MESSAGE_TYPES: Final = frozenset({FrameType.TEXT, FrameType.BINARY, FrameType.JSON})


def type_name(frame_type: int) -> str:
    """The name that replies and inbox files use."""
    try:
        return FrameType(frame_type).name
    except ValueError:
        return f"UNKNOWN({frame_type})"


class Tagged(NamedTuple):
    """A frame together with its correlation ids; `""` where there is none."""

    frame_type: int
    payload: bytes
    message_id: str = ""
    reply_to: str = ""


class Trace(NamedTuple):
    """A timed message: the sender's clock in nanoseconds since the epoch, and the message."""

    inner_type: int
    sent_at_ns: int
    payload: bytes


class File(NamedTuple):
    """A whole file in one frame. An empty name means: acknowledge, store nothing (§3.3)."""

    name: str
    data: bytes


def encode_frame(frame_type: int, payload: bytes) -> bytes:
    """Return a complete frame."""
    return HEADER.pack(frame_type, len(payload)) + payload


def encode_tagged(frame_type: int, payload: bytes, *, message_id: str = "", reply_to: str = "") -> bytes:
    """Return a tagged frame, or a plain one if there is nothing to tag."""
    ids = {key: value for key, value in (("message_id", message_id), ("reply_to", reply_to)) if value}
    if not ids:
        return encode_frame(frame_type, payload)
    header = json.dumps(ids, separators=(",", ":")).encode()
    return encode_frame(FrameType.TAGGED, _U16.pack(len(header)) + header + _U32.pack(frame_type) + payload)


def decode_tagged(payload: bytes) -> Tagged:
    """Unwrap a tagged frame (§3.4)."""
    if len(payload) < _U16.size:
        raise DecodeError("tagged frame without header length")
    (length,) = _U16.unpack_from(payload)
    body_at = _U16.size + length + _U32.size
    if not 1 <= length <= TAG_HEADER_MAX or len(payload) < body_at:
        raise DecodeError(f"tagged frame: bad header length {length}")
    try:
        header = json.loads(payload[_U16.size : _U16.size + length])
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"tagged frame: header is not JSON: {exc}") from exc
    if not isinstance(header, dict):
        raise DecodeError("tagged frame: header is not an object")
    (frame_type,) = _U32.unpack_from(payload, _U16.size + length)
    if frame_type == FrameType.TAGGED:
        raise DecodeError("tagged frame inside a tagged frame")
    message_id, reply_to = (_correlation_id(header, key) for key in ("message_id", "reply_to"))
    return Tagged(frame_type, payload[body_at:], message_id, reply_to)


def _correlation_id(header: dict[str, object], key: str) -> str:
    value = header.get(key, "")
    if value != "" and not (isinstance(value, str) and is_correlation_id(value)):
        raise DecodeError(f"tagged frame: {key} {value!r} is not 1 to 128 of A-Z a-z 0-9 . _ : -")
    return str(value)


def frame_max(text: str) -> int:
    """Read a configured frame limit in bytes; what is no number in the allowed range means the default (§3.1)."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and FRAME_MAX_LEAST <= int(text) <= FRAME_MAX_MOST:
        return int(text)
    return FRAME_MAX_DEFAULT


def is_correlation_id(text: str) -> bool:
    """Say whether a text may be a message id (§3.4)."""
    return _ID.fullmatch(text) is not None


def encode_trace(trace: Trace) -> bytes:
    """Return the payload of a timed message."""
    return _TRACE.pack(trace.inner_type, trace.sent_at_ns) + trace.payload


def decode_trace(payload: bytes) -> Trace:
    """Read a timed message; the error text is part of the protocol's reply (§3.2)."""
    if len(payload) < _TRACE.size:
        raise DecodeError(f"trace payload too short: {len(payload)} bytes")
    inner_type, sent_at_ns = _TRACE.unpack_from(payload)
    return Trace(inner_type, sent_at_ns, payload[_TRACE.size :])


def encode_file(file: File) -> bytes:
    """Return the payload of a whole file; the caller keeps to `NAME_MAX`."""
    name = file.name.encode("utf-8", "surrogateescape")  # what a file system allows
    return _U16.pack(len(name)) + name + file.data


def decode_file(payload: bytes) -> File:
    """Read a whole file; a name that could leave the directory is an error (§3.3)."""
    if len(payload) < _U16.size:
        return File("", payload)
    (length,) = _U16.unpack_from(payload)
    data_at = _U16.size + length
    if len(payload) < data_at:
        return File("", payload)
    try:
        name = payload[_U16.size : data_at].decode()
    except UnicodeDecodeError as exc:
        raise DecodeError("file name is not UTF-8") from exc
    if length > NAME_MAX or "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
        raise DecodeError(f"file name {name!r} is not allowed")
    return File(name, payload[data_at:])
