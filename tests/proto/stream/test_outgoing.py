"""What was written comes out as it went in, whatever its pieces, in full segments but for the last."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.stream.outgoing import CHUNK, Outgoing
from pilot_trio.proto.stream.settings import SEGMENT

writes = st.tuples(st.just("write"), st.one_of(st.integers(1, 50), st.integers(1000, 3 * SEGMENT), st.just(CHUNK)))
cuts = st.tuples(st.just("cut"), st.integers(1, 70))
sizes = st.sampled_from([SEGMENT, 1380, 8192])


@given(st.lists(st.tuples(st.one_of(writes, cuts), sizes), max_size=30), st.integers(0, 2**32))
def test_bytes_come_out_as_they_went_in(steps: list[tuple[tuple[str, int], int]], seed: int) -> None:
    source = random.Random(seed)
    outgoing, written, cut = Outgoing(), bytearray(), bytearray()
    for (step, number), segment in steps:
        if step == "write":
            data = source.randbytes(number)
            outgoing.append(memoryview(data), push=False)
            written += data
        else:
            run = outgoing.cut(len(cut), number, 0.0, holds_short=False, segment=segment)
            assert (run is None) == (len(cut) == len(written))
            if run is not None:
                assert run.start == len(cut) and run.segments <= number and run.size == len(run.data)
                cut += run.data
                assert run.short == (0 < run.size % segment < SEGMENT)
        assert outgoing.size == len(written) - len(cut)
    while (run := outgoing.cut(len(cut), 64, 0.0, holds_short=False)) is not None:
        cut += run.data
    assert cut == written


@pytest.mark.parametrize("holds_short", [False, True])
def test_large_segments_hold_nothing_back_that_small_ones_would_not(holds_short: bool) -> None:
    for size in range(1, 3 * SEGMENT):
        outgoing, plain = Outgoing(), Outgoing()
        outgoing.append(bytes(size), push=False)
        plain.append(bytes(size), push=False)
        run = outgoing.cut(0, 64, 0.0, holds_short=holds_short, segment=8192)
        least = plain.cut(0, 64, 0.0, holds_short=holds_short)
        assert (run is None) == (least is None)
        if run is not None and least is not None:
            assert run.segments == 1 and run.size >= least.size


@given(st.integers(0, 3), st.integers(0, 2))
def test_a_lookalike_never_leaves_as_a_segment(before: int, after: int) -> None:
    lookalike = b"SACK\x01" + bytes(8)
    data = bytes(before * SEGMENT) + lookalike + bytes(SEGMENT - len(lookalike)) + bytes(after * SEGMENT)
    outgoing = Outgoing()
    outgoing.append(data, push=True)
    sent = bytearray()
    while (run := outgoing.cut(len(sent), 64, 0.0, holds_short=False)) is not None:
        for at in range(0, run.size, SEGMENT):
            assert not run.data[at:].startswith(b"SACK")
        sent += run.data
    assert sent == data
