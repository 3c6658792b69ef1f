"""Paths that lose, delay, repeat, reorder and damage: pure, so thousands of datagrams cost nothing."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_trio.testing.links import HEADERS, Arrival, Direction, Link, LinkStatistics

MANY = 4000


def carried(
    link: Link, count: int = MANY, *, gap: float = 0.001, seed: str = "7"
) -> tuple[list[Arrival], LinkStatistics]:
    """Send numbered datagrams `gap` seconds apart; return what arrives, in order of arrival."""
    direction = Direction(link, seed)
    arrivals = [
        arrival for number in range(count) for arrival in direction.carry(number.to_bytes(100, "big"), number * gap)
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at), direction.counted


def numbers(arrivals: list[Arrival]) -> list[int]:
    return [int.from_bytes(arrival.data, "big") for arrival in arrivals]


def test_a_perfect_path_carries_everything_at_once() -> None:
    arrivals, counted = carried(Link())
    assert numbers(arrivals) == list(range(MANY))
    assert arrivals[5].at == 5 * 0.001
    assert counted == LinkStatistics(sent=MANY, sent_bytes=MANY * 100, carried=MANY)


def test_delay_and_jitter_keep_the_order() -> None:
    arrivals, _ = carried(Link(delay=0.5, jitter=0.05))
    assert numbers(arrivals) == list(range(MANY))
    assert all(0.5 <= at - n * 0.001 <= 0.55 + 1e-9 for n, (at, _) in enumerate(arrivals))


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_the_share_lost_is_the_one_asked_for(burst: float) -> None:
    arrivals, counted = carried(Link(loss=0.1, burst=burst), 20_000)
    assert counted.lost + len(arrivals) == 20_000
    assert 0.08 < counted.lost / 20_000 < 0.12


def test_bursts_are_as_long_as_asked_for() -> None:
    arrivals, counted = carried(Link(loss=0.1, burst=5.0), 20_000)
    got = set(numbers(arrivals))
    bursts = sum(1 for n in range(20_000) if n not in got and (n == 0 or n - 1 in got))
    assert 4.0 < counted.lost / bursts < 6.0


@pytest.mark.parametrize("burst", [1.0, 3.0])
def test_a_loss_of_one_loses_everything(burst: float) -> None:
    assert carried(Link(loss=1.0, burst=burst))[0] == []


def test_duplicates_are_the_same_twice() -> None:
    arrivals, counted = carried(Link(duplication=0.2))
    assert len(arrivals) == MANY + counted.duplicated
    assert sorted(set(numbers(arrivals))) == list(range(MANY))
    assert 0.17 < counted.duplicated / MANY < 0.23


def test_reordered_ones_are_overtaken() -> None:
    arrivals, counted = carried(Link(reordering=0.1, reordering_delay=0.01))
    assert sorted(numbers(arrivals)) == list(range(MANY))
    late = [n for before, n in zip(numbers(arrivals), numbers(arrivals)[1:], strict=False) if n < before]
    assert counted.reordered * 0.7 < len(late) <= counted.reordered


def test_corruption_changes_a_few_bits_and_no_length() -> None:
    arrivals, counted = carried(Link(corruption=0.1))
    damaged = [
        (n ^ int.from_bytes(arrival.data, "big")).bit_count()
        for n, arrival in enumerate(arrivals)
        if len(arrival.data) == 100
    ]
    assert len(damaged) == MANY
    assert sum(1 for bits in damaged if bits) == counted.corrupted == pytest.approx(0.1 * MANY, rel=0.2)
    assert max(damaged) <= 4


def test_the_mtu_counts_headers() -> None:
    direction = Direction(Link(mtu=1500), "")
    assert direction.carry(bytes(1500 - HEADERS), 0.0)
    assert direction.carry(bytes(1501 - HEADERS), 0.0) == []
    assert direction.counted.too_long == 1


def test_the_rate_spaces_datagrams_and_the_queue_overflows() -> None:
    size = 1000 - HEADERS
    direction = Direction(Link(rate=10_000, queue=5_000), "")
    assert [len(direction.carry(bytes(size), 0.0)) for _ in range(7)] == [1, 1, 1, 1, 1, 0, 0]
    assert direction.counted.queue_full == 2
    (later,) = direction.carry(bytes(size), 0.1)  # one has left by now
    assert later.at == pytest.approx(0.6)


def test_equal_seeds_give_equal_fates_and_others_do_not() -> None:
    link = Link(loss=0.1, jitter=0.1, duplication=0.1, reordering=0.1, corruption=0.1)
    assert carried(link, seed="a") == carried(link, seed="a")
    assert carried(link, seed="a")[0] != carried(link, seed="b")[0]


@pytest.mark.parametrize(
    "bad", [{"loss": 1.1}, {"loss": -0.1}, {"delay": -1}, {"rate": 0}, {"mtu": 0}, {"jitter": float("nan")}]
)
def test_settings_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Link(**bad)
