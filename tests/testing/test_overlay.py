"""Whole overlays on bad networks, in virtual time: what arrives is what was sent, and what heals goes on."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pilot_trio.testing import Link, NatType, SimulatedNetwork, open_node, open_node_network, run_simulation
from tests.testing.overlay import ECHO, content, dial, digest, echo, simulate, transfer

pytestmark = pytest.mark.simulation

BAD = {
    "perfect": Link(),
    "far": Link(delay=0.2, jitter=0.05),
    "lossy": Link(delay=0.02, loss=0.05),
    "bursts": Link(delay=0.02, loss=0.05, burst=4.0),
    "reordering": Link(delay=0.02, reordering=0.2, reordering_delay=0.03),
    "duplicating": Link(delay=0.02, duplication=0.3),
    "corrupting": Link(delay=0.02, corruption=0.05),
    "narrow": Link(delay=0.02, rate=250_000, queue=32_768),
    "everything": Link(delay=0.03, jitter=0.02, loss=0.03, duplication=0.03, reordering=0.05, corruption=0.03),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_megabyte_arrives_whole_whatever_the_network_does(name: str, seed: int) -> None:
    async def main() -> None:
        data = content(1 << 20, seed)
        async with open_node_network(2, seed=seed, link=BAD[name]) as nodes:
            with trio.fail_after(300):
                assert digest(await transfer(nodes[0], nodes[1], data)) == digest(data)

    simulate(main, seed)


@pytest.mark.parametrize("name", BAD)
def test_an_echo_comes_back_whole(name: str) -> None:
    async def main() -> None:
        data = content(100_000, 3)
        async with open_node_network(2, seed=3, link=BAD[name]) as nodes:
            with trio.fail_after(120):
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    assert digest(await echo(stream, data)) == digest(data)

    simulate(main, 3)


def test_a_stream_survives_a_partition_shorter_than_its_patience() -> None:
    async def main() -> None:
        data = content(300_000, 4)
        link = Link(delay=0.02, rate=100_000)
        async with open_node_network(2, seed=4, link=link) as nodes:
            received = b""

            async def move() -> None:
                nonlocal received
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    received = await echo(stream, data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                await trio.sleep(1)
                nodes.network.partition(nodes.hosts[:1], nodes.hosts[1:])
                await trio.sleep(5)
                blocked = nodes.network.statistics().blocked
                nodes.network.heal()
                nursery.cancel_scope.deadline = trio.current_time() + 60
            assert blocked > 0
            assert digest(received) == digest(data)

    simulate(main, 4)


def test_after_a_long_partition_nodes_find_each_other_again() -> None:
    async def main() -> None:
        async with open_node_network(3, seed=5, link=Link(delay=0.02)) as nodes:
            stream = await nodes[0].driver.dial(nodes[1].address, ECHO)
            nodes.network.isolate(nodes.hosts[1])
            with pytest.raises((trio.BrokenResourceError, trio.EndOfChannel)):  # noqa: PT012
                with trio.fail_after(1800):
                    while True:
                        await stream.send_all(bytes(10_000))
                        await trio.sleep(1)
            async with await nodes[0].driver.dial(nodes[2].address, ECHO) as other:  # the others never noticed
                assert await echo(other, b"still here") == b"still here"
            nodes.network.heal()
            with trio.fail_after(120):
                async with await dial(nodes[0].driver, nodes[1]) as again:
                    assert await echo(again, b"welcome back") == b"welcome back"

    simulate(main, 5)


def test_readers_learn_that_a_stream_whose_peer_vanished_is_not_whole() -> None:
    async def main() -> None:
        async with open_node_network(2, seed=4, link=Link(delay=0.02)) as nodes:
            listener = await nodes[1].driver.listen(5000)
            stream = await dial(nodes[0].driver, nodes[1], 5000)
            accepted = await listener.accept()
            await stream.send_all(b"so far")
            await trio.sleep(1)
            nodes.network.isolate(nodes.hosts[0])
            await stream.send_all(b"and no further")
            await stream.aclose()
            assert await accepted.receive_some() == b"so far"
            with trio.fail_after(120), pytest.raises(trio.BrokenResourceError, match="was not heard any more"):
                await accepted.receive_some()

    simulate(main, 4)


@pytest.mark.parametrize("kind", [NatType.FULL_CONE, NatType.RESTRICTED, NatType.PORT_RESTRICTED])
def test_a_stream_survives_a_router_that_restarts(kind: NatType) -> None:
    async def main() -> None:
        async with (
            open_node_network(2, seed=6, link=Link(delay=0.02), nats=[kind]) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            assert await echo(stream, content(50_000, 6)) == content(50_000, 6)
            nodes.hosts[0].rebind()
            with trio.fail_after(60):
                assert await echo(stream, content(50_000, 7)) == content(50_000, 7)

    simulate(main, 6)


@pytest.mark.parametrize(
    "kinds", [(NatType.SYMMETRIC, NatType.SYMMETRIC), (NatType.SYMMETRIC, NatType.PORT_RESTRICTED)]
)
def test_nodes_behind_symmetric_nats_talk_by_relay(kinds: tuple[NatType, NatType]) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=7, link=Link(delay=0.02, loss=0.01), nats=kinds) as nodes:
            with trio.fail_after(120):
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    assert await echo(stream, content(50_000, 7)) == content(50_000, 7)
            assert nodes[0].handle.statistics().tunnel.traffic.relay_peers == 1
            # Between two symmetric NATs nothing gets through directly, whatever is tried.
            assert nodes.network.statistics().filtered > 0

    simulate(main, 7)


@pytest.mark.parametrize(
    "kinds", [(NatType.RESTRICTED, NatType.RESTRICTED), (NatType.PORT_RESTRICTED, NatType.FULL_CONE)]
)
def test_nodes_behind_friendlier_nats_punch_through(kinds: tuple[NatType, NatType]) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=8, link=Link(delay=0.02), nats=kinds) as nodes:
            with trio.fail_after(60):
                async with await dial(nodes[0].driver, nodes[1]) as stream:
                    assert await echo(stream, content(50_000, 8)) == content(50_000, 8)
            one, other = nodes.hosts
            assert nodes.network.direction(one, other).counted.carried > 40
            assert nodes[0].handle.statistics().tunnel.traffic.relay_peers == 0

    simulate(main, 8)


@pytest.mark.parametrize("delay", [0.01, 0.1])
def test_what_was_written_before_a_node_stops_arrives(delay: float) -> None:
    async def main() -> None:
        data = content(100_000, 5)
        async with open_node_network(1, seed=5, link=Link(delay=delay)) as nodes:
            config = nodes[0].handle.config
            listener = await nodes[0].driver.listen(5000)
            parts: dict[str, Any] = {"registry": config.registry, "beacon": config.beacon, "rendezvous": None}
            async with open_node(network=nodes.network.host("leaves"), public=True, **parts) as leaving:
                stream = await dial(leaving.driver, nodes[0], 5000)
                accepted = await listener.accept()
                await stream.send_all(data)
                await trio.sleep(0.001)  # the node has it; nothing has crossed the network
                leaves_at = trio.current_time()
            assert trio.current_time() - leaves_at < 1
            received = bytearray()
            with trio.fail_after(5):
                async for chunk in accepted:
                    received += chunk
            assert received == data

    simulate(main, 5)


def test_equal_seeds_repeat_a_whole_overlay() -> None:
    async def run(seed: int) -> str:
        async with open_node_network(3, seed=seed, link=BAD["everything"]) as nodes:
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                await echo(stream, content(30_000, seed))
            async with await dial(nodes[2].driver, nodes[0]) as stream:
                await echo(stream, content(30_000, seed))
            await trio.sleep(300)
            return nodes.network.fingerprint()

    first = [run_simulation(run, seed, seed=seed) for seed in range(3)]
    assert [run_simulation(run, seed, seed=seed) for seed in range(3)] == first
    assert len(set(first)) == 3


@pytest.mark.slow
@pytest.mark.timeout(300)  # of a machine that has other things to do; alone it is less than ten
def test_a_hundred_nodes_live_an_hour_with_loss() -> None:
    """Neighbours in a ring talk twice; nothing is lost for good, and nothing grows."""

    async def main() -> None:
        count = 100
        network = SimulatedNetwork(seed=9, link=Link(delay=0.02, jitter=0.01, loss=0.02))
        # Heartbeats once in eight minutes: at the usual pace the registry would do most of the computing here.
        async with open_node_network(count, network=network, keepalive=480.0) as nodes:
            ends_at = trio.current_time() + 3600
            talks = 0

            async def talk(number: int) -> None:
                nonlocal talks
                peer = nodes[(number + 1) % count]
                await trio.sleep(number * 6.0)
                while trio.current_time() < ends_at - 600:
                    data = content(3000, number)
                    with trio.fail_after(120):
                        async with await dial(nodes[number].driver, peer) as stream:
                            assert await echo(stream, data) == data
                    talks += 1
                    await trio.sleep(2400)

            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(talk, number)
            await trio.sleep_until(ends_at)
            assert talks == 2 * count
            assert sum(node.handle.statistics().streams.connections for node in nodes) == 0
            assert all(node.handle.registered for node in nodes)
            assert network.statistics().links.lost > 100

    simulate(main, 9)


@pytest.mark.parametrize("idle", [0, 20, 100])
@pytest.mark.parametrize("kind", [NatType.PORT_RESTRICTED, NatType.SYMMETRIC])
def test_a_dead_mapping_heals_in_under_half_a_minute(kind: NatType, idle: float) -> None:
    """The one who is not behind the router writes, to a port that nobody answers at any more."""

    async def main() -> None:
        async with (
            open_node_network(2, seed=3, link=Link(delay=0.02), nats=[None, kind]) as nodes,
            await dial(nodes[0].driver, nodes[1]) as stream,
        ):
            assert await echo(stream, content(50_000, 6)) == content(50_000, 6)
            await trio.sleep(idle)
            nodes.hosts[1].rebind()
            with trio.fail_after(30):
                assert await echo(stream, b"still there?") == b"still there?"

    simulate(main, 3)
