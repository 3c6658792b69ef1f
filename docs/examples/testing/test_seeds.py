"""Properties instead of examples: whatever a seed makes of the network, an order is carried out once or fails."""

import random

import pytest
import trio

from pilot_trio import PilotError
from pilot_trio.testing import Link, NatType, open_node_network, run_simulation


async def take_orders(stream, done):
    async with stream:
        order = b"".join([chunk async for chunk in stream])
        if order.endswith(b"."):  # else it broke off
            done.append(order)


async def order_through(seed):
    chance = random.Random(seed)
    link = Link(delay=chance.uniform(0, 0.2), loss=chance.uniform(0, 0.1), reordering=chance.uniform(0, 0.2))
    nats = [chance.choice([None, *NatType]) for _ in range(2)]
    done = []
    async with open_node_network(2, seed=seed, link=link, nats=nats) as nodes, trio.open_nursery() as nursery:
        listener = await nodes[1].driver.listen(5000)
        nursery.start_soon(trio.serve_listeners, lambda stream: take_orders(stream, done), [listener])
        try:
            async with await nodes[0].driver.dial("node1", 5000) as stream:
                await stream.send_all(b"two of everything.")
            failed = False
        except (PilotError, trio.BrokenResourceError):
            failed = True
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    assert done == [b"two of everything."] or (failed and not done)


@pytest.mark.parametrize("seed", range(10))
def test_an_order_is_carried_out_once_or_fails(seed):
    run_simulation(order_through, seed, seed=seed)
