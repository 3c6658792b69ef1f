"""The programs of the manual run."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from pilot_trio.testing import open_node, open_node_pair

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


async def test_the_shout_server() -> None:
    example = runpy.run_path(str(EXAMPLES / "shout_server.py"))
    async with open_node() as node:
        assert await example["main"](node.driver) == b"CAN YOU HEAR ME?"


async def test_the_sensor(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "sensor.py"))
    async with open_node() as node:
        await example["main"](node.driver)
    lines = [f"0:0000.0000.0001 {celsius} °C" for celsius in (20.5, 20.7, 20.6)]
    assert capsys.readouterr().out.splitlines() == [*lines, "lost because we were slow: 0"]


async def test_http_from_node_to_node() -> None:
    example = runpy.run_path(str(EXAMPLES / "http_over_overlay.py"))
    async with open_node_pair(public=True) as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(example["serve"], server.driver)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            status, body = await example["get"](client.driver, str(server.address), "/weather")
        assert (status, body) == (200, b"hello from the overlay, you asked for /weather\n")
        nursery.cancel_scope.cancel()


@pytest.mark.slow
def test_the_tests(tmp_path: Path) -> None:
    """As a suite of somebody else: in a process of its own, without this suite's settings, without `trio_mode`."""
    shutil.copytree(EXAMPLES / "testing", tmp_path, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 passed" in done.stdout
