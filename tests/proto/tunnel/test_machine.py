"""The conformance checks of `spec/tunnel.md` §19, and what operators felt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.crypto.aead import Opener, Sealer
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.errors import ExchangeFailed, NoTunnel, QueueFull, TooManyPending
from pilot_trio.proto.tunnel.events import (
    ControlArrived,
    Drop,
    Established,
    GaveUp,
    KeyNeeded,
    PathSuspect,
    Refused,
    RelayActivated,
    RelayCleared,
    Restarted,
    Salvaged,
    SameSession,
    SessionDropped,
)
from pilot_trio.proto.tunnel.machine import RouteAnswer, TunnelMachine
from pilot_trio.wire import beacon, tunnel
from pilot_trio.wire import packet as packets

from .net import BEACON, Net, Node, datagram

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "tunnel.json").read_text())


def machine_of(peer: dict[str, Any]) -> TunnelMachine:
    identity = Identity.from_seed(bytes.fromhex(peer["ed25519_seed"]))
    machine = TunnelMachine(
        identity=identity,
        keypair=KeyPair.from_private(bytes.fromhex(peer["x25519_private"])),
        random_bytes=lambda size: bytes.fromhex(peer["nonce_prefix"]),
    )
    machine.on_registered(peer["node_id"], identity)
    return machine


def play(name: str) -> None:
    """Be the recorded peer: what we send must be the recorded bytes, what we get must open."""
    conversation = VECTORS[name]
    machine, daemon = machine_of(conversation["peer"]), conversation["daemon"]
    own, other = conversation["peer"]["node_id"], daemon["node_id"]
    daemon_addr, relayed = ("127.0.0.1", 5000), name == "live_relay"
    if relayed:
        machine.set_beacon(BEACON)
    machine.on_route(other, RouteAnswer(daemon_addr, relay_only=relayed), 0.0)
    key = Opener(bytes.fromhex(conversation["derived"]["aes256_key"]))
    now, sent, opened = 1.0, list[bytes](), 0
    for step in conversation["steps"]:
        raw = bytes.fromhex(step["datagram"])
        inner = raw[9:] if relayed and raw[0] == 5 else raw[5:] if relayed and raw[0] == 6 else raw
        if step["dir"] == "daemon->peer":
            now += 0.3
            got = machine.receive_datagrams([(raw, BEACON if relayed else daemon_addr)], now)
            while (event := machine.next_event()) is not None:
                if isinstance(event, KeyNeeded):
                    got += machine.on_key(other, bytes.fromhex(daemon["ed25519_pub"]), now)
                elif isinstance(event, ControlArrived):
                    got.append((event.node, event.packet))
            if inner.startswith(tunnel.PILS):
                assert [packet.encode() for _, packet in got] == [key.open(inner)]
                opened += 1
            sent += [data for data, _ in machine.datagrams_to_send()]
        elif step["dir"] == "peer->daemon" and inner.startswith(tunnel.PILS):
            machine.send(other, packets.decode(key.open(inner)), now)
            (produced,) = machine.datagrams_to_send()
            assert produced[0] == raw
        elif step["dir"] == "peer->daemon" and inner.startswith(tunnel.PILA):
            sent += [data for data, _ in machine.datagrams_to_send()]
            assert raw in sent
    assert opened
    assert own == machine._core.node_id


@pytest.mark.parametrize("name", ["live_direct", "live_relay"])
def test_the_recorded_conversation_comes_out_byte_for_byte(name: str) -> None:
    play(name)


def test_first_contact_is_three_key_frames_and_one_event_each() -> None:
    net = Net()
    net.connect()
    assert [data[:4] for *_, data in net.sent] == [tunnel.PILA] * 3
    for node in (1, 2):
        assert len(net[node].of(Established)) == 1
        assert not net[node].of(SameSession)


def test_a_repeated_key_frame_after_the_debounce_is_one_event_and_changes_nothing() -> None:
    net = Net()
    net.connect()
    session = net[2].machine._core.peers[1].session
    frame = next(data for source, _, data in net.sent if source == net[1].addr)
    net.now += 0.2
    net.carry(net[1].addr, net[2].addr, frame)
    net.pump()
    assert not net[2].of(SameSession)
    net.now += 0.2
    net.carry(net[1].addr, net[2].addr, frame)
    net.pump()
    assert len(net[2].of(SameSession)) == 1
    assert len(net[2].of(Established)) == 1
    assert net[2].machine._core.peers[1].session is session


def test_another_key_right_after_the_first_is_a_full_rekey_and_is_answered() -> None:
    net = Net()
    net.connect()
    net.send(1, 2)
    net.now += 0.001
    net[1].restart()
    net.sent.clear()
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert [event.rekeyed for event in net[2].of(Established)] == [False, True]  # type: ignore[attr-defined]
    assert net[1].machine.has_session(2)
    net.send(2, 1)
    assert net.payloads(1) == [b"hello"]
    assert net[2].of(Restarted) == []
    net.send(1, 2)
    assert [event.node for event in net[2].of(Restarted)] == [1]  # type: ignore[attr-defined]


def test_a_key_frame_alone_does_not_prove_that_a_peer_has_restarted() -> None:
    net = Net()
    net.connect()
    net.send(1, 2)
    net.now += 10
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert [event.rekeyed for event in net[2].of(Established)] == [False, True]  # type: ignore[attr-defined]
    assert net[2].of(Restarted) == []
    net.send(1, 2)
    net.send(1, 2)
    assert len(net[2].of(Restarted)) == 1


def test_a_silent_peers_known_key_frame_is_answered_once_a_second() -> None:
    net = Net()
    net.connect()
    frame = next(data for source, _, data in net.sent if source == net[1].addr)
    net.now += 7
    answers = []
    for gap in (0.0, 0.5, 0.6):
        net.now += gap
        net.sent.clear()
        net[2].machine.receive_datagrams([(frame, net[1].addr)], net.now)
        answers.append(sum(data[:4] == tunnel.PILA for data, _ in net[2].machine.datagrams_to_send()))
    assert answers == [1, 0, 1]


def test_a_peer_that_shows_its_key_again_without_having_used_it_is_answered_before_it_counts_as_silent() -> None:
    """Old peers that have lost their session ask with nothing but their key frame, and wait for ours."""
    net = Net()
    net.connect()
    net.send(1, 2)
    frame = net[1].machine._exchanges.key_frame()

    def show(after: float) -> int:
        net.now += after
        net[2].machine.receive_datagrams([(frame, net[1].addr)], net.now)
        return len(net[2].machine.datagrams_to_send())

    assert [show(1), show(0.01), show(0.2)] == [0, 0, 0]  # once, and copies that took another path
    assert show(1) == 1
    assert show(0.5) == 0  # once a second
    net.send(1, 2)
    assert show(1) == 0  # it has used its session since


def test_two_nodes_far_apart_do_not_answer_each_others_answers() -> None:
    net, trip = Net(), 1.1  # seconds each way
    net.connect()
    net.send(1, 2)
    net.send(2, 1)
    frames = {node: net[node].machine._exchanges.key_frame() for node in (1, 2)}
    under_way = [
        (net.now + 0.5, 1),
        (net.now + 1, 2),
        (net.now + 2, 2),
    ]  # (when, to whom): keys are shown once, once, again
    sent = 0
    while under_way and sent < 20:
        net.now, node = under_way.pop(0)
        net[node].machine.receive_datagrams([(frames[3 - node], net[3 - node].addr)], net.now)
        answers = len(net[node].machine.datagrams_to_send())
        sent += answers
        under_way += [(net.now + trip, 3 - node)] * answers
    assert sent <= 2


def test_sealed_packets_without_a_session_are_answered_with_both_key_frames_every_three_seconds() -> None:
    net = Net(beacon=True)
    stray = Sealer(bytes(32), 1, b"pref").seal(datagram(1, 2).encode())
    counts = []
    for gap in (0.0, 2.9, 0.2):
        net.now += gap
        net[2].machine.receive_datagrams([(stray, net[1].addr)], net.now)
        out = net[2].machine.datagrams_to_send()
        counts.append([data[:4] for data, to in out if to == net[1].addr])
    assert counts == [[tunnel.PILA, tunnel.PILK], [], [tunnel.PILA, tunnel.PILK]]
    assert not net[2].machine.knows(1)


def test_a_key_request_never_makes_a_session() -> None:
    net = Net()
    request = tunnel.encode_key_request(tunnel.KeyRequest(1, KeyPair.generate().public))
    stranger = tunnel.encode_key_request(tunnel.KeyRequest(77, KeyPair.generate().public))
    for data in (request, stranger):
        net[2].machine.receive_datagrams([(data, net[1].addr)], net.now)
        ((answer, to),) = net[2].machine.datagrams_to_send()
        assert (answer[:4], to) == (tunnel.PILA, net[1].addr)
    assert not net[2].machine.has_session(1)
    assert not net[2].machine.knows(77)


def test_a_forged_counter_leaves_no_trace() -> None:
    net = Net()
    net.connect()
    forged = bytearray(net[1].machine._core.peers[2].session.seal(datagram(1, 2).encode()))  # type: ignore[union-attr]
    forged[12:20] = (2**63).to_bytes(8, "big")
    net.carry(net[1].addr, net[2].addr, bytes(forged))
    net.send(1, 2, b"genuine")
    assert net.payloads(2) == [b"genuine"]


def test_junk_never_ends_a_session() -> None:
    net = Net()
    net.connect()
    net.now += 100
    junk = Sealer(bytes(32), 1, b"junk").seal(b"x" * 40)
    for _ in range(50):
        net.carry(net[1].addr, net[2].addr, junk)
        net.pump()
    assert len(net[2].of(SessionDropped)) == 1  # said once, and the peer was asked for its key
    net.send(1, 2, b"still here")
    assert net.payloads(2) == [b"still here"]


@pytest.mark.parametrize(("age", "replays", "asked"), [(2, 4, False), (2, 5, True), (61, 4, False), (0.5, 9, False)])
def test_replays_make_us_ask_for_the_key_and_never_end_a_session(age: float, replays: int, asked: bool) -> None:
    net = Net()
    net.connect()
    net.now += age
    net.send(1, 2)
    last = net.sent[-1][2]
    net.filter = lambda source, to, data: source != net[2].addr
    for _ in range(replays):
        net.carry(net[1].addr, net[2].addr, last)
    net.sent.clear()
    net.pump()
    assert bool(net[2].of(SessionDropped)) == asked
    assert [data[:4] for *_, data in net.sent] == [tunnel.PILA, tunnel.PILK] * asked
    assert net.payloads(2) == [b"hello"]
    assert net[2].machine.has_session(1)


def test_packets_wait_for_the_key_in_order_and_within_bounds() -> None:
    net = Net()
    net.filter = lambda source, to, data: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    for index in range(64):
        net[1].machine.send(2, datagram(1, 2, b"%d" % index), net.now)
    with pytest.raises(QueueFull, match="peer_node_id=2"):
        net[1].machine.send(2, datagram(1, 2, b"64"), net.now)
    net.filter = lambda source, to, data: True
    net.advance(10)
    assert net.payloads(2) == [b"%d" % index for index in range(64)]


def test_the_257th_peer_waits_for_nobody() -> None:
    net = Net()
    machine = net[1].machine
    for node in range(10, 10 + 257):
        machine.on_route(node, RouteAnswer(("10.9.9.9", 1)), net.now)
        if node < 10 + 256:
            machine.send(node, datagram(1, node), net.now)
    with pytest.raises(TooManyPending):
        machine.send(node, datagram(1, node), net.now)


def test_an_unknown_peer_is_an_error_with_its_number() -> None:
    with pytest.raises(NoTunnel, match="no tunnel to node 9"):
        Net()[1].machine.send(9, datagram(1, 9), 0.0)


def test_a_peer_that_never_answers_is_given_up_and_left_alone_for_a_moment() -> None:
    net = Net()
    net.filter = lambda source, to, data: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.advance(32)
    assert len(net[1].of(GaveUp)) == 1
    assert sum(data[:4] == tunnel.PILA for *_, data in net.sent) >= 6


def test_while_it_is_left_alone_packets_are_refused() -> None:
    net = Net()
    net.filter = lambda source, to, data: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[1].machine._core.peers[2].cooldown_until = net.now + 5
    with pytest.raises(ExchangeFailed):
        net[1].machine.send(2, datagram(1, 2), net.now)


def test_a_lost_key_frame_costs_a_second_not_eight() -> None:
    net = Net()
    lost = []

    def lose_first(source: object, to: object, data: bytes) -> bool:
        lost.append(data)
        return len(lost) > 1

    net.filter = lose_first
    net[1].machine.ensure(2, net.now)
    started = net.now
    net.pump()
    while not net[1].machine.has_session(2):
        net.advance(0.25)
    assert net.now - started <= 2.25


def test_a_lost_key_frame_costs_a_second_where_the_beacon_relays_nothing() -> None:
    net = Net(beacon=True)
    net.filter = lambda source, to, data: to != BEACON and net.now > 100
    net[1].machine.ensure(2, net.now)
    net.advance(1.25)
    assert net[1].machine.has_session(2)
    assert net[2].machine.has_session(1)


def test_a_sealed_packet_that_overtakes_the_key_frame_is_kept_and_not_answered() -> None:
    net = Net()
    net.connect()
    net[1].restart()
    first: list[bytes] = []

    def hold(source: object, to: object, data: bytes) -> bool:
        if source == net[2].addr:
            first.append(data)
        return source != net[2].addr

    net.filter = hold
    net[1].machine.ensure(2, net.now)
    net.pump()
    (answer,) = first  # held back: what node 2 seals overtakes it
    net.filter = lambda source, to, data: True
    net.sent.clear()
    net.send(2, 1, b"overtakes")
    assert [data[:4] for source, _, data in net.sent if source == net[1].addr] == []
    assert net[1].of(Refused) == []
    net.carry(net[2].addr, net[1].addr, answer)
    net.pump()
    assert net.payloads(1) == [b"overtakes"]


def test_three_writes_into_silence_turn_to_the_relay_and_two_do_not() -> None:
    net = Net(beacon=True)
    net.connect()
    net.filter = lambda source, to, data: BEACON in (source, to)
    net.now += 9
    for _ in range(2):
        net.send(1, 2)
    assert not net[1].machine.is_relayed(2)
    net.send(1, 2, b"third")
    assert net[1].machine.is_relayed(2)
    assert net.payloads(2) == [b"third"]
    assert len(net[1].of(RelayActivated)) == 1


def test_direct_packets_turn_an_unpinned_peer_back_and_never_a_pinned_one() -> None:
    net = Net(beacon=True)
    net.connect()
    for pinned in (True, False):
        route = net[1].machine._core.peers[2].route
        net[1].machine._core.turn_to_relay(net[1].machine._core.peers[2], "test", pin=pinned)
        route.pinned = pinned
        for _ in range(3):
            net.send(2, 1)
        assert net[1].machine.is_relayed(2) == pinned
    assert len(net[1].of(RelayCleared)) == 1
    assert net[1].machine._core.relayed_peers == 0


def test_a_relay_only_peer_is_reached_without_ever_writing_to_its_own_address() -> None:
    net = Net(beacon=True)
    net.relay_only = {2}
    net[2].settings.relay_only = True
    net.connect()
    net.send(1, 2, b"there")
    net.send(2, 1, b"back")
    assert (net.payloads(2), net.payloads(1)) == ([b"there"], [b"back"])
    assert all(BEACON in (source, to) for source, to, _ in net.sent)


def test_an_upgrade_leaves_the_relay_at_both_ends() -> None:
    net = Net(beacon=True)
    net.connect()
    for one, two in ((1, 2), (2, 1)):
        net[one].machine._core.turn_to_relay(net[one].machine._core.peers[two], "test", pin=True)
        net[one].machine.set_in_use(two, True, net.now)
    net.advance(40)
    assert not net[1].machine.is_relayed(2)
    assert not net[2].machine.is_relayed(1)


@pytest.mark.parametrize("kind", ["delivery", "punch", "notify"])
def test_beacon_messages_from_anybody_else_have_no_effect(kind: str) -> None:
    net = Net(beacon=True)
    net.connect()
    net.sent.clear()
    data = {
        "delivery": beacon.RelayDelivery(1, tunnel.PILS + bytes(60)).encode(),  # type: ignore[arg-type]
        "punch": beacon.PunchCommand("10.9.9.9", 1).encode(),
        "notify": b"\x0a\x01",
    }[kind]
    assert net[2].machine.receive_datagrams([(data, ("10.6.6.6", 6))], net.now) == []
    assert net[2].machine.datagrams_to_send() == []


def test_a_punch_command_from_the_beacon_sends_three_punches() -> None:
    net = Net(beacon=True)
    net[1].machine.receive_datagrams([(beacon.PunchCommand("10.9.9.9", 1).encode(), BEACON)], net.now)
    assert net[1].machine.datagrams_to_send() == [(tunnel.PILP, ("10.9.9.9", 1))] * 3


def test_a_spoofed_source_is_dropped_and_said() -> None:
    net = Net(3)
    net.connect()
    net[1].machine.send(2, datagram(3, 2, b"spoof"), net.now)
    net.pump()
    assert net.payloads(2) == []
    assert [event.drop for event in net[2].of(Refused)] == [Drop.SPOOFED_SOURCE]  # type: ignore[attr-defined]


def test_after_a_rekey_the_last_datagrams_follow_the_key_frame() -> None:
    net = Net()
    net.connect()
    net.filter = lambda source, to, data: data[:4] != tunnel.PILS
    for index in range(6):
        net.send(1, 2, b"%d" % index)
    net.filter = lambda source, to, data: True
    net[2].restart()
    net.sent.clear()
    net[2].machine.ensure(1, net.now)
    net.pump()
    assert net.payloads(2) == [b"2", b"3", b"4", b"5"]
    assert [event.replayed for event in net[1].of(Salvaged)] == [4]  # type: ignore[attr-defined]
    from_one = [data[:4] for source, _, data in net.sent if source == net[1].addr]
    assert from_one[0] == tunnel.PILA


def test_the_sixth_key_frame_of_a_second_is_dropped_before_any_check() -> None:
    net = Net()
    frame = net[1].machine._exchanges.key_frame()
    for _ in range(6):
        net[2].machine.receive_datagrams([(frame, net[1].addr)], net.now)
    assert net[2].machine.drops[Drop.KEY_FRAME_RATE] == 1


def test_a_replayed_key_frame_does_not_move_the_endpoint_and_a_live_peer_does() -> None:
    net = Net()
    net.connect()
    frame = net[1].machine._exchanges.key_frame()
    attacker = ("10.6.6.6", 6)
    net.now += 1
    net.carry(attacker, net[2].addr, frame)
    net.pump()
    net.send(2, 1, b"to the real one")
    assert net.payloads(1) == [b"to the real one"]
    net[1].addr = ("10.0.1.1", 4999)  # its NAT mapping changed
    net.send(1, 2, b"from elsewhere")
    net.send(2, 1, b"follows")
    assert net.payloads(1)[-1] == b"follows"


def test_an_old_packet_that_arrives_late_from_the_old_address_does_not_move_the_endpoint_back() -> None:
    net = Net()
    net.connect()
    held: list[tuple[Any, Any, bytes]] = []

    def hold(source: Any, to: Any, data: bytes) -> bool:
        held.append((source, to, data))
        return False

    net.filter = hold
    net.send(1, 2, b"late")
    net.filter = lambda source, to, data: True
    net[1].addr = ("10.0.1.1", 4999)
    net.send(1, 2, b"new place")
    net.carry(*held[0])
    net.send(2, 1, b"answer")
    assert net.payloads(2) == [b"new place", b"late"]
    assert net.payloads(1) == [b"answer"]


def test_a_restarted_peer_whose_relayed_key_frame_comes_first_is_found_at_its_new_port() -> None:
    net = Net(beacon=True)
    net.connect()
    net[1].restart()
    net[1].addr = ("10.0.1.1", 4999)
    direct: list[tuple[Any, Any, bytes]] = []

    def late_direct(source: Any, to: Any, data: bytes) -> bool:
        if source == net[1].addr and to == net[2].addr:
            direct.append((source, to, data))
            return False
        return True

    net.filter = late_direct
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.filter = lambda source, to, data: True
    net.now += 0.001
    for item in direct:
        net.carry(*item)
    net.pump()
    assert net[1].machine.has_session(2)
    net.send(2, 1, b"found")
    assert net.payloads(1) == [b"found"]


def test_a_silent_path_is_probed_and_reset_and_healthy_peers_are_left_alone() -> None:
    net = Net(3)
    net.connect(1, 2)
    net.connect(1, 3)
    for node in (2, 3):
        net[1].machine.set_in_use(node, True, net.now)
        net[node].machine.set_in_use(1, True, net.now)
    dead = net[2].addr
    net.filter = lambda source, to, data: dead not in (source, to)
    net.advance(100)
    assert [event.node for event in net[1].of(PathSuspect)][:1] == [2]  # type: ignore[attr-defined]
    assert all(event.node == 2 for event in net[1].of(PathSuspect))  # type: ignore[attr-defined]
    net.filter = lambda source, to, data: True
    net.advance(30)
    assert net[1].machine.has_session(2)


def test_idle_peers_are_let_go_and_forgotten() -> None:
    net = Net()
    net.connect()
    net.sent.clear()
    net.advance(119)
    assert any(data[:4] == tunnel.PILS for *_, data in net.sent)
    net.advance(5)
    net.sent.clear()
    net.advance(100)
    assert net.sent == []
    net.advance(300)
    assert not net[1].machine.knows(2)
    net.connect()


def test_path_probes_and_their_answers_are_no_use_of_a_tunnel() -> None:
    net = Net(answers=True)
    net.connect()
    keepalive_size = tunnel.PILS_HEADER + packets.HEADER_SIZE + tunnel.TAG_SIZE
    # Keepalives of one side get lost, so the other side hears nothing and probes.
    net.filter = lambda source, to, data: source != net[1].addr or len(data) > keepalive_size
    net.send(1, 2)
    net.sent.clear()
    net.advance(120)
    assert any(source == net[2].addr and len(data) > keepalive_size for source, _, data in net.sent)
    net.advance(10)
    net.sent.clear()
    net.advance(300)
    assert net.sent == []
    assert not net[1].machine.knows(2)
    assert not net[2].machine.knows(1)


def test_a_peer_that_repeats_its_key_frame_for_an_hour_costs_one_event_each_and_nothing_else() -> None:
    net = Net()
    net.connect()
    frame = net[1].machine._exchanges.key_frame()
    for _ in range(450):
        net.advance(8)
        net.carry(net[1].addr, net[2].addr, frame)
        net.pump()
    assert len(net[2].of(Established)) <= 1 + 450 * 8 // 300  # forgotten while idle, then new
    assert len(net[2].of(Refused)) == 0


def test_a_registry_that_cannot_name_a_node_makes_no_session_and_is_asked_rarely() -> None:
    net = Net()
    del net.nodes[2].net.nodes[1]
    other = Net()
    frame = other[1].machine._exchanges.key_frame()
    for _ in range(5):
        net[2].machine.receive_datagrams([(frame, ("10.0.1.1", 4000))], net.now)
        net.pump()
    assert len(net[2].of(KeyNeeded)) == 1
    assert not net[2].machine.has_session(1)


@pytest.mark.parametrize("what", ["signature", "key", "low order"])
def test_forged_key_frames_make_no_session(what: str) -> None:
    net = Net()
    frame = tunnel.decode_key_exchange(net[1].machine._exchanges.key_frame())
    if what == "signature":
        frame = frame._replace(signature=frame.signature[:-1] + bytes([frame.signature[-1] ^ 1]))
    elif what == "key":
        other = Identity.generate()
        frame = frame._replace(ed25519=other.public_key, signature=other.sign(frame.signed_bytes))
    else:
        zero = bytes(32)
        frame = frame._replace(x25519=zero, signature=net[1].identity.sign(tunnel.signed_bytes(1, zero)))
    net.carry(net[1].addr, net[2].addr, tunnel.encode_key_exchange(frame))
    net.pump()
    expected = {"signature": Drop.BAD_SIGNATURE, "key": Drop.KEY_MISMATCH, "low order": Drop.BAD_KEY}[what]
    assert [event.drop for event in net[2].of(Refused)] == [expected]  # type: ignore[attr-defined]
    assert not net[2].machine.has_session(1)


def test_a_rotated_key_is_accepted_once_the_registry_has_it() -> None:
    net = Net()
    net.connect()
    net[1].identity = Identity.generate()
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.send(1, 2, b"rotated")
    assert net.payloads(2) == [b"rotated"]


def test_a_peer_that_was_forgotten_and_kept_its_own_session_takes_nothing_for_a_replay() -> None:
    net = Net()
    net.connect()
    for index in range(10):
        net.send(1, 2, b"%d" % index)
    counter = max(int.from_bytes(data[12:20], "big") for source, _, data in net.sent if data[:4] == tunnel.PILS)
    net[1].machine.forget(2)
    net.sent.clear()
    net[1].machine.ensure(2, net.now)
    net.advance(10)
    net.send(1, 2, b"again")
    sealed = [data for source, _, data in net.sent if source == net[1].addr and data[:4] == tunnel.PILS]
    assert int.from_bytes(sealed[0][12:20], "big") == counter + 1


def test_what_was_received_before_a_session_was_forgotten_is_a_replay_afterwards() -> None:
    net = Net()
    net.connect()
    net.send(1, 2, b"once")
    captured = [data for source, _, data in net.sent if data[:4] == tunnel.PILS and source == net[1].addr]
    net.advance(1000)
    assert not net[2].machine.knows(1)
    net.connect()
    net[2].received.clear()
    received = [net[2].machine.receive_datagrams([(data, net[1].addr)], net.now) for data in captured]
    assert received == [[]] * len(captured)
    net.send(1, 2, b"anew")
    assert net.payloads(2) == [b"anew"]


def test_a_session_that_another_key_has_replaced_is_remembered_too() -> None:
    net = Net()
    net.connect()
    net.send(1, 2, b"once")
    captured = net.sent[-1][2]
    first = net[1].machine
    net[1].restart()
    net[1].machine.ensure(2, net.now)
    net.pump()
    net.send(1, 2, b"anew")
    net[1].machine = first  # the same process after all, as with a replayed key frame in between
    net.now += 10
    frame = first._exchanges.key_frame()
    net[2].machine.receive_datagrams([(frame, net[1].addr)], net.now)
    net.pump()
    net[2].received.clear()
    assert net[2].machine.receive_datagrams([(captured, net[1].addr)], net.now) == []
    net.send(1, 2, b"again")
    assert net.payloads(2) == [b"again"]


def test_a_node_without_an_id_makes_no_session_and_makes_one_once_it_has_it() -> None:
    """A peer dials whoever has just been started: what is sealed before its registration would bear no sender for ever."""
    net = Net()
    net[2].restart(registered=False)
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert not net[2].of(Established)
    assert net[2].machine.drops[Drop.UNREGISTERED] > 0
    net[2].machine.on_registered(2, net[2].identity)
    net.advance(5)
    net.send(2, 1, b"from")
    net.send(1, 2, b"to")
    assert (net.payloads(1), net.payloads(2)) == ([b"from"], [b"to"])


def test_strict_trust_drops_strangers_before_any_work() -> None:
    net = Net()
    net[2].settings.admits = lambda node: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    assert not net[2].of(KeyNeeded)
    assert net[2].machine.drops[Drop.UNTRUSTED] == 1


def test_without_encryption_packets_travel_plain_and_key_frames_are_ignored() -> None:
    net = Net()
    for node in (1, 2):
        net[node].settings.encrypt = False
    net[1].machine.on_route(2, RouteAnswer(net[2].addr), net.now)
    net.send(1, 2, b"plain")
    assert net.payloads(2) == [b"plain"]
    assert net.sent[-1][2][:4] == tunnel.PILT
    receiver, sender = net[2], Node(net, 1)
    frames = [sender.machine._exchanges.key_frame(), sender.machine._exchanges.key_request(), tunnel.PILS + bytes(40)]
    assert receiver.machine.receive_datagrams([(frame, sender.addr) for frame in frames], net.now) == []
    assert receiver.machine.datagrams_to_send() == []
    assert receiver.machine.drops == {Drop.ENCRYPTION_OFF: 3}


def test_without_encryption_who_is_heard_by_relay_is_answered_there() -> None:
    net = Net(beacon=True)
    for node in (1, 2):
        net[node].settings.encrypt = False
    net.relay_only.add(2)
    net[1].machine.on_route(2, RouteAnswer(BEACON, relay_only=True), net.now)
    net.send(1, 2, b"plain")
    assert net.payloads(2) == [b"plain"]
    net.send(2, 1, b"likewise")
    assert net.payloads(1) == [b"likewise"]


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 2**32))
def test_no_bytes_make_the_machine_raise_or_forget(datagrams: list[bytes], seed: int) -> None:
    net = Net(beacon=True)
    net.connect()
    source = random.Random(seed)
    genuine = [data for *_, data in net.sent]
    for data in datagrams:
        mutated = bytearray(source.choice(genuine))
        mutated[source.randrange(len(mutated))] ^= source.randrange(1, 256)
        head = source.choice([b"", tunnel.PILA, tunnel.PILS, tunnel.PILK, b"\x06\0\0\0\x01" + tunnel.PILS, b"\x04"])
        for raw in (data, head + data, bytes(mutated)):
            for sender in (("10.6.6.6", 6), BEACON, net[1].addr):
                net[2].machine.receive_datagrams([(raw, sender)], net.now)
        net.now += 0.3
    net.filter = lambda source, to, data: True
    net.pump()
    net[2].received.clear()
    net.send(1, 2, b"alive")
    assert b"alive" in net.payloads(2)


@given(st.lists(st.sampled_from(["send", "reverse", "restart", "lose", "deliver", "wait"]), max_size=30))
@settings(max_examples=60)
def test_whatever_happens_packets_flow_again_afterwards(steps: list[str]) -> None:
    net = Net(beacon=True)
    net[1].machine.ensure(2, net.now)
    for step in steps:
        if step in ("send", "reverse"):
            one, two = (1, 2) if step == "send" else (2, 1)
            net[one].machine.ensure(two, net.now)
            net.pump()
            try:
                net.send(one, two)
            except (QueueFull, ExchangeFailed, NoTunnel):
                net.pump()
        elif step == "restart":
            net[2].restart()
        elif step == "lose":
            net.filter = lambda source, to, data: False
        elif step == "deliver":
            net.filter = lambda source, to, data: True
        else:
            net.advance(5)
    net.filter = lambda source, to, data: True
    net.advance(60)
    for _ in range(20):
        net[1].machine.ensure(2, net.now)
        net.pump()
        net[2].received.clear()
        try:
            net.send(1, 2, b"after all")
        except (QueueFull, ExchangeFailed, NoTunnel):
            net.pump()
        net.advance(2)
        if b"after all" in net.payloads(2):
            return
    raise AssertionError(f"no packet passes any more: {net[1].machine.peer_rows()} {net[2].machine.peer_rows()}")


def test_without_the_path_watch_a_silent_path_is_left_alone() -> None:
    net = Net()
    for node in (1, 2):
        net[node].settings.path_watch = False
    net.connect()
    net[1].machine.set_in_use(2, True, net.now)
    net.filter = lambda source, to, data: False
    net.advance(300)
    assert not net[1].of(PathSuspect)
    assert net[1].machine.has_session(2)
