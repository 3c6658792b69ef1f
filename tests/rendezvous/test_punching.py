from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.beacon_server import Drop
from pilot_trio.rendezvous.endpoint_table import MOVE_INTERVAL, EndpointTable
from pilot_trio.rendezvous.punching import ALL_RATE, PUNCH_BURST, PUNCH_RATE, Punching
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.wire.beacon import Discover, PunchCommand, PunchRequest, decode, normalise_host
from tests.rendezvous.test_beacon_server import ANY_PORT, discover, open_beacon

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
HERE, MOVED, THERE = Endpoint("192.0.2.1", 4001), Endpoint("192.0.2.1", 4009), Endpoint("192.0.2.2", 4002)
ELSEWHERE = Endpoint("192.0.2.3", 4003)
COMMANDS = [(PunchCommand(*THERE).encode(), HERE), (PunchCommand(*HERE).encode(), THERE)]


def make(
    *,
    unlimited: bool = True,
    may: Callable[[NodeId, NodeId], bool] = lambda _a, _b: True,
    registered: dict[int, str] | None = None,
) -> Punching:
    known = registered or {}
    table = EndpointTable()
    table.note(TWO, THERE, 0.0)
    return Punching(
        table, {1, 2, 3}.__contains__, may, lambda _host: unlimited, lambda node: known.get(node, ""), Counter()
    )


def test_both_get_the_endpoint_of_the_other() -> None:
    punching = make()
    assert punching.commands(PunchRequest(ONE, TWO), HERE, 1.0) == COMMANDS
    assert punching.punches == 1


def test_the_requester_is_where_it_asks_from_at_once_but_not_over_and_over() -> None:
    punching = make()
    table = punching.table
    for endpoint in (ELSEWHERE, HERE):  # so that a discover could not move it
        table.note(ONE, endpoint, 0.0)
    assert table.note(ONE, MOVED, 1.0).value == "too soon"
    punching.commands(PunchRequest(ONE, TWO), MOVED, 1.0)
    assert table.find(ONE, 1.0) == MOVED
    punching.commands(PunchRequest(ONE, TWO), ELSEWHERE, 2.0)
    assert table.find(ONE, 2.0) == MOVED
    punching.commands(PunchRequest(ONE, TWO), ELSEWHERE, 1.0 + MOVE_INTERVAL)
    assert table.find(ONE, 1.0 + MOVE_INTERVAL) == ELSEWHERE


def test_an_unknown_target_is_a_silent_drop_that_still_moves_the_requester() -> None:
    punching = make()
    assert punching.commands(PunchRequest(ONE, THREE), HERE, 1.0) == []
    assert punching.table.find(ONE, 1.0) == HERE
    assert punching.drops == {Drop.UNKNOWN_TARGET: 1}


def test_strangers_ask_in_vain_and_leave_no_trace() -> None:
    punching = make()
    assert punching.commands(PunchRequest(NodeId(77), TWO), HERE, 1.0) == []
    assert punching.table.find(NodeId(77), 1.0) is None
    assert punching.drops == {Drop.PUNCH_REFUSED: 1}


def test_what_the_registry_would_not_tell_is_not_told_here() -> None:
    punching = make(may=lambda requester, _target: requester == THREE)
    assert punching.commands(PunchRequest(ONE, TWO), HERE, 1.0) == []
    assert punching.drops == {Drop.PUNCH_REFUSED: 1}
    assert len(punching.commands(PunchRequest(THREE, TWO), ELSEWHERE, 1.0)) == 2


@pytest.mark.parametrize(
    ("registered", "host", "credible"),
    [
        ("8.8.8.8:4001", "8.8.8.8", True),
        ("8.8.8.8:4001", "::ffff:8.8.8.8", True),
        ("8.8.8.8:4001", "8.8.4.4", False),
        ("8.8.8.8:4001", "192.168.1.5", False),
        ("192.168.1.5:4001", "192.168.1.9", True),
        ("127.0.0.1:4001", "8.8.8.8", False),
        ("example.org:4001", "8.8.8.8", True),
        ("", "8.8.8.8", True),
    ],
)
def test_a_request_counts_only_from_where_the_requester_has_registered(
    registered: str, host: str, credible: bool
) -> None:
    punching = make(registered={ONE: registered})
    source = Endpoint(normalise_host(host), 5)
    assert bool(punching.commands(PunchRequest(ONE, TWO), source, 1.0)) is credible
    assert (punching.table.find(ONE, 1.0) == source) is credible
    assert punching.drops == ({} if credible else {Drop.PUNCH_REFUSED: 1})


def test_requests_of_one_source_are_limited() -> None:
    punching = make(unlimited=False)
    granted = sum(bool(punching.commands(PunchRequest(ONE, TWO), HERE, 1.0 + n / 100)) for n in range(1000))
    assert granted == pytest.approx(PUNCH_BURST + 10 * PUNCH_RATE, abs=2)
    assert punching.drops == {Drop.RATE_LIMITED: 1000 - granted}


def test_all_sources_together_are_limited_and_futile_requests_use_nothing_up() -> None:
    punching = make(unlimited=False)
    for host in range(int(2 * ALL_RATE)):
        punching.commands(PunchRequest(THREE, ONE), Endpoint(f"10.1.{host // 256}.{host % 256}", 4), 1.0)
    granted = sum(
        bool(punching.commands(PunchRequest(ONE, TWO), Endpoint(f"10.2.{host // 256}.{host % 256}", 4), 1.0))
        for host in range(int(2 * ALL_RATE))
    )
    assert granted == ALL_RATE


def test_local_programs_are_not_limited() -> None:
    punching = make()
    assert all(punching.commands(PunchRequest(ONE, TWO), HERE, 1.0) for _ in range(100))


@pytest.mark.parametrize("allowed", [True, False])
async def test_over_the_socket(autojump_clock: object, allowed: bool) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        beacon._punching.may_punch = lambda _requester, _target: allowed
        one, two = await network.open_udp(ANY_PORT), await network.open_udp(ANY_PORT)
        await discover(two, at, Discover(TWO))
        one.send_nowait(PunchRequest(ONE, TWO).encode(), at)
        if allowed:
            assert decode((await one.receive())[0]) == PunchCommand(*two.endpoint)
            assert decode((await two.receive())[0]) == PunchCommand(*one.endpoint)
        await discover(one, at, Discover(ONE))  # what comes next is the answer to this: nothing was sent before it
        await discover(two, at, Discover(TWO))
        assert beacon.statistics().punches == allowed
