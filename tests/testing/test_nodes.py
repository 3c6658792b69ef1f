"""Whole nodes in memory and, once each, on real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.config import RegistryConfig
from pilot_trio.driver import open_driver
from pilot_trio.errors import DaemonError, DialError, IPCClosedError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import SystemNetwork
from pilot_trio.testing import (
    MemoryNetwork,
    NatType,
    open_node,
    open_node_network,
    open_node_pair,
    open_stream_pair,
    run_simulation,
)


async def test_a_node_is_registered_and_answers(autojump_clock: MockClock) -> None:
    async with open_node(hostname="alpha", public=True) as node:
        info = await node.driver.info()
        assert (info.node_id, info.address, info.hostname) == (node.node_id, node.address, "alpha")
        assert (await node.driver.health()).status == "ok"
        assert (await node.driver.resolve("alpha")).address == node.address


@pytest.mark.parametrize("transport", ["memory", "socket"])
@pytest.mark.parametrize("real_network", [False, True])
async def test_the_same_everywhere(transport: Literal["memory", "socket"], real_network: bool) -> None:
    network = SystemNetwork() if real_network else MemoryNetwork()
    async with open_node(network=network, transport=transport) as node:
        dialled, accepted = await open_stream_pair(node.driver)
        await dialled.send_all(b"ping")
        assert await accepted.receive_some() == b"ping"
        await dialled.aclose()
        assert await accepted.receive_some() == b""
        async with open_driver(connect_with=node.connect) as other, other.datagrams(9) as datagrams:
            assert await node.driver.send_datagram(node.address, b"x", 9)
            assert (await datagrams.receive()).data == b"x"
        assert node.handle.socket.exists() == (transport == "socket")


async def test_the_echo_service_answers(autojump_clock: MockClock) -> None:
    async with open_node() as node, await node.driver.dial(node.address, 7) as stream:
        await stream.send_all(b"anybody there?")
        assert await stream.receive_some() == b"anybody there?"


async def test_hours_pass_in_no_time(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        await trio.sleep(2 * 3600)
        assert (await node.driver.health()).uptime >= 2 * 3600
        assert node.handle.statistics().enrolment.heartbeats > 100


async def test_nothing_is_kept_and_nothing_left_behind(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with open_node(network=network) as node:
        home = node.handle.config.home
        assert home.is_dir()
    assert not home.exists()
    with pytest.raises(IPCClosedError):
        await node.driver.info()
    async with open_node(network=network) as again:
        assert again.node_id == 1


async def test_an_exception_of_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        async with open_node():
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()


async def test_a_registry_that_breaks_is_found_again(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with open_node(network=network) as node:
        assert network.break_connections(node.handle.registry) > 0
        network.refuse(node.handle.registry)
        with pytest.raises(DaemonError, match=r"^resolve_hostname: registry: "):
            await node.driver.resolve("anybody")
        network.restore(node.handle.registry)
        await trio.sleep(120)
        with pytest.raises(DaemonError, match=r"^resolve_hostname: registry: hostname"):
            await node.driver.resolve("anybody")


async def test_a_pair_finds_and_trusts_each_other(autojump_clock: MockClock) -> None:
    async with open_node_pair() as (alpha, beta):
        assert alpha.node_id != beta.node_id
        assert (await alpha.driver.resolve("beta")).address == beta.address
        assert (await beta.driver.resolve("alpha")).address == alpha.address
        await alpha.driver.trust.request(beta.node_id, "let us talk")
        (request,) = await beta.driver.trust.pending()
        assert (request["node_id"], request["justification"]) == (alpha.node_id, "let us talk")
        await beta.driver.trust.approve(alpha.node_id)
        with trio.fail_after(60):
            await alpha.driver.trust.wait(beta.node_id)
        assert await beta.driver.trust.is_trusted(alpha.node_id)


async def test_open_streams_go_on_when_trust_is_taken_back(autojump_clock: MockClock) -> None:
    """A private peer cannot be found again without trust: what is known of the way to it stays as long as it is used."""
    async with open_node_pair(public=False) as (alpha, beta):
        await alpha.driver.trust.request(beta.node_id)
        assert len(await beta.driver.trust.pending()) == 1
        await beta.driver.trust.approve(alpha.node_id)
        await alpha.driver.trust.wait(beta.node_id)
        listener = await beta.driver.listen(5000)
        async with await alpha.driver.dial(beta.address, 5000) as stream, await listener.accept() as accepted:
            await alpha.driver.trust.revoke(beta.node_id)
            for _ in range(5):
                await trio.sleep(2)
                for one, other in ((stream, accepted), (accepted, stream)):
                    await one.send_all(b"still here")
                    with trio.fail_after(5):
                        assert await other.receive_some() == b"still here"
        await trio.sleep(60)
        with trio.fail_after(60), pytest.raises(DialError):
            await alpha.driver.dial(beta.address, 5000)


async def test_a_pair_dials_and_sends_datagrams(autojump_clock: MockClock) -> None:
    async with open_node_pair() as (alpha, beta):
        async with await alpha.driver.dial("beta", 7) as stream:
            await stream.send_all(b"across")
            assert await stream.receive_some() == b"across"
        async with beta.driver.datagrams(9) as datagrams:
            assert await alpha.driver.send_datagram(beta.address, b"x", 9)
            got = await datagrams.receive()
            assert (got.data, got.source) == (b"x", alpha.address)


async def test_settings_reach_the_node(autojump_clock: MockClock) -> None:
    async with open_node(admin_token="secret", hostname="alpha") as first:
        registry = RegistryConfig(endpoint=first.handle.registry)
        async with open_node(network=first.network, registry=registry, hostname="beta") as second:
            assert second.handle.rendezvous is None
            assert second.node_id == first.node_id + 1


async def test_leaving_while_the_driver_is_busy(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_for_ever() -> None:
            with pytest.raises(IPCClosedError):
                await node.driver.trust.wait(999)

        async with open_node() as node:
            nursery.start_soon(wait_for_ever)
            await wait_all_tasks_blocked()


async def test_a_network_of_nodes_knows_its_hosts(autojump_clock: MockClock) -> None:
    async with open_node_network(3, nats=[NatType.SYMMETRIC, None], public=False) as nodes:
        assert len(nodes) == len(nodes.hosts) == 3
        assert [host.nat is None for host in nodes.hosts] == [False, True, True]
        assert [node.network for node in nodes] == nodes.hosts
        assert len(nodes[1:]) == 2
        assert nodes[0].handle.registry.host == nodes.rendezvous.address
        assert (await nodes[2].driver.info()).hostname == "node2"
        assert not any(node.handle.config.public for node in nodes)


@pytest.mark.parametrize("port", [4000, 0], ids=["the same port", "another port"])
def test_a_node_that_was_killed_comes_back_as_itself(port: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=3, folder=tmp_path, listen=Endpoint("", 4000)) as nodes:
            killed = nodes[1]
            waiting = await nodes[0].driver.dial(killed.address, 7)
            sent = nodes.network.direction(nodes.hosts[1], nodes.hosts[0]).counted.sent
            with trio.fail_after(1):
                await nodes.kill(1)
            assert nodes.network.direction(nodes.hosts[1], nodes.hosts[0]).counted.sent == sent  # no goodbye
            with pytest.raises(IPCClosedError):
                await killed.driver.info()
            back = await nodes.start(1, listen=Endpoint("", port))
            assert back is nodes[1] is not killed
            assert back.address == killed.address
            assert [*nodes.hosts[1].sockets] == [Endpoint(nodes.hosts[1].address, port or 32_768)]
            async with await nodes[0].driver.dial(back.address, 7) as stream:
                await stream.send_all(b"again")
                assert await stream.receive_some() == b"again"
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(600):
                await waiting.receive_some()

    run_simulation(main, seed=3)


def test_a_rendezvous_that_was_killed_remembers_its_nodes(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=4, folder=tmp_path) as nodes:
            await nodes.kill_rendezvous()
            with pytest.raises(DaemonError, match="refused"):
                await nodes[0].driver.resolve("node1")
            before = nodes[1].handle.registry
            served = await nodes.start_rendezvous()
            assert served.registry == before
            with pytest.raises(RuntimeError, match="runs already"):
                await nodes.start_rendezvous()
            assert (await nodes[0].driver.resolve("node1")).address == nodes[1].address

    run_simulation(main, seed=4)
