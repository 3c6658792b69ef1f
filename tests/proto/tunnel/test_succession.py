"""Key frames of earlier processes, replayed: they look as those of new ones do, and must not cost a living session."""

from __future__ import annotations

import pytest

from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.events import Drop, Established, KeyNeeded, Restarted
from pilot_trio.proto.tunnel.settings import PREDECESSOR_GAP, PREDECESSOR_QUESTIONS, REFUTED_TIME
from pilot_trio.proto.tunnel.upkeep_packets import ping
from pilot_trio.wire import tunnel

from .net import BEACON, Net, Node, datagram

ATTACKER = ("6.6.6.6", 666)


def replayable(*, beacon: bool = False) -> tuple[Net, bytes]:
    """Return two nodes in contact, and a key frame of an earlier process of the first."""
    net = Net(beacon=beacon, answers=True)
    net.connect()
    old = net[1].machine._exchanges.key_frame()
    net.send(1, 2, b"before")
    net.advance(5)
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.send(1, 2, b"x")
    net.advance(5)
    net[2].received.clear()
    net[2].events.clear()
    return net, old


def address(net: Net) -> object:
    return net[2].machine._core.peers[1].route.address


@pytest.mark.parametrize("beacon", [False, True])
def test_a_replayed_frame_of_an_earlier_process_is_undone_by_the_living_one(beacon: bool) -> None:
    net, old = replayable(beacon=beacon)
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.advance(PREDECESSOR_GAP)
    net.pump()
    assert address(net) == net[1].addr
    assert net[2].machine.drops[Drop.SUPERSEDED_KEY] == 1
    net.send(1, 2, b"still here")
    net.send(2, 1, b"me too")
    assert net.payloads(2) == [b"still here"]
    assert net.payloads(1)[-1] == b"me too"
    assert net[2].of(Restarted) == []


def test_what_the_living_process_sends_meanwhile_is_not_lost() -> None:
    net, old = replayable()
    for payload in (b"on the way", b"likewise"):
        net[1].machine.send(2, datagram(1, 2, payload), net.now)
    on_the_way = net[1].machine.datagrams_to_send()
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    for data, _ in on_the_way:
        assert net[2].machine.receive_datagrams([(data, net[1].addr)], net.now) == []
    net.pump()
    assert net.payloads(2) == [b"on the way", b"likewise"]


def test_a_frame_that_was_refuted_is_not_believed_again_for_a_while() -> None:
    net, old = replayable()
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.advance(1)
    before = len(net[2].of(Established))
    net.advance(REFUTED_TIME - 2)
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    assert address(net) == net[1].addr
    assert len(net[2].of(Established)) == before
    net.now += 2
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.advance(PREDECESSOR_GAP)
    net.pump()
    assert address(net) == net[1].addr
    assert len(net[2].of(Established)) == before + 1


def test_frames_of_several_earlier_processes_in_turn_do_not_keep_the_living_one_out() -> None:
    net, old = replayable()
    frames = [old]
    for _ in range(2):
        frames.append(net[1].machine._exchanges.key_frame())
        net.advance(5)
        net[1].restart()
        net[1].machine.ensure(2, net.now)
        net.pump()
        net.send(1, 2, b"x")
    net.advance(5)
    trip, under_way = 0.3, []  # seconds for a question and its answer; longer than the gap between two frames
    before = len(net[2].of(Established))

    def later(source: tuple[str, int], to: tuple[str, int], data: bytes) -> bool:
        if to == net[2].addr and source == net[1].addr:
            under_way.append((net.now + trip, data))
            return False
        return True

    net.filter = later
    for number in range(100):
        net[2].machine.receive_datagrams([(frames[number % 3], ATTACKER)], net.now)
        net.advance(0.21)
        for at, data in [arrival for arrival in under_way if arrival[0] <= net.now]:
            under_way.remove((at, data))
            net[2].machine.receive_datagrams([(data, net[1].addr)], net.now)
    assert address(net) == net[1].addr
    assert len(net[2].of(Established)) - before <= 6
    net.filter = lambda source, to, data: True
    net.send(2, 1, b"still there")
    assert net.payloads(1)[-1] == b"still there"


def test_a_registry_that_names_another_key_takes_no_tunnel_from_a_process_that_lives() -> None:
    net, _ = replayable()
    impostor = Node(net, 1)
    impostor.identity = Identity.from_seed(bytes(32))
    impostor.addr = ATTACKER
    impostor.restart()
    machine = net[2].machine
    machine.receive_datagrams([(impostor.machine._exchanges.key_frame(), ATTACKER)], net.now)
    assert machine.next_event() == KeyNeeded(1, fresh=True)
    machine.on_key(1, impostor.identity.public_key, net.now)
    net.advance(PREDECESSOR_GAP)
    net.pump()
    assert address(net) == net[1].addr
    net.send(1, 2, b"still here")
    net.send(2, 1, b"and still heard")
    assert net.payloads(2) == [b"still here"]
    assert net.payloads(1)[-1] == b"and still heard"


def test_a_key_once_seen_is_not_asked_for_again() -> None:
    net, _ = replayable()
    net[1].restart()  # with the key that it has always had; the registry may name another one by now
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert net[2].of(KeyNeeded) == []
    net.send(1, 2, b"anew")
    assert net.payloads(2) == [b"anew"]


def test_a_process_that_has_really_restarted_stays() -> None:
    net = Net(answers=True)
    net.connect()
    net.send(1, 2, b"old")
    net[1].machine.send(2, datagram(1, 2, b"late"), net.now)
    late = net[1].machine.datagrams_to_send()  # under way while the process ends
    net.now += 5
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[2].machine.receive_datagrams([(data, net[1].addr) for data, _ in late], net.now)
    net.send(1, 2, b"new")
    assert net.payloads(2) == [b"old", b"new"]
    assert len(net[2].of(Restarted)) == 1
    assert net[2].machine._core.peers[1].predecessor is None


def test_a_process_that_has_restarted_and_says_so_is_never_asked() -> None:
    net = Net(answers=True)
    net.connect()
    net.send(1, 2, b"old")
    net.now += 5
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[2].machine.send(1, ping(2, 1, 0, 0, b"restart"), net.now)  # as the daemon does after a new key
    net.pump()
    assert net[2].machine._core.peers[1].predecessor is None
    net.advance(5)
    assert Drop.UNDECRYPTABLE not in net[1].machine.drops


def test_a_process_that_does_not_answer_is_asked_a_few_times_and_then_left_alone() -> None:
    net, old = replayable()
    net.filter = lambda source, to, data: source != net[1].addr
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.sent.clear()
    net.advance(20)
    questions = [data for _, to, data in net.sent if to == net[1].addr and data[:4] == tunnel.PILS]
    assert len(questions) == PREDECESSOR_QUESTIONS
    assert address(net) == ATTACKER


def test_a_lost_question_is_asked_again_when_the_old_key_is_heard() -> None:
    net, old = replayable()
    net.filter = lambda source, to, data: not (source == net[2].addr and data[:4] == tunnel.PILS)
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.pump()
    assert address(net) == ATTACKER
    net.filter = lambda source, to, data: True
    net.now += PREDECESSOR_GAP
    net.send(1, 2, b"heard")
    assert address(net) == net[1].addr
    net.send(1, 2, b"and taken")
    assert net.payloads(2)[-1] == b"and taken"


def test_the_answer_cannot_be_replayed() -> None:
    net, old = replayable()
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.sent.clear()
    net.advance(1)
    answers = [data for source, to, data in net.sent if source == net[1].addr and data[:4] == tunnel.PILS]
    assert answers
    net[1].restart()  # this time it really does
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[2].machine.receive_datagrams([(data, net[1].addr) for data in answers], net.now)
    net.send(1, 2, b"anew")
    assert net.payloads(2)[-1] == b"anew"


def test_by_relay_too() -> None:
    net, old = replayable(beacon=True)
    net.filter = lambda source, to, data: BEACON in (source, to)
    net[2].machine.receive_datagrams([(old, ATTACKER)], net.now)
    net.advance(PREDECESSOR_GAP)
    net.pump()
    assert address(net) == net[1].addr


def test_without_a_session_the_endpoint_comes_back_with_the_answer_of_who_is_there() -> None:
    net = Net(answers=True)
    net.connect()
    net.send(1, 2, b"before")
    frame = net[1].machine._exchanges.key_frame()
    core = net[2].machine._core
    core.end_session(core.peers[1])
    net[2].machine.receive_datagrams([(frame, ATTACKER)], net.now)
    net.pump()
    assert address(net) == net[1].addr
    net.send(2, 1, b"after")
    assert net.payloads(1) == [b"after"]
