"""Bounds by the figures of `spec/tunnel.md`, not by their names: a test that imports a bound is true of any value."""

from __future__ import annotations

import pytest

from pilot_trio.proto.tunnel.errors import ExchangeFailed
from pilot_trio.proto.tunnel.events import Drop, GaveUp, PathSuspect, RelayActivated, RelayCleared, RouteNeeded
from pilot_trio.proto.tunnel.machine import RouteAnswer
from pilot_trio.wire import tunnel

from .net import BEACON, Net, datagram


def deaf(count: int = 2) -> Net:
    """Return a network in which nothing arrives, with node 1 asking for node 2's key."""
    net = Net(count)
    net.filter = lambda source, to, data: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    return net


def give_up_for_good(net: Net) -> None:
    """Let time pass until the peer that never answers is idle and given up."""
    while net[1].machine._core.peers[2].cooldown_until < net.now:
        net.advance(0.25)


# --- giving up (§7.1) ----------------------------------------------------------------------------------------------------


def test_a_dead_peer_is_sought_for_two_minutes_after_it_was_last_wanted_and_then_forgotten() -> None:
    net = deaf()
    net.advance(160)
    net.sent.clear()
    net.advance(600)
    assert net.sent == []
    assert not net[1].machine.knows(2)


def test_a_dead_peer_that_is_wanted_again_is_sought_again() -> None:
    net = deaf()
    net.advance(160)
    net.sent.clear()
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert [data[:4] for *_, data in net.sent] == [tunnel.PILA]
    net.advance(31)
    assert [event.reason for event in net[1].of(PathSuspect)][-1] == "rekey_gave_up"  # type: ignore[attr-defined]


def test_a_peer_that_was_given_up_is_left_alone_for_five_seconds() -> None:
    net = deaf()
    give_up_for_good(net)
    given_up_at = net.now
    for wait in (0.0, 4.0):
        net.now = given_up_at + wait
        with pytest.raises(ExchangeFailed, match="peer_node_id=2"):
            net[1].machine.send(2, datagram(1, 2), net.now)
    net.now = given_up_at + 5
    net.filter = lambda source, to, data: True
    net.send(1, 2)
    assert net.payloads(2) == [b"hello"]


@pytest.mark.parametrize(("since", "resets"), [(29.0, 0), (30.0, 1)])
def test_giving_up_resets_a_path_once_in_thirty_seconds(since: float, resets: int) -> None:
    net = deaf()
    net.advance(30)
    net[1].machine._core.peers[2].reset_at = net.now + 1 - since
    net.advance(1)
    assert len(net[1].of(GaveUp)) == 1
    assert len(net[1].of(PathSuspect)) == resets


# --- what waits (§7.8, §8.2) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "arrived"), [(119.0, [b"hello"]), (121.0, [])])
def test_packets_wait_for_a_key_for_two_minutes(seconds: float, arrived: list[bytes]) -> None:
    net = deaf()
    net.send(1, 2)
    net.advance(seconds)
    net.filter = lambda source, to, data: True
    net[2].machine.ensure(1, net.now)
    net.pump()
    assert net[1].machine.has_session(2)
    assert net.payloads(2) == arrived
    assert net[1].machine.drops.get(Drop.QUEUE_EXPIRED, 0) == 1 - len(arrived)


@pytest.mark.parametrize(("age", "arrived"), [(4.5, [b"hello"]), (5.5, [])])
def test_a_packet_is_sent_again_under_the_next_key_if_it_is_not_older_than_five_seconds(
    age: float, arrived: list[bytes]
) -> None:
    net = Net()
    net.connect()
    net.filter = lambda source, to, data: data[:4] != tunnel.PILS
    net.send(1, 2)
    net.now += age
    net.filter = lambda source, to, data: True
    net[2].restart()
    net[2].machine.ensure(1, net.now)
    net.pump()
    assert net.payloads(2) == arrived


@pytest.mark.parametrize(("seconds", "arrived"), [(0.9, [b"overtakes"]), (1.1, [])])
def test_a_sealed_packet_that_overtakes_its_key_frame_waits_for_a_second(seconds: float, arrived: list[bytes]) -> None:
    net = Net()
    net.connect()
    net[1].restart()
    answers: list[bytes] = []

    def hold(source: object, to: object, data: bytes) -> bool:
        if source == net[2].addr and data[:4] == tunnel.PILA:
            answers.append(data)
        return source != net[2].addr

    net.filter = hold
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.filter = lambda source, to, data: source != net[1].addr  # or its own repetition would be answered
    net.send(2, 1, b"overtakes")
    net.advance(seconds)
    net.carry(net[2].addr, net[1].addr, answers[0])
    net.pump()
    assert net[1].machine.has_session(2)
    assert net.payloads(1) == arrived


# --- the relay (§10.3, §10.4) --------------------------------------------------------------------------------------------


def test_two_direct_packets_do_not_turn_a_peer_back_from_the_relay_and_the_third_does() -> None:
    net = Net(beacon=True)
    net.connect()
    core = net[1].machine._core
    core.turn_to_relay(core.peers[2], "test", pin=False)
    for number in (1, 2, 3):
        net.send(2, 1)
        assert net[1].machine.is_relayed(2) == (number < 3)
    assert len(net[1].of(RelayCleared)) == 1


def test_no_more_than_4096_peers_use_the_relay_and_one_that_is_forgotten_makes_room() -> None:
    net = Net()
    machine = net[1].machine
    machine.set_beacon(BEACON)
    for node in range(10, 10 + 4097):
        machine.on_route(node, RouteAnswer(BEACON, relay_only=True), net.now)
    assert machine.relayed_peers == 4096
    assert not machine.is_relayed(node)
    machine.forget(10)
    machine.on_route(node, RouteAnswer(BEACON, relay_only=True), net.now)
    net.pump()
    assert machine.is_relayed(node)
    assert len(net[1].of(RelayActivated)) == 4097


def test_the_registry_is_asked_anew_for_a_relayed_peer_every_other_attempt_to_leave_the_relay() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net.filter = lambda source, to, data: BEACON in (source, to)  # no direct path
    for one, two in ((1, 2), (2, 1)):
        net[one].machine.set_in_use(two, True, net.now)
        net[one].machine._core.turn_to_relay(net[one].machine._core.peers[two], "test", pin=True)
    net.advance(300)
    questions = [event.fresh for event in net[1].of(RouteNeeded)]  # type: ignore[attr-defined]
    assert 18 <= len(questions) <= 22  # every 15 s
    assert 9 <= sum(questions) <= 11


def test_what_cannot_be_done_is_tried_again_each_second_and_not_at_once_for_ever() -> None:
    net = Net(answers=True, beacon=True)
    net.connect()
    net[1].machine.set_in_use(2, True, net.now)
    core = net[1].machine._core
    core.turn_to_relay(core.peers[2], "test", pin=True)
    core.peers[2].route.address = None
    net[1].machine.set_beacon(None)  # no way to the peer is left: its keepalives are due, and cannot leave
    net[2].machine.forget(1)
    net._answer = lambda node, event: None  # type: ignore[method-assign]
    looks, end = 0, net.now + 50
    while (due := net[1].machine.next_deadline()) <= end:
        net.now = max(net.now, due)
        net[1].machine.handle_timeout(net.now)
        looks += 1
        assert looks <= 120
