"""A bad network under whole nodes."""

import pytest
import trio

from pilot_trio.testing import Link, NatType, open_node_network, run_simulation

BAD = Link(delay=0.08, jitter=0.02, loss=0.03, duplication=0.01, reordering=0.05)


@pytest.mark.trio
async def test_an_agent_is_patient(autojump_clock):
    async with (
        open_node_network(2, link=BAD, nats=[NatType.SYMMETRIC]) as nodes,
        await nodes[0].driver.dial("node1", 7) as stream,
    ):
        nodes.network.isolate(nodes.hosts[1])
        await stream.send_all(b"anybody there?")
        with trio.move_on_after(10) as cut_off:
            await stream.receive_some()
        assert cut_off.cancelled_caught
        nodes.network.heal()
        assert await stream.receive_some() == b"anybody there?"


def test_a_run_repeats():
    async def main():
        async with open_node_network(3, seed=7, link=BAD) as nodes:
            async with await nodes[2].driver.dial("node0", 7) as stream:
                await stream.send_all(b"hello")
                await stream.receive_some()
            return nodes.network.fingerprint()

    assert run_simulation(main, seed=7) == run_simulation(main, seed=7)
