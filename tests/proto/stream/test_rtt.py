"""What streams to one peer know of the path for each other."""

from __future__ import annotations

import pytest

from pilot_trio.proto.stream.budget import Budget, Budgets
from pilot_trio.proto.stream.rtt import RTO_INITIAL, RTO_MAX, RTO_MIN, RttEstimator
from pilot_trio.proto.stream.settings import SEGMENT
from pilot_trio.wire.packet import Packet

from .link import Link, Path


@pytest.mark.parametrize(("trip", "rto"), [(0.001, RTO_MIN), (0.04, RTO_MIN), (0.3, 0.9), (1.0, 3.0), (5.0, RTO_MAX)])
def test_a_stream_begins_with_the_round_trip_of_the_one_before_it(trip: float, rto: float) -> None:
    rtt = RttEstimator()
    for second in range(100):
        rtt.on_sample(trip, float(second))  # it does not vary
    successor = rtt.successor(100.0)
    assert successor.srtt == pytest.approx(trip)
    assert successor.rto == pytest.approx(rto)  # as if it might, again
    successor.on_sample(2 * trip, 101.0)
    assert (successor.srtt, successor.min_rtt) == (2 * trip, 2 * trip)  # a guess counts for nothing beside a sample


def test_a_shorter_handshake_is_believed_and_a_longer_one_may_have_waited() -> None:
    rtt = RttEstimator()
    rtt.on_sample(0.1, 0.0)
    for bound, found in ((0.05, 0.05), (0.2, 0.1)):
        successor = rtt.successor(1.0)
        successor.on_bound(bound, 1.0)
        assert successor.srtt == found
    rtt.on_bound(0.01, 1.0)
    assert rtt.srtt == 0.1


def test_what_was_true_long_ago_is_forgotten_however_often_it_was_handed_on() -> None:
    budget = Budget()
    budget.begin_stream(0.0).on_sample(0.1, 0.0)
    budget.segment_size.limit = 8192
    budget.segment_size.on_probe_sent(8192)
    budget.segment_size.on_probe_arrived(8192)
    for second in range(0, 301, 20):
        assert budget.begin_stream(float(second)).srtt == 0.1
    assert budget.segment_size.size == 8192
    fresh = budget.begin_stream(301.0)
    assert (fresh.srtt, fresh.rto) == (0.0, RTO_INITIAL)
    assert (budget.segment_size.size, budget.segment_size.limit) == (SEGMENT, 8192)


def test_another_path_is_another_length() -> None:
    budget = Budget()
    budget.begin_stream(0.0).on_sample(0.1, 0.0)
    budget.on_path(SEGMENT)
    assert budget.begin_stream(1.0).srtt == 0.0


def test_peers_without_streams_are_remembered_and_not_all_of_them() -> None:
    budgets = Budgets()
    used = Budget()
    budgets.add(0, used)
    for node in range(1, 257):
        budgets.add(node, Budget())
    assert budgets.get(0) is used  # there are streams to it; as it was asked for, it is the latest now
    assert budgets.get(1) is None
    assert budgets.get(2) is not None
    budgets.add(257, Budget())
    assert budgets.get(3) is None
    assert budgets.get(2) is not None


def ping(link: Link) -> float:
    """Ask and be answered while the dialler's first SYN and first data are lost; return how long that took after the dial."""
    link.lose_what_is_under_way()
    link.connect()
    begin = link.now
    lost: list[Packet] = []

    def carries(sender: int, packet: Packet) -> bool:
        if sender == 0 and packet.payload and not lost:
            lost.append(packet)
            return False
        return True

    link.filter = carries
    link.transfer(b"ping", 10.0)
    link.transfer(b"pong", 10.0, sender=1)
    assert lost
    return link.now - begin


def test_a_question_that_is_lost_after_its_handshake_was_is_repeated_after_round_trips_not_after_a_second() -> None:
    path = Path(delay=0.02)
    assert ping(Link(path)) < 0.7  # the quarter of a second in which the SYN was lost is taken for a part of it
    earlier = Link(path)
    earlier.connect()
    assert ping(Link(path, budgets=earlier.budgets)) < 0.15
