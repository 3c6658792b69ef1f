"""Nodes that are elsewhere than they were: restarted on another port, behind one router, with a registry that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from pilot_trio.config import RegistryConfig
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import Link, NatType, NodeNetwork, RunningNode, SimulatedNetwork, open_node, open_node_network
from tests.testing.overlay import ECHO, content, dial, echo, simulate

pytestmark = pytest.mark.simulation

QUICK = Link(delay=0.02)
ANY = Endpoint("", 0)


def settings_of(nodes: NodeNetwork, **more: Any) -> dict[str, Any]:
    """Return what one more node on the same rendezvous needs."""
    handle = nodes[0].handle
    beacon = () if handle.beacon is None else (handle.beacon,)
    registry = RegistryConfig(endpoint=handle.registry)
    return {"public": True, "listen": ANY, "registry": registry, "rendezvous": None, "beacon": beacon, **more}


def relayed(*nodes: RunningNode) -> list[int]:
    return [node.handle.statistics().tunnel.traffic.relay_peers for node in nodes]


@pytest.mark.parametrize("port", [0, 4000], ids=["another port", "the same port"])
def test_a_restarted_peer_is_dialled_directly_within_a_second(port: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_node_network(1, seed=1, link=QUICK) as nodes:
            other = nodes.network.host("other")
            settings = settings_of(nodes, identity=tmp_path / "identity.json", listen=Endpoint("", 4000))
            async with open_node(network=other, **settings) as before, await dial(nodes[0].driver, before) as stream:
                assert await echo(stream, b"hello") == b"hello"
                address = before.address
            settings["listen"] = Endpoint("", port)
            await trio.sleep(1)
            async with open_node(network=other, **settings) as after:
                assert after.address == address
                await trio.sleep(5)
                started = trio.current_time()
                async with await nodes[0].driver.dial(address, ECHO) as stream:
                    assert await echo(stream, b"again") == b"again"
                assert trio.current_time() - started < 1.0
                assert relayed(nodes[0], after) == [0, 0]

    simulate(main, 1)


@pytest.mark.parametrize("kind", list(NatType))
def test_two_nodes_behind_one_router_meet_inside(kind: NatType) -> None:
    async def main() -> None:
        network = SimulatedNetwork(seed=2, link=QUICK)
        router = network.router(kind)
        async with open_node_network(2, network=network, nats=[router, router]) as nodes:
            async with await nodes[0].driver.dial(nodes[1].address, ECHO) as stream:
                assert await echo(stream, content(20_000, 2)) == content(20_000, 2)
            assert relayed(*nodes) == [0, 0]
            assert network.direction(nodes.hosts[0], nodes.hosts[1]).counted.carried > 20

    simulate(main, 2)


def test_a_node_that_is_up_before_its_network_registers_where_it_is_seen(tmp_path: Path) -> None:
    async def main() -> None:
        nats = [None, NatType.PORT_RESTRICTED]
        async with open_node_network(2, seed=3, link=QUICK, nats=nats, folder=tmp_path) as nodes:
            seen = (await nodes[1].driver.info()).endpoint
            await nodes.kill(1)
            nodes.network.isolate(nodes.hosts[1])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(nodes.start, 1)
                await trio.sleep(60)
                nodes.network.heal()
            assert (await nodes[1].driver.info()).endpoint == seen
            started = trio.current_time()
            async with await nodes[0].driver.dial(nodes[1].address, ECHO) as stream:
                assert await echo(stream, b"hello") == b"hello"
            assert trio.current_time() - started < 1.0
            await trio.sleep(5)
            assert relayed(*nodes) == [0, 0]

    simulate(main, 3)
