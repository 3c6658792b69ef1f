"""Token buckets: bounds, whole tokens, clocks that step back, and a table that is never full for ever."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.limits import KeyedBuckets, TokenBucket


def test_burst_passes_and_one_more_does_not() -> None:
    bucket = TokenBucket(rate=5, burst=5)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_refusal_takes_nothing() -> None:
    bucket = TokenBucket(rate=1, burst=3)
    assert not bucket.take(0.0, 4)
    assert bucket.take(0.0, 3)


def test_refill_stops_at_the_burst() -> None:
    bucket = TokenBucket(rate=10, burst=4)
    assert bucket.take(0.0, 4)
    assert bucket.available(1000.0) == 4


def test_token_comes_back_just_at_its_time() -> None:
    bucket = TokenBucket(rate=2, burst=1)
    assert bucket.take(0.0)
    assert not bucket.take(0.499)
    assert bucket.take(0.5)


def test_whole_tokens_come_in_steps_and_the_fraction_is_kept() -> None:
    bucket = TokenBucket(rate=10, burst=10, whole=True)
    assert bucket.take(0.0, 10)
    assert bucket.available(0.09) == 0
    assert bucket.available(0.19) == 1  # not 1.9
    assert bucket.available(0.21) == 2  # 0.09 of a period was not lost


@pytest.mark.parametrize("whole", [False, True])
def test_next_at_names_the_first_moment_that_succeeds(whole: bool) -> None:
    bucket = TokenBucket(rate=4, burst=2, whole=whole)
    assert bucket.next_at(0.0) == 0.0
    assert bucket.take(0.0, 2)
    due = bucket.next_at(0.1)
    assert due == pytest.approx(0.25)
    assert not bucket.take(due - 0.01)
    assert bucket.take(due)
    assert bucket.next_at(due, 3) == math.inf


@pytest.mark.parametrize("whole", [False, True])
def test_a_clock_that_steps_back_neither_costs_tokens_nor_stops_the_refill(whole: bool) -> None:
    bucket = TokenBucket(rate=1, burst=2, whole=whole)
    assert bucket.take(1000.0, 2)
    assert not bucket.take(10.0)
    assert bucket.take(11.0)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_impossible_buckets_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(rate, burst)
    with pytest.raises(ValueError, match="positive"):
        KeyedBuckets[str](rate, burst, max_keys=1)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="max_keys"):
        KeyedBuckets[str](1, 1, max_keys=0)


@given(st.lists(st.floats(0, 5), max_size=60), st.booleans())
def test_never_more_than_burst_plus_rate_times_time(gaps: list[float], whole: bool) -> None:
    bucket = TokenBucket(rate=3, burst=4, whole=whole)
    now = passed = 0.0
    for gap in gaps:
        now += gap
        passed += bucket.take(now)
        assert passed <= 4 + 3 * now + 1e-6


def test_keys_do_not_share_tokens() -> None:
    buckets = KeyedBuckets[str](rate=1, burst=1, max_keys=10)
    assert buckets.take("a", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("b", 0.0)


def test_a_full_table_still_serves_a_new_key_and_drops_the_one_quiet_longest() -> None:
    buckets = KeyedBuckets[int](rate=0.001, burst=1, max_keys=3)
    for key in range(3):
        assert buckets.take(key, float(key))
    assert not buckets.take(0, 3.0)  # 0 was used last of all now, so 1 goes
    assert (len(buckets), buckets.evicted) == (3, 0)
    assert buckets.take(3, 4.0)
    assert (len(buckets), buckets.evicted) == (3, 1)
    assert not buckets.take(0, 5.0)
    assert buckets.take(1, 5.0)


def test_idle_buckets_leave_at_their_time_and_not_before() -> None:
    buckets = KeyedBuckets[str](rate=1, burst=1, max_keys=10, idle_after=10)
    buckets.take("idle", 0.0)
    buckets.take("x", 9.99)
    assert len(buckets) == 2
    buckets.take("x", 10.0)
    assert len(buckets) == 1
    assert buckets.evicted == 0


def test_forgetting_an_idle_bucket_changes_no_verdict() -> None:
    buckets = KeyedBuckets[str](rate=2, burst=4, max_keys=10)
    assert buckets.take("a", 0.0, 4)
    assert not buckets.take("a", 0.1)
    buckets.forget("a")
    assert buckets.take("a", 0.1, 4)


def test_a_clock_that_steps_back_does_not_pin_entries() -> None:
    buckets = KeyedBuckets[str](rate=1, burst=1, max_keys=10)
    buckets.take("future", 1e9)
    buckets.take("now", 5.0)
    assert len(buckets) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 3)), max_size=200))
def test_the_table_never_exceeds_its_bound(events: list[tuple[int, float]]) -> None:
    buckets = KeyedBuckets[int](rate=1, burst=2, max_keys=7)
    now = 0.0
    for key, gap in events:
        now += gap
        buckets.take(key, now)
        assert len(buckets) <= 7
