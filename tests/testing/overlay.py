"""What the tests of whole overlays on a simulated network share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import PilotError
from pilot_trio.testing import NodeNetwork, RunningNode, run_simulation

ECHO = 7


_Result = TypeVar("_Result")


def simulate(test: Callable[[], Awaitable[_Result]], seed: int = 0) -> _Result:
    """Run a test in virtual time; every choice of the scheduler comes from the seed."""
    return run_simulation(test, seed=seed)


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def echo(stream: PilotStream, data: bytes) -> bytes:
    """Send data through an echo service and return what came back, until all of it has or the stream ends."""
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(received) < len(data):
            chunk = await stream.receive_some()
            if not chunk:
                break
            received += chunk
        nursery.cancel_scope.cancel()
    return bytes(received)


async def transfer(source: RunningNode, sink: RunningNode, data: bytes, port: int = 5000) -> bytes:
    """Dial, send one way and close; return what the other end has read up to the end of the stream."""
    received = bytearray()
    listener = await sink.driver.listen(port)

    async def read() -> None:
        async with await listener.accept() as stream:
            async for chunk in stream:
                received.extend(chunk)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with await dial(source.driver, sink, port) as stream:
            await stream.send_all(data)
    return bytes(received)


async def dial(driver: Driver, node: RunningNode, port: int = ECHO) -> PilotStream:
    """Dial as often as it takes; on a bad network one dial may end with an error."""
    while True:
        try:
            return await driver.dial(node.address, port)
        except PilotError:
            await trio.sleep(1)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def streams_open(network: NodeNetwork) -> int:
    """Count the streams that any node still holds."""
    return sum(node.handle.statistics().streams.connections for node in network)
