from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.endpoint_table import (
    ENTRY_TTL,
    HOME_TIME,
    MOVE_INTERVAL,
    NOTIFY_INTERVAL,
    EndpointTable,
    Noted,
    NotifySchedule,
)

HERE = Endpoint("192.0.2.1", 4000)
THERE = Endpoint("198.51.100.1", 5000)
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def test_an_entry_lives_for_its_time_after_the_last_discover() -> None:
    table = EndpointTable()
    assert table.note(ONE, HERE, 0.0) is Noted.NEW
    assert table.note(ONE, HERE, 100.0) is Noted.REFRESHED
    assert table.find(ONE, 100.0 + ENTRY_TTL - 0.001) == HERE
    assert table.find(ONE, 100.0 + ENTRY_TTL) is None
    assert len(table) == 1
    table.expire(100.0 + ENTRY_TTL)
    assert len(table) == 0


def test_a_node_that_moves_is_believed_at_once_and_then_not_before_the_interval_is_over() -> None:
    table = EndpointTable()
    table.note(ONE, HERE, 0.0)
    assert table.note(ONE, THERE, 0.1) is Noted.MOVED
    assert table.note(ONE, HERE, 0.1 + MOVE_INTERVAL - 0.01) is Noted.TOO_SOON
    assert table.find(ONE, 31.0) == THERE
    assert table.note(ONE, HERE, 0.1 + MOVE_INTERVAL) is Noted.MOVED
    assert table.find(ONE, 31.0) == HERE


def test_a_claim_from_elsewhere_waits_until_the_node_has_been_silent_at_home() -> None:
    table = EndpointTable()
    assert table.note(ONE, HERE, 0.0) is Noted.NEW
    assert table.note(ONE, THERE, 60.0, home=False) is Noted.TOO_SOON
    assert table.note(ONE, HERE, 61.0) is Noted.REFRESHED
    assert table.note(ONE, THERE, 60.0 + HOME_TIME, home=False) is Noted.TOO_SOON
    assert table.note(ONE, THERE, 61.0 + HOME_TIME, home=False) is Noted.MOVED
    assert table.note(ONE, HERE, 62.0 + HOME_TIME, registered=True) is Noted.MOVED
    assert table.note(ONE, THERE, 100.0 + HOME_TIME, home=False) is Noted.TOO_SOON


def test_refused_claims_do_not_keep_an_entry_alive() -> None:
    table = EndpointTable()
    table.note(ONE, HERE, 0.0)
    table.note(ONE, THERE, 0.0)
    for second in range(1, int(MOVE_INTERVAL)):
        assert table.note(ONE, HERE, float(second)) is Noted.TOO_SOON
    assert table.find(ONE, ENTRY_TTL) is None


def test_beyond_the_bound_the_node_silent_longest_goes() -> None:
    table = EndpointTable(max_nodes=2)
    table.note(ONE, HERE, 0.0)
    table.note(TWO, HERE, 1.0)
    assert (len(table), table.evicted) == (2, 0)
    table.note(ONE, HERE, 2.0)
    table.note(THREE, HERE, 3.0)
    assert (len(table), table.evicted) == (2, 1)
    assert [table.find(node, 3.0) for node in (ONE, TWO, THREE)] == [HERE, None, HERE]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([HERE, THERE]), st.floats(0, 100)), max_size=60),
    st.integers(1, 4),
)
def test_the_table_never_exceeds_its_bound_and_finds_only_what_was_claimed(
    claims: list[tuple[int, Endpoint, float]], bound: int
) -> None:
    table = EndpointTable(max_nodes=bound)
    now, last_heard, claimed = 0.0, dict[int, float](), dict[int, set[Endpoint]]()
    for node, endpoint, wait in claims:
        now += wait
        if table.note(NodeId(node), endpoint, now) is not Noted.TOO_SOON:
            last_heard[node] = now
        claimed.setdefault(node, set()).add(endpoint)
        assert len(table) <= bound
        for known, endpoints in claimed.items():
            found = table.find(NodeId(known), now)
            assert found is None or found in endpoints
            assert found is None or now - last_heard[known] < ENTRY_TTL


def test_a_second_notify_waits_for_the_interval_and_is_not_lost() -> None:
    schedule = NotifySchedule()
    assert schedule.offer(ONE, 0.0)
    assert schedule.next_deadline() == math.inf
    assert not schedule.offer(ONE, 1.0)
    assert not schedule.offer(ONE, 2.0)
    assert schedule.next_deadline() == NOTIFY_INTERVAL
    assert schedule.due(NOTIFY_INTERVAL - 0.001) == []
    assert schedule.due(NOTIFY_INTERVAL) == [ONE]
    assert schedule.next_deadline() == math.inf
    assert not schedule.offer(ONE, NOTIFY_INTERVAL + 1)  # the postponed one began an interval of its own


def test_after_a_quiet_interval_a_notify_goes_at_once_again() -> None:
    schedule = NotifySchedule()
    assert schedule.offer(ONE, 0.0)
    assert schedule.offer(ONE, NOTIFY_INTERVAL)
    assert not schedule.offer(ONE, 2 * NOTIFY_INTERVAL - 0.001)


def test_nodes_beyond_the_bound_are_not_notified() -> None:
    schedule = NotifySchedule(max_nodes=2)
    assert schedule.offer(ONE, 0.0) and schedule.offer(TWO, 0.0)
    assert not schedule.offer(THREE, 0.0)
    assert schedule.forgotten == 1
    assert schedule.offer(THREE, NOTIFY_INTERVAL)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=60))
def test_notifies_are_spaced_and_none_is_lost(offers: list[tuple[int, int]]) -> None:
    schedule = NotifySchedule()
    sent: dict[int, list[float]] = {1: [], 2: [], 3: []}
    wanted: dict[int, float] = {}
    now = 0.0

    def run_until(end: float) -> None:
        while (deadline := schedule.next_deadline()) <= end:
            for node in schedule.due(deadline):
                sent[node].append(deadline)

    for node, wait in offers:
        now += wait
        run_until(now)
        wanted[node] = now
        if schedule.offer(NodeId(node), now):
            sent[node].append(now)
    run_until(now + 10 * NOTIFY_INTERVAL)
    for node, times in sent.items():
        assert all(later - earlier >= NOTIFY_INTERVAL for earlier, later in itertools.pairwise(times))
        assert node not in wanted or times[-1] >= wanted[node]
