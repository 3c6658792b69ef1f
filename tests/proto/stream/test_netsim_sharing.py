"""Streams that share a bottleneck: with their own kind, and with what the original does."""

from __future__ import annotations

import pytest

from pilot_trio.proto.stream.budget import BURST_CALM, PEER_BURST, PEER_BURST_MAX, Budget
from pilot_trio.proto.stream.congestion import CWND_NEAR
from pilot_trio.proto.stream.settings import SEGMENT

from .netsim import Bottleneck, Reno, Stream, fairness

pytestmark = pytest.mark.simulation

RATE = 2e6  # bytes per second
DELAY = 0.02  # seconds each way
PATH = RATE * 2 * DELAY  # bytes that the path holds


def bottleneck(queue: float, loss: float = 0.0) -> Bottleneck:
    """Make one whose queue is so many times what the path holds."""
    return Bottleneck(rate=RATE, delay=DELAY, queue=queue * PATH, loss=loss)


@pytest.mark.parametrize(
    ("count", "queue", "apart"),
    [(2, 0.5, 0.3), (4, 0.5, 0.3), (4, 1, 0.3), (4, 2, 0.3), (8, 0.5, 0.25), (8, 1, 0.25), (8, 2, 0.25), (4, 1, 3.0)],
)
def test_streams_come_to_equal_shares_of_a_full_path(count: int, queue: float, apart: float) -> None:
    net = bottleneck(queue)
    for index in range(count):
        net.join(Stream(net), after=index * apart)  # the last ones meet a queue, and may take it for the path's length
    net.run(count * apart + 4)
    shares = net.measure(6)
    assert fairness(shares) > 0.9
    assert sum(shares) > 0.95


@pytest.mark.parametrize("queue", [0.5, 1, 2])
@pytest.mark.parametrize(("sack", "ours_first"), [(False, False), (False, True), (True, False)])
def test_one_of_us_and_one_that_halves_at_each_loss_leave_each_other_a_share(
    queue: float, sack: bool, ours_first: bool
) -> None:
    net = bottleneck(queue)
    net.join(Stream(net), after=0.0 if ours_first else 2.0)
    net.join(Reno(net, sack=sack), after=2.0 if ours_first else 0.0)
    net.run(6)
    shares = net.measure(10)
    assert min(shares) > 0.5 / 3
    assert sum(shares) > 0.9


def test_the_original_in_the_simulation_is_as_fast_as_the_original() -> None:
    """Measured between two of them at 20 ms each way: 3.4 MiB/s without loss, 0.4 to 0.6 with 1 % of the packets lost."""
    found = []
    for loss in (0.0, 0.01):
        net = Bottleneck(rate=1e8, delay=DELAY, queue=1e9, loss=loss)
        flow = Reno(net)
        net.join(flow)
        net.run(12)
        found.append(flow.delivered / 12 / (1 << 20))
    assert found == [pytest.approx(3.4, rel=0.1), pytest.approx(0.5, abs=0.1)]


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_losses_by_chance_do_not_keep_a_stream_from_filling_the_path(loss: float) -> None:
    net = bottleneck(1, loss)
    net.join(Stream(net))
    net.run(2)
    (share,) = net.measure(6)
    assert share > 0.9


def test_a_stream_with_a_path_of_microseconds_is_limited_by_no_window_but_the_peers_buffer() -> None:
    net = Bottleneck(rate=30e6, delay=0.0001, queue=600 * SEGMENT)  # the queue is the peer's socket buffer
    stream = Stream(net)
    net.join(stream)
    net.run(0.4)
    assert stream.a is not None
    assert stream.a.row()["cong_win"] == CWND_NEAR
    assert stream.a.row()["fast_retx"] == 0
    (share,) = net.measure(0.2)
    assert share > 0.99


def test_streams_to_one_peer_grow_no_larger_than_its_small_buffer() -> None:
    net, budget = Bottleneck(rate=30e6, delay=0.0001, queue=150 * SEGMENT), Budget()
    for _ in range(4):
        net.join(Stream(net, budget))
    net.run(0.2)
    assert sum(net.measure(0.5)) > 0.9
    assert budget.burst < PEER_BURST_MAX / 2


def test_the_burst_to_a_peer_grows_while_it_is_used_and_nothing_is_lost() -> None:
    budget = Budget()
    budget.on_arrived(100 * SEGMENT)
    assert budget.burst == PEER_BURST  # not used
    for _ in range(20):
        budget.in_flight = budget.burst
        budget.on_arrived(budget.burst)
    assert budget.burst == PEER_BURST_MAX
    budget.on_lost(1.0)
    shrunk = budget.burst
    assert PEER_BURST < shrunk < PEER_BURST_MAX
    budget.on_lost(1.0 + BURST_CALM / 2)  # the same overflow
    assert budget.burst == shrunk
    for later in range(2, 50):
        budget.on_lost(later)
    assert budget.burst == PEER_BURST
