"""Event stream on port 1002: topics and payloads (`spec/services.md` §4).

    offset  size  field
    0       2     topic length T, at most 1024
    2       T     topic, UTF-8
    2+T     4     payload length L, at most 16 MiB
    6+T     L     payload

The first frame of a connection subscribes to exactly its topic (`*`: all); every later one publishes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pilot_trio.errors import DecodeError

TOPIC_MAX: Final = 1024  # bytes; protocol §4
PAYLOAD_MAX: Final = 1 << 24  # bytes; protocol §4
ALL_TOPICS: Final = "*"
RESERVED_TOPIC: Final = "\x00pilot.governed.v1"  # publications on it are dropped; protocol §4
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class TopicEvent(NamedTuple):
    """One frame."""

    topic: str
    payload: bytes


def encode(topic: str, payload: bytes = b"") -> bytes:
    """Return a frame; the caller keeps to the limits."""
    raw = topic.encode()
    return _U16.pack(len(raw)) + raw + _U32.pack(len(payload)) + payload


class EventDecoder:
    """Cut a byte stream into events; how the bytes were chunked makes no difference."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Return the number of bytes held."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """Append bytes as they came from the stream."""
        self._buffer += data

    def next_event(self) -> TopicEvent | None:
        """Return the next complete event, or None if more bytes are needed.

        Raises:
          DecodeError: a length above its limit, as soon as it is there, or a topic that is not UTF-8. Final.
        """
        buffer = self._buffer
        if len(buffer) < _U16.size:
            return None
        (topic_length,) = _U16.unpack_from(buffer)
        if topic_length > TOPIC_MAX:
            raise DecodeError(f"topic of {topic_length} bytes (limit {TOPIC_MAX})")
        length_at = _U16.size + topic_length
        payload_at = length_at + _U32.size
        if len(buffer) < payload_at:
            return None
        (payload_length,) = _U32.unpack_from(buffer, length_at)
        if payload_length > PAYLOAD_MAX:
            raise DecodeError(f"payload of {payload_length} bytes (limit {PAYLOAD_MAX})")
        end = payload_at + payload_length
        if len(buffer) < end:
            return None
        try:
            topic = buffer[_U16.size : length_at].decode()
        except UnicodeDecodeError as exc:
            raise DecodeError("topic is not UTF-8") from exc
        payload = bytes(buffer[payload_at:end])
        del buffer[:end]
        return TopicEvent(topic, payload)
