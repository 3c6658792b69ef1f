"""A node that was stopped answers dials that nobody waits for any more (`spec/transport.md` §3.4)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import ECHO, echo

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE = 0.5  # seconds that the impatient client waits; a SYN and a repetition are under way by then
SETTLED = 30.0  # seconds until nothing is left of it; it takes a moment, and two minutes if nobody tells the peer
DIAL = """
import sys
from pilotprotocol import Driver
driver = Driver(sys.argv[1])
print("dialling", flush=True)
driver.dial(sys.argv[2])
"""


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize("stopped_kind", ["go", "ours"])
async def test_a_dial_that_was_given_up_leaves_nothing_at_a_peer_that_was_stopped(
    overlay: Overlay, stopped_kind: Kind
) -> None:
    near, far = await overlay.start("ours"), await overlay.start(stopped_kind)
    async with near.driver() as driver:
        await echo(driver, far, 1)  # they know each other: the SYNs leave at once
        far.process.send_signal(signal.SIGSTOP)
        await trio.to_thread.run_sync(os.waitid, os.P_PID, far.process.pid, os.WSTOPPED)
        with trio.move_on_after(PATIENCE) as scope:
            await driver.dial(far.address, ECHO)
        assert scope.cancelled_caught
        await killed_while_it_dials(near, far)
        far.process.send_signal(signal.SIGCONT)
        await echo(driver, far, 1)  # whatever it found in its socket, it has answered by now
        with trio.fail_after(SETTLED):
            for node in (near, far):
                while await established(node):  # noqa: ASYNC110 - only the daemon knows, and does not tell
                    await trio.sleep(0.25)


async def killed_while_it_dials(near: OverlayNode, far: OverlayNode) -> None:
    """The same by a client of the original, which does not take its leave."""
    command = [sys.executable, "-c", DIAL, str(near.home.socket), f"{far.address}:{ECHO}"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run, command)
        said = b""
        while not said.endswith(b"\n"):  # in two pieces, if Python was told not to buffer
            said += await process.stdout.receive_some(9 - len(said))
        assert said == b"dialling\n"
        await trio.sleep(PATIENCE)
        process.kill()


async def run(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(command, stdout=subprocess.PIPE, check=False, task_status=task_status)


async def established(node: OverlayNode) -> list[object]:
    rows = (await node.ctl("connections")).data["connections"]
    return [row for row in rows or [] if row["state"] == "ESTABLISHED"]
