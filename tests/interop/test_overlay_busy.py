"""Transfers do not fall silent while every processor is busy with other work.

A pair of real daemons seldom gets as far: at eight connections one of the first transfers stops for good.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, open_overlay
from tests.interop.traffic import MIB, Flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 5000
TRANSFERS = 20
SILENCE = 5.0  # seconds without a byte: the transfer has stopped
LIMIT = 60.0  # seconds for a transfer that takes one or two
SIZES = {1: 8 * MIB, 8: 2 * MIB}  # {connections: bytes on each}
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
            with trio.move_on_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    for flow in flows:
                        nursery.start_soon(flow.send, SIZES[connections])
                        nursery.start_soon(flow.receive)
            assert {flow.received for flow in flows} == {SIZES[connections]}, f"transfer {number} has stopped"
            silence = max(flow.longest_silence for flow in flows)
            assert silence < SILENCE, f"transfer {number} was silent for {silence:.1f} s"
