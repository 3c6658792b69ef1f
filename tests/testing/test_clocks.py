"""Clocks that somebody sets, and machines that sleep: whole overlays that must not care, or recover."""

from __future__ import annotations

import pytest
import trio

from pilot_trio.testing import Link, NatType, open_node_network
from tests.testing.overlay import content, dial, echo, simulate

pytestmark = pytest.mark.simulation

DAY = 86_400.0


@pytest.mark.parametrize("error", [-4000 * DAY, -DAY, DAY, 40_000 * DAY])
@pytest.mark.parametrize("whose", ["registry", "dialler", "dialled"])
def test_an_overlay_goes_on_when_somebody_sets_a_clock(whose: str, error: float) -> None:
    async def main() -> None:
        async with open_node_network(3, seed=3, link=Link(delay=0.02)) as nodes:
            async with await dial(nodes[0].driver, nodes[1]) as stream:
                assert await echo(stream, b"before") == b"before"
                host = {"registry": nodes.rendezvous, "dialler": nodes.hosts[0], "dialled": nodes.hosts[1]}[whose]
                host.clock_error = error
                with trio.fail_after(5):
                    assert await echo(stream, content(50_000, 1)) == content(50_000, 1)
                await trio.sleep(400)
                with trio.fail_after(5):
                    assert await echo(stream, b"much later") == b"much later"
            assert all(node.handle.registered for node in nodes)
            with trio.fail_after(10):
                async with await nodes[2].driver.dial("node1", 7) as other:
                    assert await echo(other, b"a stranger") == b"a stranger"

    simulate(main, 3)


@pytest.mark.parametrize("kind", [None, NatType.PORT_RESTRICTED, NatType.SYMMETRIC])
@pytest.mark.parametrize("hours", [0.05, 1, 10])
def test_a_machine_that_slept_is_reached_again_and_reaches_others(kind: NatType | None, hours: float) -> None:
    async def main() -> None:
        async with open_node_network(2, seed=4, link=Link(delay=0.02), nats=[kind]) as nodes:
            sleeper = nodes.hosts[0]
            stream = await dial(nodes[0].driver, nodes[1])
            assert await echo(stream, b"good night") == b"good night"
            nodes.network.isolate(sleeper)
            await trio.sleep(hours * 3600)
            nodes.network.heal()
            sleeper.slept += hours * 3600
            with trio.fail_after(30):
                async with await dial(nodes[1].driver, nodes[0]) as there:
                    assert await echo(there, b"good morning") == b"good morning"
                async with await dial(nodes[0].driver, nodes[1]) as back:
                    assert await echo(back, b"good morning") == b"good morning"
            with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()

    simulate(main, 4)
