"""Transfers do not fall silent while every processor is busy with other work.

A pair of real daemons seldom gets as far: at eight connections one of the first transfers stops for good.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable

import pytest
import trio

from pilot_trio.driver import Driver
from tests.interop.overlay import Kind, MakeHome, Overlay, open_overlay
from tests.interop.traffic import MIB, Flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 5000
TRANSFERS = 20
SIZES = {1: 8 * MIB, 8: 2 * MIB}  # {connections: bytes on each}
LOOK = 0.1  # seconds between two looks
# Looks without a byte after which a stream has stopped: twenty seconds, and more where the processors are so busy that one
# of the daemons, or this test, does not get its turn. Between two looks both daemons have answered. What has stopped does so
# for good; next to twenty other programs round trips take a second, and a repetition that is lost too is missed for five.
SILENCE = 200
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
    sender, receiver = await overlay.start(sender_kind), await overlay.start(receiver_kind)
    async with sender.driver() as driver, receiver.driver() as other:
        listener = await other.listen(PORT)
        for number in range(1, TRANSFERS + 1):
            flows = []
            for _ in range(connections):
                dialled = await driver.dial(receiver.address, PORT)
                flows.append(Flow(dialled, await listener.accept()))
            async with trio.open_nursery() as watching:
                watching.start_soon(watch, (driver, other), flows, f"transfer {number}")
                async with trio.open_nursery() as nursery:
                    for flow in flows:
                        nursery.start_soon(flow.send, SIZES[connections])
                        nursery.start_soon(flow.receive)
                watching.cancel_scope.cancel()
            assert {flow.received for flow in flows} == {SIZES[connections]}


async def watch(drivers: Iterable[Driver], flows: list[Flow], name: str) -> None:
    """Fail if a flow falls silent while both daemons are at work."""
    received = [-1] * len(flows)
    silent = [0] * len(flows)
    while True:
        await trio.sleep(LOOK)
        for driver in drivers:
            await driver.health()
        for number, flow in enumerate(flows):
            moved = flow.ended or flow.received != received[number]
            silent[number] = 0 if moved else silent[number] + 1
            received[number] = flow.received
        assert max(silent) < SILENCE, f"{name} has stopped: {received}"
