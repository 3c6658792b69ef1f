"""A beacon that strangers flood goes on relaying for those who need it, and keeps nothing of what it was sent."""

from __future__ import annotations

import random

import pytest
import trio

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import Link, NatType, NodeNetwork, SimulatedHost, open_node_network
from pilot_trio.wire.beacon import Discover, PunchRequest, Relay
from tests.testing.overlay import content, dial, echo, simulate

pytestmark = pytest.mark.simulation

RATE = 2000  # datagrams a second
SECONDS = 5


async def flood(host: SimulatedHost, to: Endpoint, nodes: list[NodeId], rng: random.Random) -> None:
    """Send everything that a beacon understands, in the names of others, and what it does not."""
    sock = await host.open_udp(Endpoint("", 0))
    for _ in range(SECONDS * 10):
        for _ in range(RATE // 10):
            node, other = (rng.choice([*nodes, NodeId(rng.getrandbits(32))]) for _ in range(2))
            kind = rng.randrange(4)
            message = [
                Discover(node).encode(),
                PunchRequest(node, other).encode(),
                Relay(node, other, rng.randbytes(60)).encode(),
                rng.randbytes(rng.randrange(40)),
            ][kind]
            sock.send_nowait(message, to)
        await trio.sleep(0.1)
    sock.close()


def beacon_of(nodes: NodeNetwork) -> Endpoint:
    beacon = nodes[0].handle.beacon
    assert beacon is not None
    return Endpoint(nodes.rendezvous.address, beacon.port)


def test_relayed_streams_live_through_a_flood() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=1, link=Link(delay=0.02), nats=[NatType.SYMMETRIC] * 2) as nodes:
            attacker = nodes.network.host("attacker")
            victims = [node.node_id for node in nodes]
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                with trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(flood, attacker, beacon_of(nodes), victims, random.Random(1))
                        for number in range(10):
                            data = content(20_000, number)
                            assert await echo(stream, data) == data
                            await trio.sleep(0.4)
                assert await echo(stream, b"and after") == b"and after"
            assert all(node.handle.statistics().tunnel.defects == 0 for node in nodes)

    simulate(main, 1)


def test_a_stranger_who_claims_to_be_a_node_gets_nothing_that_is_relayed_to_it() -> None:
    """A discover is not signed, but it comes from a host, and the node's own has been registered with a signature."""

    async def main() -> None:
        async with open_node_network(2, seed=2, link=Link(delay=0.02), nats=[NatType.SYMMETRIC] * 2) as nodes:
            thief = await nodes.network.host("thief").open_udp(Endpoint("", 0))
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                assert await echo(stream, b"before") == b"before"
                thief.send_nowait(Discover(nodes[1].node_id).encode(), beacon_of(nodes))
                with trio.fail_after(1):
                    assert await echo(stream, b"after") == b"after"

    simulate(main, 2)
