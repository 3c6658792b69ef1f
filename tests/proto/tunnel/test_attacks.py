"""What somebody on the path can do with datagrams that he has seen: nothing, but make the network lose them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.events import Addr, Drop, KeyNeeded, RouteNeeded
from pilot_trio.proto.tunnel.settings import (
    EARLY_PACKETS,
    KEY_FRAME_BURST,
    KEY_FRAME_RATE,
    PEERS_MAX,
    SOURCES_MAX,
    STRANGER_RATE,
)
from pilot_trio.wire import beacon, tunnel

from .net import BEACON, Net, datagram

EVIL: Addr = ("198.51.100.66", 666)
UDP_MAX = 65_507  # bytes of the largest datagram over IPv4


def conversation(*, by_beacon: bool = True) -> Net:
    """Two nodes that have exchanged keys, packets both ways, and have been at it for a while."""
    net = Net(beacon=by_beacon)
    net.connect()
    for index in range(5):
        net.send(1, 2, b"there %d" % index)
        net.send(2, 1, b"back %d" % index)
        net.advance(1)
    for node in (1, 2):
        net[node].received.clear()
    # What claims to come from the beacon is answered to the beacon, which has no use for it.
    net.filter = lambda _source, to, data: to != BEACON or data[:1] == bytes([beacon.BeaconType.RELAY])
    return net


def state_of(net: Net) -> dict[int, dict[int, tuple[Any, ...]]]:
    """Return what an attacker would like to change: who is known, under which key, and where."""
    return {
        number: {
            peer.node: (
                peer.session and peer.session.peer_x25519,
                peer.route.address,
                peer.route.relay,
                peer.authenticated,
            )
            for peer in node.machine._core.peers.values()
        }
        for number, node in net.nodes.items()
    }


def sizes_of(net: Net, node: int) -> dict[str, int]:
    machine = net[node].machine
    core, frames = machine._core, machine._key_frames
    return {
        "peers": len(core.peers),
        "early": sum(len(peer.early) for peer in core.peers.values()),
        "waiting": len(frames._waiting),
        "unknown": len(frames._unknown_until),
        "keys": len(frames._keys),
    }


def inject(net: Net, node: int, data: bytes, source: Addr) -> list[bytes]:
    """Hand a datagram to a node as if it came from `source`; return the payloads that came out."""
    got = net[node].machine.receive_datagrams([(data, source)], net.now)
    return [packet.payload for _, packet in got]


def assert_all_is_well(net: Net) -> None:
    """Both sides still understand each other, at once."""
    for one, two in ((1, 2), (2, 1)):
        net[two].received.clear()
        net.send(one, two, b"alive")
        assert net.payloads(two) == [b"alive"]


@pytest.mark.parametrize("by_beacon", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_seen_can_be_sent_again_by_anybody_to_anybody_in_any_order(by_beacon: bool, seed: int) -> None:
    net, chance = conversation(by_beacon=by_beacon), random.Random(seed)
    before, seen = state_of(net), list(net.sent)
    chance.shuffle(seen)
    for source, _, frame in seen:
        claimed = chance.choice([source, EVIL, BEACON, net[1].addr, net[2].addr])
        for node in (1, 2):
            assert inject(net, node, frame, claimed) == []
    net.pump()
    net.advance(3)
    assert state_of(net) == before
    assert_all_is_well(net)


@pytest.mark.parametrize("source", ["itself", "the other", "a stranger", "the beacon"])
def test_a_mirror_shows_nothing(source: str) -> None:
    net = conversation()
    before = state_of(net)
    for sender, _, frame in list(net.sent):
        node = next((number for number in (1, 2) if net[number].addr == sender), None)
        if node is None:
            continue
        places = {"itself": sender, "the other": net[3 - node].addr, "a stranger": EVIL, "the beacon": BEACON}
        assert inject(net, node, frame, places[source]) == []
        relayed = beacon.RelayDelivery(NodeId(node), frame).encode()
        assert inject(net, node, relayed, BEACON) == []
    net.advance(3)
    assert state_of(net) == before
    assert_all_is_well(net)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 77, 0, 2**32 - 1]))
@settings(max_examples=60)
def test_a_frame_under_another_number_is_nobodys(seed: int, claimed: int) -> None:
    net = conversation()
    before, source = state_of(net), random.Random(seed)
    for sender, _, frame in source.sample(net.sent, 12):
        if frame[:4] in (tunnel.PILA, tunnel.PILK, tunnel.PILS):
            forged = frame[:4] + claimed.to_bytes(4, "big") + frame[8:]
            for node in (1, 2):
                if forged != frame:
                    assert inject(net, node, forged, sender) == []
    net.advance(3)
    assert state_of(net) == before
    assert_all_is_well(net)


def test_no_part_of_a_frame_is_a_frame() -> None:
    net = conversation()
    before = state_of(net)
    kinds: dict[tuple[bytes, bytes], bytes] = {}
    for _, _, frame in net.sent:
        inner = frame[9:] if frame[:1] == b"\x05" else frame
        kinds.setdefault((frame[:1], inner[:4]), frame)
    assert len(kinds) >= 4  # direct and relayed key frames and requests, sealed packets
    for frame in kinds.values():
        for length in range(len(frame)):
            assert inject(net, 2, frame[:length], net[1].addr) == []
            net.now += 0.01
    net.advance(3)
    assert state_of(net) == before
    assert_all_is_well(net)


@pytest.mark.parametrize(
    "magic", [b"PILA", b"PILK", b"PILS", b"PILT", b"PILP", b"\x06\0\0\0\x01", b"\x04", b"\x01", b"\xff"]
)
def test_the_largest_datagram_there_is(magic: bytes) -> None:
    net = conversation()
    before = state_of(net)
    filler = random.Random(1).randbytes(UDP_MAX)
    for head in (magic, magic + (1).to_bytes(4, "big")):
        for source in (EVIL, BEACON, net[1].addr):
            assert inject(net, 2, (head + filler)[:UDP_MAX], source) == []
    net.advance(3)
    assert state_of(net) == before
    assert sizes_of(net, 2)["peers"] == 1
    assert_all_is_well(net)


@pytest.mark.parametrize("kind", ["sealed", "key request", "key frame"])
@pytest.mark.parametrize("relayed", [False, True])
def test_thousands_of_invented_nodes_find_no_memory_and_few_answers(kind: str, relayed: bool) -> None:
    net = conversation()
    before = state_of(net)
    seal = next(frame for _, _, frame in net.sent if frame[:4] == tunnel.PILS)
    liar = Identity.generate()
    sent, answered = 0, 0
    for index in range(6000):
        node = 1000 + index
        if kind == "sealed":
            frame = tunnel.PILS + node.to_bytes(4, "big") + seal[8:]
        elif kind == "key request":
            frame = tunnel.encode_key_request(tunnel.KeyRequest(node, bytes(31) + b"\x09"))
        else:
            frame = tunnel.encode_key_exchange(
                tunnel.KeyExchange(node, bytes(31) + b"\x09", liar.public_key, bytes(64))
            )
        source = BEACON if relayed else (f"203.0.{index >> 8 & 255}.{index & 255}", 1024 + index)
        data = beacon.RelayDelivery(NodeId(node), frame).encode() if relayed else frame
        inject(net, 2, data, source)
        sent += len(data)
        answered += sum(len(answer) for answer, to in net[2].machine.datagrams_to_send() if to != net[1].addr)
        while (event := net[2].machine.next_event()) is not None:
            assert not isinstance(event, RouteNeeded)
            if isinstance(event, KeyNeeded):
                net[2].machine.on_key(event.node, None, net.now)  # the registry does not know them
        net.now += 1 / 6000
    if kind == "sealed":
        assert answered < 2 * (STRANGER_RATE + STRANGER_RATE) * 200  # what was saved up, and what a second brings
    else:
        assert answered <= 4 * sent  # each source gets a key frame for its key request, and no source many
    sizes = sizes_of(net, 2)
    assert sizes["peers"] == 1
    assert max(sizes.values()) <= SOURCES_MAX
    net.advance(10)
    assert state_of(net)[2] == before[2]
    assert_all_is_well(net)


@pytest.mark.parametrize("relayed", [False, True])
def test_one_source_is_answered_a_few_times_a_second_whatever_it_asks(relayed: bool) -> None:
    net = conversation()
    answers = 0
    for index in range(1000):
        node = 9 if relayed else 1000 + index
        frame = tunnel.encode_key_request(tunnel.KeyRequest(node, bytes(31) + b"\x09"))
        data = beacon.RelayDelivery(NodeId(node), frame).encode() if relayed else frame
        inject(net, 2, data, BEACON if relayed else EVIL)
        answers += len(net[2].machine.datagrams_to_send())
        net.now += 0.001
    assert 1 <= answers <= KEY_FRAME_BURST + KEY_FRAME_RATE


@given(st.lists(st.binary(max_size=120), max_size=20), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_peer_that_seals_nonsense_harms_nobody_but_itself(inner: list[bytes], seed: int) -> None:
    net, source = conversation(), random.Random(seed)
    evil = net[1].machine._core.peers[2].session
    assert evil is not None
    genuine = datagram(1, 2).encode()
    for raw in inner:
        mutated = bytearray(genuine)
        mutated[source.randrange(len(mutated))] ^= source.randrange(1, 256)
        spoofed = datagram(source.choice([0, 2, 3, 2**32 - 1]), 2).encode()
        for packet in (raw, bytes(mutated), genuine[: source.randrange(len(genuine))], spoofed):
            assert inject(net, 2, evil.seal(packet), net[1].addr) == []
    drops = net[2].machine.drops
    assert bool(inner) == bool(drops.get(Drop.MALFORMED_PACKET))
    net.advance(3)
    assert sizes_of(net, 2)["peers"] == 1
    assert_all_is_well(net)


def test_a_peer_that_only_ever_fills_queues_fills_its_own() -> None:
    net = conversation()
    junk = random.Random(2)
    before = state_of(net)
    for _ in range(5000):
        head = tunnel.PILS + (1).to_bytes(4, "big")
        inject(net, 2, head + junk.randbytes(junk.randrange(20, 1400)), net[1].addr)
        net[2].machine.datagrams_to_send()
        net.now += 0.001
    assert sizes_of(net, 2)["early"] <= EARLY_PACKETS
    net.pump()
    net.advance(5)
    assert state_of(net) == before
    assert_all_is_well(net)


@pytest.mark.parametrize("hours", [1, 24, 24 * 365])
@pytest.mark.parametrize("sleeper", [1, 2])
def test_a_machine_that_was_asleep_for_hours_goes_on(hours: int, sleeper: int) -> None:
    net = conversation()
    net.now += hours * 3600.0  # no timer ran meanwhile: the whole machine slept, and the other had forgotten it
    net[sleeper].machine.handle_timeout(net.now)
    net.pump()
    net.advance(5)
    for one, two in ((1, 2), (2, 1)):
        net[one].machine.ensure(two, net.now)
        net.pump()
    net.advance(15)
    assert_all_is_well(net)


def test_no_table_of_peers_grows_without_end() -> None:
    net = Net(1)
    machine = net[1].machine
    for node in range(2, PEERS_MAX + 500):
        machine._core.peer(node, net.now)
    assert machine.peers == PEERS_MAX
