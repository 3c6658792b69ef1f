"""Tests of a small service, on a whole node in memory."""

import pytest
import trio

from pilot_trio import DialError, open_driver
from pilot_trio.testing import open_node, open_stream_pair


async def shout(stream: trio.abc.Stream) -> None:
    """Serve one client, at most for a minute."""
    with trio.move_on_after(60):
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk.upper())


@pytest.mark.trio
async def test_it_shouts(pilot_node, nursery):
    """The `pilot_node` fixture is a registered node with a driver connected to it."""
    node = pilot_node.driver
    nursery.start_soon(trio.serve_listeners, shout, [await node.listen(5000)])
    async with await node.dial(pilot_node.address, 5000) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"HELLO"


@pytest.mark.trio
async def test_it_gives_up_on_a_silent_client(pilot_stream_pair, autojump_clock):
    """A minute passes at once: nothing leaves the process, so virtual time can jump."""
    client, server = pilot_stream_pair
    await shout(server)
    assert await client.receive_some() == b""
    assert trio.current_time() >= 60


@pytest.mark.trio
async def test_nobody_listens(pilot_driver):
    """The daemon's refusals come as classes."""
    with pytest.raises(DialError, match="connection refused"):
        await pilot_driver.dial("1", 9999)


@pytest.mark.trio
async def test_an_outage_of_the_registry(pilot_network, pilot_node, autojump_clock):
    """Faults are methods of the network."""
    pilot_network.break_connections(pilot_node.handle.registry)
    pilot_network.refuse(pilot_node.handle.registry)
    await trio.sleep(300)
    assert (await pilot_node.driver.health()).status == "ok"  # what is local goes on
    pilot_network.restore(pilot_node.handle.registry)


@pytest.mark.trio
async def test_two_nodes(pilot_node_pair, autojump_clock):
    """A pair shares a rendezvous: names, trust, networks."""
    alpha, beta = pilot_node_pair
    assert (await alpha.driver.resolve("beta")).address == beta.address
    await alpha.driver.trust.request(beta.node_id, "let us work together")
    await beta.driver.trust.approve(alpha.node_id)
    with trio.fail_after(60):
        await alpha.driver.trust.wait(beta.node_id)


@pytest.mark.trio
async def test_with_other_programs(pilot_socket_node):
    """A real socket, for `pilotctl`, the SDK, your own program in a process of its own."""
    async with open_driver(pilot_socket_node.handle.socket) as other:
        assert (await other.info()).address == pilot_socket_node.address


@pytest.mark.trio
async def test_your_own_settings(autojump_clock):
    """Without fixtures: any setting of `Config`, as many nodes as you like."""
    async with open_node(hostname="worker-1", public=True) as node:
        assert (await node.driver.resolve("worker-1")).address == node.address
        client, server = await open_stream_pair(node.driver)
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
