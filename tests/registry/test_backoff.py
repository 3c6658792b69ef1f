from __future__ import annotations

import random

import pytest

from pilot_trio.registry.backoff import (
    EARLY_CLOSE_AGE,
    EARLY_CLOSE_FIRST,
    EARLY_CLOSE_MAX,
    EARLY_CLOSE_MEMORY,
    Backoff,
    EarlyCloseGuard,
)


class Longest(random.Random):
    """Dice that always draw the longest delay."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_delays_double_up_to_the_maximum_and_start_again() -> None:
    backoff = Backoff(0.5, 4, Longest())
    assert [backoff.next_delay() for _ in range(6)] == [0.5, 1, 2, 4, 4, 4]
    backoff.reset()
    assert backoff.next_delay() == 0.5


def test_delays_are_jittered_within_their_upper_half() -> None:
    backoff = Backoff(8, 8, random.Random(3))
    delays = [backoff.next_delay() for _ in range(200)]
    assert all(4 <= delay <= 8 for delay in delays)
    assert max(delays) - min(delays) > 3


def test_a_registry_that_behaves_costs_no_delay() -> None:
    guard = EarlyCloseGuard(Longest())
    assert guard.delay(0) == 0
    guard.on_close(age=EARLY_CLOSE_AGE, now=100)
    assert guard.delay(100) == 0


def test_early_closes_cost_more_and_more() -> None:
    guard = EarlyCloseGuard(Longest())
    delays = []
    for now in range(5):
        guard.on_close(age=EARLY_CLOSE_AGE - 0.1, now=now)
        delays.append(guard.delay(now))
    assert delays == [EARLY_CLOSE_FIRST, 0.5, 1, EARLY_CLOSE_MAX, EARLY_CLOSE_MAX]


@pytest.mark.parametrize(("quiet", "delay"), [(EARLY_CLOSE_MEMORY - 0.1, EARLY_CLOSE_FIRST), (EARLY_CLOSE_MEMORY, 0)])
def test_an_early_close_is_forgotten_after_a_while(quiet: float, delay: float) -> None:
    guard = EarlyCloseGuard(Longest())
    guard.on_close(age=0, now=10)
    assert guard.delay(10 + quiet) == delay


def test_an_answer_on_an_old_connection_forgets_at_once() -> None:
    guard = EarlyCloseGuard(Longest())
    guard.on_close(age=0, now=10)
    guard.on_answer(age=EARLY_CLOSE_AGE - 0.1)
    assert guard.delay(10) == EARLY_CLOSE_FIRST
    guard.on_answer(age=EARLY_CLOSE_AGE)
    assert guard.delay(10) == 0
