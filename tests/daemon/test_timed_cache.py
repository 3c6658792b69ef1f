from __future__ import annotations

import pytest

from pilot_trio.daemon.timed_cache import TimedCache


@pytest.mark.parametrize(("now", "found"), [(10, "x"), (19.9, "x"), (20, None)])
def test_value_is_returned_while_young_enough(now: float, found: str | None) -> None:
    cache: TimedCache[int, str] = TimedCache(2)
    cache.put(1, "x", 10)
    assert cache.get(1, now, max_age=10) == found


@pytest.mark.parametrize(("entries", "kept"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [1, 2, 3])])
def test_oldest_entry_makes_room(entries: int, kept: list[int]) -> None:
    cache: TimedCache[int, str] = TimedCache(3)
    for key in range(entries):
        cache.put(key, "x", key)
    assert [key for key in range(entries) if cache.get(key, 5, 100)] == kept
    assert len(cache) == len(kept)


def test_renewed_entry_is_not_the_oldest() -> None:
    cache: TimedCache[int, str] = TimedCache(2)
    for key in (1, 2, 1, 3):
        cache.put(key, "x", 0)
    assert cache.get(1, 0, 1)
    assert not cache.get(2, 0, 1)


def test_entries_can_be_forgotten() -> None:
    cache: TimedCache[int, str] = TimedCache(2)
    cache.put(1, "x", 0)
    cache.put(2, "y", 0)
    cache.forget(1)
    cache.forget(1)
    assert not cache.get(1, 0, 1)
    cache.clear()
    assert len(cache) == 0
