"""Peers that do not answer, peers that are elsewhere, and what both cost."""

from __future__ import annotations

import contextlib
import itertools
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.proto.tunnel.errors import TunnelError
from pilot_trio.proto.tunnel.events import Answered, RouteNeeded
from pilot_trio.proto.tunnel.machine import RouteAnswer
from pilot_trio.proto.tunnel.settings import (
    DOUBT_AFTER,
    KEEPALIVE_AFTER,
    LOOK_GAP,
    RELAYED_PATIENCE,
    UPGRADE_INTERVAL,
    TunnelSettings,
)
from pilot_trio.wire import beacon, tunnel
from pilot_trio.wire.packet import ACK, STREAM

from .net import BEACON, Net, datagram

ELSEWHERE = ("10.0.9.9", 4009)


def in_use(net: Net, *pairs: tuple[int, int]) -> None:
    for one, two in pairs:
        net[one].machine.set_in_use(two, True, net.now)
        net[two].machine.set_in_use(one, True, net.now)


def deafen(net: Net, node: int) -> None:
    """Let nothing through to a node but what the beacon sends it."""
    net.filter = lambda source, to, data: to != net[node].addr or source == BEACON


def requests(net: Net, node: int = 1) -> list[bytes]:
    """What a node has sent to the beacon to have both ends send."""
    own = [(to, data) for source, to, data in net.sent if source == net[node].addr]
    return [data for to, data in own if to == BEACON and data[0] == beacon.BeaconType.PUNCH_REQUEST]


# --- what upkeep costs ---------------------------------------------------------------------------------------------------


def test_a_peer_costs_nothing_between_its_keepalives() -> None:
    net = Net(5, answers=True)
    machine = net[1].machine
    for other in (2, 3, 4, 5):
        net.connect(1, other)
        in_use(net, (1, other))
    looks = 0
    ends_at = net.now + 600
    while (due := min(node.machine.next_deadline() for node in net.nodes.values())) <= ends_at:
        looks += due == machine.next_deadline()
        net.advance(due - net.now)
    assert looks <= 4 * (600 / KEEPALIVE_AFTER + 2)


def test_keepalives_leave_when_they_are_due_and_not_later() -> None:
    net = Net(answers=True)
    net.connect()
    in_use(net, (1, 2))
    net.sent.clear()
    started, times = net.now, []
    net.filter = lambda source, to, data: (times.append(net.now - started), True)[1]  # type: ignore[func-returns-value]
    net.advance(80)
    assert sorted(set(times)) == [KEEPALIVE_AFTER, 2 * KEEPALIVE_AFTER, 3 * KEEPALIVE_AFTER]


def test_a_peer_that_is_used_again_is_kept_warm_again() -> None:
    net = Net(answers=True)
    net.connect()
    net.advance(200)  # idle by now
    net.send(1, 2)
    net.sent.clear()
    net.advance(2 * KEEPALIVE_AFTER + 1)
    senders = {source for source, _, data in net.sent if data[:4] == tunnel.PILS}
    assert senders == {net[1].addr, net[2].addr}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "reverse", "restart", "lose", "relay", "deliver", "use", "moved", "reset"]),
            st.sampled_from([0.0, 0.1, 1.0, 3.0, 26.0, 130.0]),
        ),
        max_size=25,
    )
)
@settings(max_examples=60)
def test_no_deadline_is_missed(steps: list[tuple[str, float]]) -> None:
    """Whatever changes what is due for a peer, the one deadline by which it is looked at is never later."""
    net = Net(answers=True, beacon=True)
    net[1].machine.ensure(2, net.now)
    for step, wait in steps:
        one, two = (2, 1) if step == "reverse" else (1, 2)
        net[one].machine.ensure(two, net.now)
        if step in ("send", "reverse"):
            with contextlib.suppress(TunnelError):
                net[one].machine.send(two, datagram(one, two), net.now)
        elif step == "restart":
            net[2].restart()
        elif step == "use":
            in_use(net, (1, 2))
        elif step == "moved":
            net[1].machine.moved(net.now)
        elif step == "reset":
            net[1].machine.reset_path(2, net.now)
        else:
            carried = {"lose": "", "relay": "relay", "deliver": "all"}[step]
            net.filter = lambda source, to, data, carried=carried: (  # type: ignore[misc]
                carried == "all" or (carried == "relay" and BEACON in (source, to))
            )
        net.advance(wait)
        for node in net.nodes.values():
            next_look = node.machine.next_deadline()
            for peer in node.machine._core.peers.values():
                assert next_look <= peer.due_at <= net.now + LOOK_GAP
                assert peer.due_at <= min(peer.doubt_at, peer.upgrade_probe_at)
                assert peer.exchange is None or peer.due_at <= peer.exchange.due_at()


# --- doubt ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [1.0, 7.0])
def test_a_peer_whose_path_has_died_is_reached_by_relay_within_seconds(quiet: float) -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    in_use(net, (1, 2))
    net.advance(quiet)
    net.filter = lambda source, to, data: BEACON in (source, to)
    net.send(1, 2, b"lost")
    net.advance(4)
    net.send(1, 2, b"found")
    assert net.payloads(2) == [b"found"]
    assert net[1].machine.is_relayed(2)
    assert net[2].machine.is_relayed(1)
    assert len(net[1].of(Answered)) == 1


def test_what_is_not_answered_by_nature_costs_one_probe_and_neither_registry_nor_beacon() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net.sent.clear()
    asked = len(net[1].of(RouteNeeded))
    for _ in range(300):
        net.send(1, 2)
        net.advance(0.1)
    assert len(net.payloads(2)) == 300
    assert sum(source == net[1].addr for source, *_ in net.sent) <= 300 + 30 / DOUBT_AFTER + 2
    assert not requests(net)
    assert len(net[1].of(RouteNeeded)) == asked


def test_acknowledgments_are_not_expected_to_be_answered() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net.sent.clear()
    packet = datagram(1, 2, b"")._replace(flags=ACK, protocol=STREAM)
    net[1].machine.send(2, packet, net.now)
    net.pump()
    net.advance(20)
    assert len(net.sent) == 1


def test_a_peer_in_doubt_is_resolved_anew_and_found_where_the_registry_says() -> None:
    net = Net(answers=True)
    net.connect()
    net.advance(1)
    net[2].addr = ELSEWHERE  # and it has not said so to anybody but the registry
    net.send(1, 2, b"lost")
    net.advance(6)
    assert RouteNeeded(2, fresh=True) in net[1].events
    net.send(1, 2, b"found")
    assert net.payloads(2)[-1] == b"found"
    assert net[1].machine.peer_rows()[0]["endpoint"] == f"{ELSEWHERE[0]}:{ELSEWHERE[1]}"


def test_a_registry_that_lies_about_the_endpoint_does_not_move_a_peer() -> None:
    net = Net(answers=True)
    net.connect()
    net[1].machine.doubt(2, net.now)
    net[1].machine.on_route(2, RouteAnswer(ELSEWHERE), net.now)
    net.sent.clear()
    net.pump()
    assert [to for _, to, _ in net.sent].count(ELSEWHERE) == 1  # one probe
    net.send(1, 2, b"still here")
    assert net.payloads(2)[-1] == b"still here"


def test_asking_everywhere_ends_and_the_registry_is_asked_rarely() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net.advance(1)
    net.filter = lambda source, to, data: False
    net.sent.clear()
    asked = len(net[1].of(RouteNeeded))
    for _ in range(400):
        net.send(1, 2)
        net.advance(0.1)
    own = [to for source, to, _ in net.sent if source == net[1].addr]
    assert len(own) <= 400 + 80
    assert len(net[1].of(RouteNeeded)) - asked <= 8


def test_a_dial_can_ask_at_once() -> None:
    net = Net(answers=True)
    net.connect()
    net[2].addr = ELSEWHERE
    net[1].machine.doubt(2, net.now)
    net.pump()
    net.send(1, 2, b"found")
    assert net.payloads(2)[-1] == b"found"
    net.sent.clear()
    net[1].machine.doubt(2, net.now)
    net[1].machine.doubt(2, net.now)
    net[1].machine.doubt(9, net.now)  # nobody
    net.pump()
    assert sum(source == net[1].addr for source, *_ in net.sent) <= 3  # the probe and what answers bring


def test_a_hidden_peer_in_doubt_is_sent_nothing_directly() -> None:
    net = Net(answers=True, beacon=True)
    net.relay_only.add(2)
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[1].machine.set_in_use(2, True, net.now)
    net.filter = lambda source, to, data: to != net[2].addr
    net.sent.clear()
    net.send(1, 2)
    net.advance(60)
    assert {to for source, to, _ in net.sent if source == net[1].addr} == {BEACON}
    assert not requests(net)


# --- moving --------------------------------------------------------------------------------------------------------------


def test_peers_in_use_learn_at_once_where_a_node_has_moved_to() -> None:
    net = Net(3, answers=True, beacon=True)
    net.connect(1, 2)
    net.connect(1, 3)
    net.advance(130)  # both are idle
    in_use(net, (1, 2))
    net.sent.clear()
    net[1].addr = ELSEWHERE
    assert net[1].machine.moved(net.now) == 1
    net.pump()
    assert net[2].machine.peer_rows()[0]["endpoint"] == f"{ELSEWHERE[0]}:{ELSEWHERE[1]}"
    assert len(requests(net)) == 1
    assert net[3].addr not in {to for _, to, _ in net.sent}


def test_a_hidden_node_that_moves_tells_nobody() -> None:
    net = Net(answers=True, beacon=True)
    net[1].settings = TunnelSettings(relay_only=True)
    net[1].restart()
    net.connect()
    in_use(net, (1, 2))
    net.sent.clear()
    assert net[1].machine.moved(net.now) == 0
    net.pump()
    assert net.sent == []


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after a while"])
def test_who_hears_a_peer_by_relay_only_answers_there(late: bool) -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    if late:
        net.advance(RELAYED_PATIENCE)
    sealed = net[1].machine._core.peers[2].session
    assert sealed is not None
    frame = sealed.seal(datagram(1, 2).encode())
    net.carry(BEACON, net[2].addr, beacon.RelayDelivery(1, frame).encode())  # type: ignore[arg-type]
    assert net[2].machine.is_relayed(1) is late


# --- from relay to direct ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", ["registry", "memory"])
def test_an_upgrade_tries_what_the_registry_says_and_what_was_proven_last(stale: str) -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    in_use(net, (1, 2))
    for one, two in ((1, 2), (2, 1)):
        core = net[one].machine._core
        core.turn_to_relay(core.peers[two], "test", pin=True)
        if stale == "memory":
            core.peers[two].route.address = ("10.0.7.7", 1)
    if stale == "registry":
        net.registered = {1: ELSEWHERE, 2: ELSEWHERE}
    net.advance(2 * UPGRADE_INTERVAL)
    assert not net[1].machine.is_relayed(2)
    assert not net[2].machine.is_relayed(1)


def test_an_upgrade_does_not_need_the_registry() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    in_use(net, (1, 2))
    for one, two in ((1, 2), (2, 1)):
        core = net[one].machine._core
        core.turn_to_relay(core.peers[two], "test", pin=True)
    net._answer = lambda node, event: None  # type: ignore[method-assign]  # and nobody is asked anything
    net.advance(2 * UPGRADE_INTERVAL)
    assert not net[1].machine.is_relayed(2)
    assert not net[2].machine.is_relayed(1)


def test_an_upgrade_in_one_direction_turns_both_back() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net[1].machine.set_in_use(2, True, net.now)
    for one, two in ((1, 2), (2, 1)):
        core = net[one].machine._core
        core.turn_to_relay(core.peers[two], "test", pin=False)
    net[2].machine._core.peers[1].upgrade_at = inf  # only the other one tries
    net.advance(UPGRADE_INTERVAL)
    assert not net[1].machine.is_relayed(2)
    assert not net[2].machine.is_relayed(1)


def test_a_path_that_works_one_way_only_does_not_flap() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    in_use(net, (1, 2))
    deafen(net, 2)  # what 1 sends directly is lost, what 2 sends arrives
    turns: list[bool] = []
    for _ in range(600):
        net.send(1, 2, b"question")
        net.send(2, 1, b"answer")
        net.advance(0.1)
        turns.append(net[1].machine.is_relayed(2))
    changes = sum(before != after for before, after in itertools.pairwise(turns))
    assert changes <= 2 * 60 / UPGRADE_INTERVAL
    assert len([p for p in net.payloads(2) if p == b"question"]) >= 400
