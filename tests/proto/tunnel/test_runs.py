"""Runs of encoded packets to one node: they do what as many single packets would do."""

from __future__ import annotations

import pytest

from pilot_trio.proto.tunnel.errors import ExchangeFailed, NoAddress, NoTunnel, QueueFull
from pilot_trio.proto.tunnel.events import Drop, Salvaged
from pilot_trio.proto.tunnel.machine import RouteAnswer
from pilot_trio.wire import tunnel

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
