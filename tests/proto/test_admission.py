"""How many streams strangers may open, by the figures of `spec/transport.md` §3.3, and who may answer on a stream of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.admission import ReplyWindow, SynLimits

NODE = 7
MANY = 1e9  # SYNs per second over all: no limit
HANDSHAKE, DATA_EXCHANGE = 444, 1001


def admitted(limits: SynLimits, count: int, now: float, node: int = NODE) -> int:
    return sum(limits.admits(node, now) for _ in range(count))


def test_a_node_opens_sixty_four_streams_at_once_and_ten_a_second_from_then_on() -> None:
    limits = SynLimits(MANY)
    assert admitted(limits, 100, 0.0) == 64
    assert admitted(limits, 100, 1.0) == 10
    assert sum(admitted(limits, 3, 1.0 + step / 10) for step in range(1, 101)) == 100


def test_a_node_that_was_silent_for_ten_seconds_takes_no_memory() -> None:
    limits = SynLimits(MANY)
    limits.admits(NODE, 0.0)
    limits.admits(8, 9.9)  # others make the table look for what is idle
    assert len(limits._per_source) == 2
    limits.admits(8, 10.1)
    assert len(limits._per_source) == 1


def test_nodes_have_limits_of_their_own_and_one_together() -> None:
    limits = SynLimits(100.0)
    assert [admitted(limits, 64, 0.0, node) for node in (1, 2, 3)] == [64, 36, 0]
    assert not limits.admits(4, 0.009)  # whole tokens only
    assert limits.admits(4, 0.01)


def test_four_thousand_nodes_are_told_apart_and_the_longest_silent_makes_room() -> None:
    limits = SynLimits(MANY)
    assert admitted(limits, 100, 0.0, node=0) == 64
    for node in range(1, 4096):
        limits.admits(node, 0.001)
    assert admitted(limits, 1, 0.001, node=0) == 0  # still known: used last, too
    for node in range(5000, 5000 + 4096):
        limits.admits(node, 0.002)
    assert admitted(limits, 100, 0.002, node=0) == 64


@pytest.mark.parametrize("whitelist", [None, frozenset({NODE})], ids=["everybody", "this one"])
def test_nodes_on_the_whitelist_have_no_limit(whitelist: frozenset[int] | None) -> None:
    limits = SynLimits(1.0, whitelist)
    assert admitted(limits, 1000, 0.0) == 1000
    assert limits.admits(8, 0.0)  # and have taken nothing of what others may


@given(
    rate=st.sampled_from([1.0, 10.0, 100.0]),
    gaps=st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.3, 2.0, 20.0]), max_size=300),
)
def test_never_more_in_any_stretch_of_time_than_burst_and_rate_allow(rate: float, gaps: list[float]) -> None:
    limits, now, times = SynLimits(rate), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if limits.admits(NODE, now):
            times.append(now)
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate + rate * (times[last] - begin) + 1e-6


# --- the reply window (§3.3.1) -------------------------------------------------------------------------------------------


def test_a_node_that_was_dialled_may_answer_for_five_minutes_on_two_ports() -> None:
    window = ReplyWindow()
    assert not window.admits(NODE, HANDSHAKE, 0.0)
    window.note(NODE, 0.0)
    for port, may in ((HANDSHAKE, True), (DATA_EXCHANGE, True), (80, False), (7, False), (1002, False)):
        assert window.admits(NODE, port, 299.0) is may
        assert not window.admits(NODE, port, 300.0)
    assert not window.admits(8, HANDSHAKE, 1.0)


def test_another_dial_begins_the_five_minutes_anew() -> None:
    window = ReplyWindow()
    window.note(NODE, 0.0)
    window.note(NODE, 200.0)
    window.note(NODE, 200.2)
    assert window.admits(NODE, HANDSHAKE, 500.1)
    assert not window.admits(NODE, HANDSHAKE, 500.2)


def test_four_thousand_nodes_may_answer_and_one_more_once_another_may_not_any_longer() -> None:
    window = ReplyWindow()
    for node in range(4097):
        window.note(node, node / 1000)
    assert window.admits(4095, HANDSHAKE, 10.0)
    assert not window.admits(4096, HANDSHAKE, 10.0)
    window.note(4096, 300.0)
    assert window.admits(4096, HANDSHAKE, 301.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.05, 1.0, 150.0, 301.0])), max_size=60))
def test_who_may_answer_is_who_was_noted_within_five_minutes(steps: list[tuple[int, float]]) -> None:
    window, now, noted = ReplyWindow(), 0.0, dict[int, float]()
    for node, gap in steps:
        now += gap
        window.note(node, now)
        noted[node] = now
        for other, at in noted.items():
            if not 299.8 < now - at < 300.1:  # to a tenth of a second
                assert window.admits(other, HANDSHAKE, now) is (now - at < 300)
