"""The replay window says what a plain set of counters would say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.crypto.replay import WINDOW, ReplayWindow, Verdict


class PlainWindow:
    """Every counter that was seen, and the rule of `spec/tunnel.md` §5."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()
        self.highest = 0

    def accept(self, counter: int) -> Verdict:
        if counter <= self.highest - self.size:
            return Verdict.OUTSIDE
        if counter in self.seen:
            return Verdict.REPLAY
        self.seen.add(counter)
        self.highest = max(self.highest, counter)
        return Verdict.FRESH


# A step: how far from the highest counter, and how many in a row.
_NEAR = st.tuples(st.integers(-40, 40), st.integers(1, 40))
_FAR = st.tuples(st.sampled_from([2**16, 2**31, -(2**16)]), st.just(1))


@given(st.sampled_from([1, 2, 3, 8, 32]), st.lists(_NEAR | _FAR, max_size=60))
def test_it_judges_as_a_plain_set_does(size: int, steps: list[tuple[int, int]]) -> None:
    window, plain = ReplayWindow(size), PlainWindow(size)
    for offset, run in steps:
        start = max(0, plain.highest + offset)
        for counter in range(start, start + run):
            assert window.accept(counter) is plain.accept(counter)
            assert window.highest == plain.highest


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 2**32))
def test_whoever_raises_the_highest_counter_has_it_seen(runs: list[int], seed: int) -> None:
    source = random.Random(seed)
    window, plain = ReplayWindow(32), PlainWindow(32)
    for run in runs:
        for _ in range(run):
            window.highest += 1
            plain.accept(window.highest)
        stray = max(0, window.highest + source.randint(-40, 5))
        assert window.accept(stray) is plain.accept(stray)


@pytest.mark.parametrize("jump", [WINDOW - 1, WINDOW, WINDOW + 1, 2**63])
def test_a_jump_keeps_what_still_fits(jump: int) -> None:
    window, plain = ReplayWindow(), PlainWindow(WINDOW)
    counters = [*range(1, 100), 99 + jump, 98, 99, 100, 99 + jump]
    assert [window.accept(counter) for counter in counters] == [plain.accept(counter) for counter in counters]


def test_a_run_longer_than_the_window_leaves_nothing_open() -> None:
    window = ReplayWindow(64)
    for counter in range(1, 1000):
        assert window.accept(counter) is Verdict.FRESH
    assert [window.accept(counter) for counter in range(936, 1000)] == [Verdict.REPLAY] * 64
    assert window.accept(935) is Verdict.OUTSIDE


def test_a_window_can_begin_with_everything_seen_up_to_a_counter() -> None:
    window = ReplayWindow(highest=10_000)
    assert [window.accept(counter) for counter in (10_000, 10_000 - WINDOW + 1)] == [Verdict.REPLAY] * 2
    assert window.accept(10_000 - WINDOW) is Verdict.OUTSIDE
    assert [window.accept(counter) for counter in (10_002, 10_001, 10_001)] == [
        Verdict.FRESH,
        Verdict.FRESH,
        Verdict.REPLAY,
    ]
