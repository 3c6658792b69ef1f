"""Segments in any order become the stream, and what is said of them is true."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.stream.reassembly import REPORTS_MAX, SIZE_MAX, Reassembly
from pilot_trio.proto.stream.settings import RECEIVE_SLOTS, SEGMENT
from pilot_trio.wire.sack import BLOCKS_MAX

MODULUS = 1 << 32


@given(
    st.integers(0, MODULUS - 1),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_any_order_and_repetition_gives_the_stream(start: int, pieces: list[bytes], order: random.Random) -> None:
    segments, seq = [], start
    for piece in pieces:
        segments.append((seq % MODULUS, piece))
        seq += len(piece)
    arrivals = segments * 2
    order.shuffle(arrivals)
    data = Reassembly(start)
    for at, piece in arrivals:
        data.receive(at, piece)
        blocks = [block for report in data.sack_reports() for block in report]
        assert all((right - left) % MODULUS < MODULUS // 2 for left, right in blocks)
    assert data.read(1 << 20) == b"".join(pieces)
    assert (data.rcv_nxt, data.early_count, data.sack_reports()) == (seq % MODULUS, 0, [])


@given(
    st.integers(0, MODULUS - 1),
    st.lists(st.tuples(st.integers(-50, 300), st.integers(1, 40)), max_size=60),
)
def test_what_is_reported_is_held_and_nothing_is_taken_twice(start: int, segments: list[tuple[int, int]]) -> None:
    """Overlapping, cut anew, repeated: what a broken sender sends never becomes wrong bytes."""
    stream = bytes(range(256)) * 2
    data = Reassembly(start)
    for offset, size in segments:
        begin = max(0, offset)
        data.receive((start + begin) % MODULUS, stream[begin : begin + size])
        reported = set(data._early)
        for report in data.sack_reports():
            assert 1 <= len(report) <= BLOCKS_MAX
            assert report == sorted(report, key=lambda block: (block[0] - data.position) % MODULUS)
            for left, right in report:
                at = data.position + (left - data.position) % MODULUS
                while at != data.position + (right - data.position) % MODULUS:
                    assert at in reported
                    at += len(data._early[at])
    received = data.read(1 << 20)
    assert received == stream[: len(received)]
    assert (data.rcv_nxt - start) % MODULUS == len(received)


def test_a_larger_segment_overtakes_early_ones() -> None:
    data = Reassembly(0)
    data.receive(10, bytes(10))
    data.receive(30, bytes(10))
    assert data.receive(0, bytes(15))
    assert (data.position, data.early_count, data.sack_reports()) == (15, 1, [[(30, 40)]])


def test_each_range_that_grew_is_reported_once_and_the_highest_always() -> None:
    data = Reassembly(0)
    for start in range(10, 10 + 20 * 6, 20):
        data.receive(start, bytes(10))
    assert data.sack_reports() == [
        [(10, 20), (30, 40), (50, 60), (70, 80)],
        [(50, 60), (70, 80), (90, 100), (110, 120)],
    ]
    assert data.sack_reports() == [[(50, 60), (70, 80), (90, 100), (110, 120)]]
    data.receive(20, bytes(5))
    assert data.sack_reports() == [[(10, 25), (70, 80), (90, 100), (110, 120)]]


@pytest.mark.parametrize(("ranges", "reports"), [(64, 16), (65, 16), (60, 15), (200, 16)])
def test_reports_at_a_time_are_bounded(ranges: int, reports: int) -> None:
    data = Reassembly(0)
    for index in range(ranges):
        data.receive(2 + 2 * index, b"x")
    assert len(data.sack_reports()) == reports <= REPORTS_MAX


@pytest.mark.parametrize("held", [RECEIVE_SLOTS - 1, RECEIVE_SLOTS, RECEIVE_SLOTS + 1])
def test_early_segments_are_bounded(held: int) -> None:
    data = Reassembly(0)
    for index in range(held):
        data.receive(10 + index, b"x")
    assert data.early_count == min(held, RECEIVE_SLOTS)


def test_what_is_beyond_the_promised_room_is_dropped() -> None:
    data = Reassembly(0)
    data.receive(SIZE_MAX - 10, bytes(11))
    assert data.early_count == 0
    data.receive(SIZE_MAX - 10, bytes(10))
    assert data.early_count == 1


def test_the_window_counts_full_segments_or_pieces_whichever_is_more() -> None:
    data = Reassembly(0)
    data.receive(0, bytes(SEGMENT + 1))
    assert data.window == RECEIVE_SLOTS - 2
    data.receive(SEGMENT + 1, b"x")
    assert data.window == RECEIVE_SLOTS - 2
    data.receive(SEGMENT + 2, b"x")
    assert data.window == RECEIVE_SLOTS - 3
    assert len(data.read(1)) == 1
    assert len(data.read(1 << 20)) == SEGMENT + 2
    assert data.window == RECEIVE_SLOTS
