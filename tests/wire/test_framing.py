from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder, encode_frame


def drain(decoder: FrameDecoder) -> list[bytes]:
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 13)))
def test_chunking_never_changes_the_frames(bodies: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(encode_frame(body) for body in bodies)
    decoder, frames, at = FrameDecoder(100), [], 0
    for size in [*cuts, len(wire)]:
        decoder.feed(wire[at : at + size])
        at += size
        frames += drain(decoder)
    assert frames == bodies
    assert len(decoder) == 0


@given(st.binary(), st.integers(0, 64))
def test_garbage_gives_frames_or_a_decode_error(data: bytes, limit: int) -> None:
    decoder = FrameDecoder(limit)
    decoder.feed(data)
    try:
        frames = drain(decoder)
    except DecodeError:
        return
    assert all(len(frame) <= limit for frame in frames)
    assert sum(len(frame) + 4 for frame in frames) + len(decoder) == len(data)


def test_a_frame_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    decoder = FrameDecoder(IPC_FRAME_MAX)
    decoder.feed(encode_frame(bytes(IPC_FRAME_MAX)))
    assert decoder.next_frame() == bytes(IPC_FRAME_MAX)
    decoder.feed(struct.pack("!I", IPC_FRAME_MAX + 1))
    with pytest.raises(DecodeError, match="1048577"):
        decoder.next_frame()


def test_oversize_is_reported_on_its_fourth_byte_and_only_after_earlier_frames() -> None:
    decoder = FrameDecoder(8)
    decoder.feed(encode_frame(b"one") + b"\xff\xff\xff")
    assert decoder.next_frame() == b"one"
    assert decoder.next_frame() is None
    decoder.feed(b"\xff")
    with pytest.raises(DecodeError):
        decoder.next_frame()


def test_zero_length_frames_are_handed_out() -> None:
    decoder = FrameDecoder(8)
    decoder.feed(bytes(8))
    assert drain(decoder) == [b"", b""]
