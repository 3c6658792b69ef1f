"""Segments between nodes follow what their path carries: node, route, link and relay together, in virtual time."""

from __future__ import annotations

import pytest
import trio

from pilot_trio.testing import Link, NatType, NodeNetwork, SimulatedHost, SimulatedNetwork, open_node_network
from tests.testing.overlay import content, dial, digest, echo, simulate, transfer

pytestmark = pytest.mark.simulation

NEAR = Link(delay=0.005)
DATA = content(400_000, 1)
SMALL, ETHERNET, JUMBO = 1152, 1380, 8192  # bytes of payload
RELAYED = 9  # bytes more by relay
OVERHEAD = 70  # bytes around it in a datagram


async def usual_segment(nodes: NodeNetwork, to: SimulatedHost, data: bytes = DATA) -> float:
    """Send data from the first node to the second; return the bytes that a segment towards `to` had in the mean."""
    counted = nodes.network.direction(nodes.hosts[0], to).counted
    sent, size = counted.sent, counted.sent_bytes
    assert digest(await transfer(nodes[0], nodes[1], data)) == digest(data)
    return (counted.sent_bytes - size) / (counted.sent - sent) - OVERHEAD


@pytest.mark.parametrize(
    ("interface", "path", "expected"),
    [
        (1500, 65_535, ETHERNET),
        (1500, 1500, ETHERNET),
        (1500, 1400, SMALL),
        (9000, 9000, JUMBO),
        (9000, 1500, ETHERNET),
        (9000, 1280, SMALL),
        (1280, 1280, SMALL),
    ],
)
def test_segments_are_as_large_as_the_path_proves_to_carry(interface: int, path: int, expected: int) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=1, link=NEAR) as nodes:
            for host in nodes.hosts:
                host.mtu = interface
            nodes.network.set_mtu(nodes.hosts[0], nodes.hosts[1], path)
            found = await usual_segment(nodes, nodes.hosts[1], content(4_000_000, 2))  # a few round trips to find out
            assert 0.8 * expected < found < 1.02 * expected  # probes that were lost count, too

    simulate(main, 1)


def test_a_path_that_becomes_narrower_in_the_midst_of_a_stream_holds_it_up_for_a_moment() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=2, link=NEAR) as nodes:
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                assert digest(await echo(stream, DATA)) == digest(DATA)
                nodes.network.set_mtu(nodes.hosts[0], nodes.hosts[1], 1300)
                started = trio.current_time()
                assert digest(await echo(stream, DATA)) == digest(DATA)
                assert trio.current_time() - started < 5.0
            assert nodes.network.statistics().links.too_long > 0

    simulate(main, 2)


def test_what_goes_by_relay_is_small() -> None:
    async def main() -> None:
        network = SimulatedNetwork(seed=3, link=NEAR)
        async with open_node_network(2, network=network, nats=[NatType.SYMMETRIC, NatType.SYMMETRIC]) as nodes:
            for host in nodes.hosts:
                host.mtu = 9000
            assert 0.9 * SMALL < await usual_segment(nodes, nodes.rendezvous) <= SMALL + RELAYED
            assert nodes[0].handle.statistics().tunnel.traffic.relay_peers == 1

    simulate(main, 3)


def test_a_stream_that_moves_to_the_relay_goes_on_with_small_segments() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=4, link=NEAR) as nodes:
            one, other = nodes.hosts
            for host in nodes.hosts:
                host.mtu = 9000
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                assert digest(await echo(stream, DATA)) == digest(DATA)
                nodes.network.block([one], [other])
                nodes.network.block([other], [one])
                for host in nodes.hosts:  # and nothing but small packets reaches the beacon
                    nodes.network.set_mtu(host, nodes.rendezvous, 1280)
                with trio.fail_after(60):
                    assert digest(await echo(stream, DATA)) == digest(DATA)
                assert nodes[0].handle.statistics().tunnel.traffic.relay_peers == 1

    simulate(main, 4)
