"""Paths that die and come back, in virtual time: routers that restart, nodes that move, whoever is in between.

A router that restarts forgets every mapping. Where both ends are behind routers that let in only whom their own side wrote
to, neither can reach the other then, and the beacon cannot reach the one whose router it was: only that one can find out.
"""

from __future__ import annotations

import itertools

import pytest
import trio

from pilot_trio.address import NodeId
from pilot_trio.config import RegistryConfig
from pilot_trio.daemon.resolver import Resolver, Route
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import Link, NatType, NodeNetwork, open_node, open_node_network
from tests.testing.overlay import content, dial, echo, simulate

pytestmark = pytest.mark.simulation

HEALED_WITHIN = 20.0  # seconds; the project promises half a minute
QUICK = Link(delay=0.02)

CONE, OPEN, SYMMETRIC = NatType.PORT_RESTRICTED, NatType.FULL_CONE, NatType.SYMMETRIC
PAIRS = {
    "both port-restricted": (CONE, CONE),
    "one symmetric": (SYMMETRIC, OPEN),
    "by relay": (SYMMETRIC, CONE),
    "both symmetric": (SYMMETRIC, SYMMETRIC),
}
pair = pytest.mark.parametrize("kinds", PAIRS.values(), ids=PAIRS)
whose = pytest.mark.parametrize("restarted", [0, 1], ids=["dialler", "dialled"])


@pair
@whose
@pytest.mark.parametrize("idle", [0, 7, 20, 40, 100])
def test_an_idle_stream_heals_after_a_router_has_restarted(
    kinds: tuple[NatType, NatType], restarted: int, idle: float
) -> None:
    async def main() -> None:
        async with (
            open_node_network(2, seed=3, link=QUICK, nats=kinds) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            assert await echo(stream, content(20_000, 6)) == content(20_000, 6)
            await trio.sleep(idle)
            nodes.hosts[restarted].rebind()
            with trio.fail_after(HEALED_WITHIN):
                assert await echo(stream, b"still there?") == b"still there?"

    simulate(main, 3)


@pair
@whose
def test_a_stream_in_full_flight_goes_on_after_a_router_has_restarted(
    kinds: tuple[NatType, NatType], restarted: int
) -> None:
    async def main() -> None:
        link = Link(delay=0.02, rate=100_000)
        async with (
            open_node_network(2, seed=4, link=link, nats=kinds) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            arrivals: list[float] = []

            async def read(size: int) -> None:
                received = 0
                while received < size:
                    received += len(await stream.receive_some())
                    arrivals.append(trio.current_time())

            data = content(600_000, 8)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, len(data))
                nursery.start_soon(stream.send_all, data)
                await trio.sleep(2)
                nodes.hosts[restarted].rebind()
            assert max(after - before for before, after in itertools.pairwise(arrivals)) < HEALED_WITHIN

    simulate(main, 4)


def test_a_node_whose_socket_has_died_gets_another_one_and_is_found_there() -> None:
    async def main() -> None:
        async with open_node_network(3, seed=5, link=QUICK) as nodes:
            await dial(nodes[1].driver, nodes[0])
            (sock,) = nodes.hosts[1].sockets.values()
            sock.expect = lambda arrival, source: True  # type: ignore[method-assign]  # nothing arrives any more
            with trio.fail_after(300):
                async with await dial(nodes[1].driver, nodes[2]) as stream:
                    assert await echo(stream, b"hello") == b"hello"
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    assert await echo(stream, b"hello") == b"hello"

    simulate(main, 5)


def relayed(nodes: NodeNetwork) -> list[int]:
    return [node.handle.statistics().tunnel.traffic.relay_peers for node in nodes]


def test_a_transfer_goes_on_by_relay_when_the_direct_path_is_cut_and_directly_when_it_is_back() -> None:
    async def main() -> None:
        link = Link(delay=0.02, rate=100_000)
        async with (
            open_node_network(2, seed=6, link=link) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            data = content(1_500_000, 9)
            arrivals: list[float] = []

            async def read() -> None:
                received = bytearray()
                while len(received) < len(data):
                    received += await stream.receive_some()
                    arrivals.append(trio.current_time())
                assert received == data

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(stream.send_all, data)
                await trio.sleep(2)
                nodes.network.partition(nodes.hosts[:1], nodes.hosts[1:])
                await trio.sleep(15)
                assert relayed(nodes) == [1, 1]
                nodes.network.heal()
            assert max(after - before for before, after in itertools.pairwise(arrivals)) < 10
            await trio.sleep(20)
            assert relayed(nodes) == [0, 0]

    simulate(main, 6)


def test_direct_streams_and_known_peers_do_without_rendezvous_for_minutes() -> None:
    async def main() -> None:
        async with (
            open_node_network(3, seed=7, link=QUICK, nats=[CONE, CONE]) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            async with await dial(nodes[0].driver, nodes[2]) as other:
                assert await echo(other, b"hello") == b"hello"
            await trio.sleep(2)
            assert relayed(nodes) == [0, 0, 0]
            nodes.network.isolate(nodes.rendezvous)
            for _ in range(20):
                with trio.fail_after(1):
                    assert await echo(stream, content(5_000, 1)) == content(5_000, 1)
                await trio.sleep(20)
            with trio.fail_after(10):
                async with await dial(nodes[0].driver, nodes[2]) as other:
                    assert await echo(other, b"hello") == b"hello"

    simulate(main, 7)


def test_when_the_beacon_is_back_after_minutes_hidden_paths_work_again_at_once() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=8, link=QUICK, nats=[SYMMETRIC, SYMMETRIC]) as nodes:
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                assert await echo(stream, b"hello") == b"hello"
            nodes.network.isolate(nodes.rendezvous)
            await trio.sleep(240)
            nodes.hosts[1].rebind()
            nodes.network.heal()
            await trio.sleep(HEALED_WITHIN)
            with trio.fail_after(5):
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    assert await echo(stream, b"hello") == b"hello"

    simulate(main, 8)


def test_a_registry_that_names_a_wrong_endpoint_costs_a_moment_and_no_connection() -> None:
    """The wrong one belongs to a third node, which must not be able to do anything with what it gets."""

    async def main() -> None:
        async with open_node_network(3, seed=9, link=QUICK) as nodes:
            endpoint = next(iter(nodes.hosts[2].sockets))
            answer = Resolver._ask_route

            async def lie(resolver: Resolver, node: NodeId) -> Route:
                route = await answer(resolver, node)
                return Route(endpoint) if node == nodes[1].node_id else route

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Resolver, "_ask_route", lie)
                with trio.fail_after(5):
                    async with await dial(nodes[0].driver, nodes[1]) as stream:
                        assert await echo(stream, content(50_000, 9)) == content(50_000, 9)
                        rows = nodes[2].handle.statistics().streams.connections
                assert rows == 0

    simulate(main, 9)


def test_a_node_that_ends_waits_two_thirds_of_a_second_for_a_peer_that_has_gone() -> None:
    async def main() -> None:
        async with open_node_network(1, seed=5, link=Link(delay=0.02)) as nodes:
            host, registry = nodes.network.host("other"), RegistryConfig(endpoint=nodes[0].handle.registry)
            async with open_node(network=host, registry=registry, rendezvous=None, listen=Endpoint("", 0)) as other:
                stream = await dial(other.driver, nodes[0])
                await stream.send_all(b"arrives")
                nodes.network.isolate(nodes.hosts[0])
                await stream.send_all(b"never arrives")
                ended_at = trio.current_time()
            assert 0.5 < trio.current_time() - ended_at < 1.0

    simulate(main, 5)
