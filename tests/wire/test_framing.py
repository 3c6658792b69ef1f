from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire.framing import IPC_FRAME_MAX, REST_MAX, FrameDecoder, encode_frame


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


@given(
    st.lists(st.sampled_from([0, 1, 5_000, REST_MAX, 3 * REST_MAX, 100_000]), max_size=6),
    st.lists(st.sampled_from([1, 3_000, REST_MAX - 3, REST_MAX + 5, 65_536]), min_size=1, max_size=8),
)
def test_chunking_never_changes_frames_of_any_size(sizes: list[int], cuts: list[int]) -> None:
    bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
    wire = b"".join(encode_frame(body) for body in bodies)
    decoder, frames, at, turn = FrameDecoder(100_000), [], 0, 0
    while at < len(wire):
        size = max(cuts[turn % len(cuts)], len(wire) // 100)
        decoder.feed(memoryview(wire)[at : at + size] if turn % 2 else wire[at : at + size])
        at, turn = at + size, turn + 1
        frames += decoder.next_frames(1 + turn % 3)
    while more := decoder.next_frames(4):
        frames += more
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


@given(st.binary(max_size=300), st.lists(st.integers(1, 13)), st.integers(1, 5))
def test_many_frames_at_once_are_those_that_come_one_by_one(data: bytes, cuts: list[int], count: int) -> None:
    one_by_one, at_once = FrameDecoder(60), FrameDecoder(60)
    at = 0
    for size in [*cuts, len(data)]:
        for decoder in (one_by_one, at_once):
            decoder.feed(data[at : at + size])
        at += size
        expected, broken = frames_and_end(lambda: take_one(one_by_one))
        assert frames_and_end(lambda: at_once.next_frames(count)) == (expected, broken)
        if broken:
            return
        assert len(one_by_one) == len(at_once)


def take_one(decoder: FrameDecoder) -> list[bytes]:
    frame = decoder.next_frame()
    return [] if frame is None else [frame]


def frames_and_end(take: Callable[[], list[bytes]]) -> tuple[list[bytes], bool]:
    """Return what can be taken, and whether the stream turned out to be broken behind it."""
    frames: list[bytes] = []
    try:
        while some := take():
            frames += some
    except DecodeError:
        return frames, True
    return frames, False
