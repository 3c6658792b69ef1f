"""Runs of packets to and from one node: they do what as many single packets would do."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.crypto.aead import Sealer
from pilot_trio.proto.tunnel.errors import ExchangeFailed, NoAddress, NoTunnel, QueueFull
from pilot_trio.proto.tunnel.events import Drop, Event, PathRecovered, Salvaged
from pilot_trio.proto.tunnel.machine import RouteAnswer, TunnelMachine
from pilot_trio.proto.tunnel.peer import Exchange, Peer
from pilot_trio.proto.tunnel.upkeep_packets import keepalive, ping
from pilot_trio.wire import tunnel
from pilot_trio.wire.packet import CONTROL, Packet

from .net import BEACON, Net, datagram

RUN = [datagram(1, 2, b"%d" % index).encode() for index in range(6)]
PAYLOADS = [b"%d" % index for index in range(6)]


def test_a_run_leaves_in_order_and_every_packet_counts() -> None:
    net = Net()
    net.connect()
    machine = net[1].machine
    sent, sealed, size = machine.traffic.packets_sent, machine.traffic.sealed, machine.traffic.bytes_sent
    machine.send_packets(2, RUN, net.now)
    net.pump()
    assert net.payloads(2) == PAYLOADS
    assert machine.traffic.packets_sent - sent == machine.traffic.sealed - sealed == 6
    assert machine.traffic.bytes_sent - size == sum(len(packet) + 36 for packet in RUN)


def test_an_empty_run_sends_nothing() -> None:
    net = Net()
    net.connect()
    sent = len(net.sent)
    net[1].machine.send_packets(2, [], net.now)
    net.pump()
    assert len(net.sent) == sent


def test_a_run_to_an_unknown_node_is_an_error() -> None:
    with pytest.raises(NoTunnel, match="no tunnel to node 9"):
        Net()[1].machine.send_packets(9, RUN, 0.0)


def test_a_run_without_a_path_is_an_error() -> None:
    net = Net()
    net.connect()
    net[1].machine._core.peers[2].route.address = None
    with pytest.raises(NoAddress):
        net[1].machine.send_packets(2, RUN, net.now)


def test_a_run_waits_for_the_key_up_to_the_bound_and_the_rest_is_refused_and_counted() -> None:
    net = Net()
    net.filter = lambda source, to, data: False
    machine = net[1].machine
    machine.ensure(2, net.now)
    net.pump()
    machine.send_packets(2, [datagram(1, 2, b"%d" % index).encode() for index in range(60)], net.now)
    with pytest.raises(QueueFull):
        machine.send_packets(2, RUN, net.now)
    assert machine.drops[Drop.QUEUE_FULL] == 2
    net.filter = lambda source, to, data: True
    net.advance(10)
    assert net.payloads(2) == [b"%d" % index for index in range(60)] + PAYLOADS[:4]


def test_a_run_is_refused_while_the_peer_is_left_alone() -> None:
    net = Net()
    net.filter = lambda source, to, data: False
    net[1].machine.ensure(2, net.now)
    net.pump()
    net[1].machine._core.peers[2].cooldown_until = net.now + 5
    with pytest.raises(ExchangeFailed):
        net[1].machine.send_packets(2, RUN, net.now)


@pytest.mark.parametrize("salvage", [True, False])
def test_after_a_rekey_the_last_of_a_run_are_sent_again_if_asked_for(salvage: bool) -> None:
    net = Net()
    net.connect()
    net.filter = lambda source, to, data: data[:4] != tunnel.PILS
    net[1].machine.send_packets(2, RUN, net.now, salvage=salvage)
    net.pump()
    net.filter = lambda source, to, data: True
    net[2].restart()
    net[2].machine.ensure(1, net.now)
    net.pump()
    assert net.payloads(2) == (PAYLOADS[-4:] if salvage else [])
    assert len(net[1].of(Salvaged)) == int(salvage)


def test_a_run_into_silence_turns_to_the_relay_with_its_third_packet() -> None:
    net = Net(beacon=True)
    net.connect()
    net.filter = lambda source, to, data: BEACON in (source, to)
    net.now += 9
    net[1].machine.send_packets(2, RUN, net.now)
    net.pump()
    assert net[1].machine.is_relayed(2)
    assert net.payloads(2) == PAYLOADS[2:]


def test_a_run_goes_by_relay_if_its_peer_does() -> None:
    net = Net(beacon=True)
    net.relay_only = {2}
    net.connect()
    net.sent.clear()
    net[1].machine.send_packets(2, RUN, net.now)
    net.pump()
    assert net.payloads(2) == PAYLOADS
    assert {to for source, to, _ in net.sent if source == net[1].addr} == {BEACON}


def test_without_encryption_a_run_travels_plain() -> None:
    net = Net()
    for node in (1, 2):
        net[node].settings.encrypt = False
    net[1].machine.on_route(2, RouteAnswer(net[2].addr), net.now)
    net[1].machine.send_packets(2, RUN, net.now)
    net.pump()
    assert net.payloads(2) == PAYLOADS
    assert [data for *_, data in net.sent[-6:]] == [tunnel.PILT + packet for packet in RUN]


# --- received in one batch, or one by one ----------------------------------------------------------------------------

WHERE = ("10.0.1.1", 4000)  # node 1
ELSEWHERE = ("10.0.7.7", 7777)

Change = Callable[[bytes], tuple[bytes, tuple[str, int]]]

SEALED: dict[str, Packet] = {
    "fresh": datagram(1, 2),
    "control": datagram(1, 2)._replace(protocol=CONTROL, destination_port=7),
    "keepalive": keepalive(1),
    "ping": ping(1, 2, 0, 1, b"ping"),
    "spoofed": datagram(3, 2),
}
CHANGED: dict[str, Change] = {
    "junk": lambda data: (data[:-1] + bytes([data[-1] ^ 1]), WHERE),
    "cut": lambda data: (data[:30], WHERE),
    "short": lambda data: (data[:14], WHERE),
    "other epoch": lambda data: (data[:8] + b"anew" + data[12:], WHERE),
    "moved": lambda data: (data, ELSEWHERE),
}


class Sender:
    """Makes what node 1, or somebody on the way, could send to node 2."""

    def __init__(self, net: Net) -> None:
        session = net[1].machine._core.peers[2].session
        assert session is not None
        self.session = session
        shared = net[1].machine._core.keypair.derive(net[2].machine._core.keypair.public)
        self.anew = Sealer(shared, 1, b"anew", counter=1_000_000)
        self.key_frame = net[1].machine._exchanges.key_frame()
        self.held: list[bytes] = []
        self.last = b""

    def make(self, what: str) -> tuple[bytes, tuple[str, int]]:
        if what == "key frame":
            return self.key_frame, WHERE
        if what == "plain":
            return tunnel.PILT + datagram(1, 2).encode(), WHERE
        if what == "replay" and self.last:
            return self.last, WHERE
        packet = b"not a packet" if what == "malformed" else SEALED.get(what, SEALED["fresh"]).encode()
        sealed = self.last = self.session.seal(packet)
        if what == "counted anew":
            return self.anew.seal(packet), WHERE
        if what == "late":  # one that was held back, while this one is
            self.held.append(sealed)
            sealed = self.held.pop(0) if len(self.held) > 2 else self.session.seal(packet)
        return CHANGED[what](sealed) if what in CHANGED else (sealed, WHERE)


KINDS = [*SEALED, *CHANGED, "key frame", "plain", "replay", "malformed", "late", "counted anew"]


def assert_same(what: list[str], sizes: list[int], prepare: Callable[[Peer], None] = lambda peer: None) -> None:
    """Let one node have batches of these sizes, another one datagram at a time, without runs; compare all there is."""
    nets = [Net(), Net()]
    for net in nets:
        net.connect()
        net.send(1, 2)
        prepare(net[2].machine._core.peers[1])
    sender = Sender(nets[0])
    datagrams = [sender.make(kind) for kind in what]
    whole, single = (net[2].machine for net in nets)
    single._sealed.receive_run = lambda *_: 0  # type: ignore[method-assign]
    at, turn = 0, 0
    got: list[tuple[int, Packet]] = []
    expected: list[tuple[int, Packet]] = []
    while at < len(datagrams):
        batch = datagrams[at : at + sizes[turn % len(sizes)]]
        at, turn, now = at + len(batch), turn + 1, 101.0 + turn
        got += whole.receive_datagrams(batch, now)
        for each in batch:
            expected += single.receive_datagrams([each], now)
    assert got == expected
    assert whole.traffic == single.traffic
    assert whole.drops == single.drops
    assert events_of(whole) == events_of(single)
    assert whole.peer_rows() == single.peer_rows()
    one, other = (machine._core.peers[1] for machine in (whole, single))
    assert attrs.asdict(one.route) == attrs.asdict(other.route)
    for name in ("opened_at", "frame_at", "used_at", "probes", "cooldown_until", "proven_x25519"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.exchange is None) == (other.exchange is None)
    assert (one.session is None) == (other.session is None)
    if one.session is not None and other.session is not None:
        for name in ("decrypt_failures", "replays", "outside"):
            assert getattr(one.session, name) == getattr(other.session, name), name


@given(st.lists(st.sampled_from(KINDS) | st.just("fresh"), max_size=40), st.lists(st.integers(1, 12), min_size=1))
def test_a_batch_is_worked_in_as_its_datagrams_one_by_one(what: list[str], sizes: list[int]) -> None:
    assert_same(what, sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_ends_before_whatever_is_different(kind: str, after: int) -> None:
    assert_same(["fresh"] * 4 + [kind] + ["fresh"] * after, [10])
    assert_same([kind] + ["fresh"] * after + [kind] * 2, [10])


def _probed(peer: Peer) -> None:
    peer.probes = 2


def _cooling(peer: Peer) -> None:
    peer.cooldown_until = 200.0


def _relayed(peer: Peer) -> None:
    peer.route.relay = True


def _unproven(peer: Peer) -> None:
    peer.proven_x25519 = b"of an earlier process"


def _missed(peer: Peer) -> None:
    peer.route.misses = peer.route.send_errors = 2
    peer.route.first_sent_at = 3.0


def _asking(peer: Peer) -> None:
    peer.exchange = Exchange(attempts=1, last_sent_at=100.0)


@pytest.mark.parametrize("prepare", [_probed, _cooling, _relayed, _unproven, _missed, _asking])
@pytest.mark.parametrize("what", [["fresh"], ["fresh"] * 5, ["keepalive"] * 2, ["malformed"] * 2, ["spoofed"] * 2])
def test_a_run_is_a_sign_of_life_as_its_packets_are(prepare: Callable[[Peer], None], what: list[str]) -> None:
    assert_same(what, [10], prepare)


@pytest.mark.parametrize(("prepare", "recoveries"), [(_probed, 1), (_cooling, 0)])
def test_a_run_ends_probing_and_pauses(prepare: Callable[[Peer], None], recoveries: int) -> None:
    net = Net()
    net.connect()
    net.send(1, 2)
    peer = net[2].machine._core.peers[1]
    prepare(peer)
    net[1].machine.send_packets(2, RUN, net.now)
    net.pump()
    assert (peer.probes, peer.cooldown_until) == (0, -inf)
    assert len(net[2].of(PathRecovered)) == recoveries
    assert net.payloads(2)[1:] == PAYLOADS


def events_of(machine: TunnelMachine) -> list[Event]:
    found = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def test_a_run_between_two_peers_in_turn_is_taken_in_order() -> None:
    net = Net(3)
    net.connect(1, 3)
    net.connect(2, 3)
    batch = []
    for index in range(12):
        node = 1 + index // 2 % 2
        net[node].machine.send(3, datagram(node, 3, b"%d" % index), net.now)
        batch += [(data, net[node].addr) for data, _ in net[node].machine.datagrams_to_send()]
    received = net[3].machine.receive_datagrams(batch, net.now)
    assert [packet.payload for _, packet in received] == [b"%d" % index for index in range(12)]
    assert [node for node, _ in received] == [1, 1, 2, 2] * 3
    assert net[3].machine.traffic.packets_received == 12
