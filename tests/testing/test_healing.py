"""Paths that die and come back, in virtual time: routers that restart, nodes that move, whoever is in between.

A router that restarts forgets every mapping. Where both ends are behind routers that let in only whom their own side wrote
to, neither can reach the other then, and the beacon cannot reach the one whose router it was: only that one can find out.
"""

from __future__ import annotations

import itertools

import pytest
import trio

from pilot_trio.testing import Link, NatType, open_node_network
from tests.testing.overlay import content, dial, echo, simulate

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
