"""Transfers do not fall silent while every processor is busy with other work.

A pair of real daemons seldom gets as far: at eight connections one of the first transfers stops for good.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

import attrs
import pytest
import trio

from pilot_trio.driver import Driver, PilotListener
from pilot_trio.errors import IPCClosedError
from tests.interop.overlay import Kind, MakeHome, Overlay, open_overlay
from tests.interop.traffic import MIB, Flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 5000
TRANSFERS = 20
HANG_UPS_MAX = 3
NO_TURN = 5.0  # seconds; either daemon hangs up on a client that does not read for ten
SIZES = {1: 8 * MIB, 8: 2 * MIB}  # {connections: bytes on each}
LOOK = 0.1  # seconds between two looks
# Looks without a byte after which a stream has stopped: ten seconds, and more where the processors are so busy that one of
# the daemons, or this test, does not get its turn. Between two looks both daemons have answered. What has stopped does so
# for good; the bench asks for five seconds, on a machine that does nothing else than it says.
SILENCE = 100
PAIRS: list[tuple[Kind, Kind]] = [("ours", "ours"), ("ours", "go"), ("go", "ours")]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.fixture
async def busy_processors() -> AsyncGenerator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        yield


@pytest.mark.parametrize(("sender_kind", "receiver_kind"), PAIRS)
@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.usefixtures("busy_processors")
async def test_twenty_of_twenty_transfers(
    overlay: Overlay, sender_kind: Kind, receiver_kind: Kind, connections: int
) -> None:
    number = hung_up = 0
    while number < TRANSFERS:
        sender, receiver = await overlay.start(sender_kind), await overlay.start(receiver_kind)
        async with sender.driver() as driver, receiver.driver() as other:
            try:
                listener = await other.listen(PORT)
                while number < TRANSFERS:
                    await transfer(driver, other, listener, receiver.address, connections, f"transfer {number + 1}")
                    number += 1
            except* HungUpError:
                hung_up += 1
                if hung_up > HANG_UPS_MAX:
                    raise
        for node in (sender, receiver):  # the real daemon answers nobody any more
            await node.stop(signal.SIGKILL)


class HungUpError(Exception):
    """A daemon has closed the socket of a client that read nothing for long, since this process got no turn."""


@attrs.define
class Turns:
    """How long this process was without a turn."""

    last: float = attrs.field(factory=time.monotonic)
    longest: float = 0.0

    def take(self) -> float:
        """Note a turn; return the longest time without one."""
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        return self.longest

    async def watch(self, function: Callable[[], Awaitable[object]]) -> None:
        """Await something that a client does."""
        try:
            await function()
        except (trio.BrokenResourceError, IPCClosedError) as exc:
            if self.take() > NO_TURN and isinstance(exc.__cause__ or exc, IPCClosedError):
                raise HungUpError from exc
            await trio.sleep(1)  # where a daemon has hung up, the other end breaks too: let the cause come first
            raise


async def transfer(
    driver: Driver, other: Driver, listener: PilotListener, address: str, connections: int, name: str
) -> None:
    flows = []
    for _ in range(connections):
        dialled = await driver.dial(address, PORT)
        flows.append(Flow(dialled, await listener.accept()))
    turns = Turns()
    async with trio.open_nursery() as watching:
        watching.start_soon(watch, (driver, other), flows, turns, name)
        async with trio.open_nursery() as nursery:
            for flow in flows:
                nursery.start_soon(turns.watch, partial(flow.send, SIZES[connections]))
                nursery.start_soon(turns.watch, flow.receive)
        watching.cancel_scope.cancel()
    assert {flow.received for flow in flows} == {SIZES[connections]}


async def watch(drivers: Iterable[Driver], flows: list[Flow], turns: Turns, name: str) -> None:
    """Fail if a flow falls silent while both daemons are at work."""
    received = [-1] * len(flows)
    silent = [0] * len(flows)
    while True:
        await trio.sleep(LOOK)
        turns.take()
        for driver in drivers:
            await turns.watch(driver.health)
        for number, flow in enumerate(flows):
            moved = flow.ended or flow.received != received[number]
            silent[number] = 0 if moved else silent[number] + 1
            received[number] = flow.received
        assert max(silent) < SILENCE, f"{name} has stopped: {received}"
