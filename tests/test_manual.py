"""What the manual tells readers to paste works when pasted."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import pilot_trio
from pilot_trio.cli.app import MODULES
from pilot_trio.cli.app import run as run_command
from pilot_trio.cli.daemon_flags import FLAGS
from pilot_trio.testing import MemoryNetwork
from tests.clocks import UndisturbedClock

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/])pilot-trio ([a-z].*)")


def blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(block[2], id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(BLOCK.finditer(page.read_text()))
        if block[1] in languages
    ]


def commands() -> Iterator[Any]:
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text()):
            if block[1] in ("console", "sh"):
                for line in block[2].splitlines():
                    if line.startswith("$") or block[1] == "sh":
                        for found in COMMAND.finditer(line.partition("  #")[0]):
                            yield pytest.param(found[1], id=f"{page.stem}: {found[1][:40]}")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who has nothing yet."""
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as name:  # short: a socket's path must fit 107 bytes
        for variable in ("HOME", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(variable, name)
        for variable in ("PILOT_HOME", "PILOT_SOCKET", "PILOT_REGISTRY"):
            monkeypatch.delenv(variable, raising=False)
        yield Path(name)


@pytest.mark.parametrize("program", blocks("python"))
async def test_programs_run(program: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that serve do it in memory, and end after a while; the others find a node where they look for one."""
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=UndisturbedClock()))
    serve, network = pilot_trio.serve, MemoryNetwork()
    served: list[pilot_trio.NodeHandle] = []

    async def serve_a_while(
        config: pilot_trio.Config | None = None,
        *,
        task_status: trio.TaskStatus[pilot_trio.NodeHandle] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            served.append(await nursery.start(partial(serve, config, network=MemoryNetwork())))
            task_status.started(served[0])
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel()

    if "pilot_trio.serve" in program:
        monkeypatch.setattr(pilot_trio, "serve", serve_a_while)
        await trio.to_thread.run_sync(exec, program, {})
        assert served[0].registered
        assert served[0].socket == home / "pilot.sock"
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, network=network))
        await trio.to_thread.run_sync(exec, "import pilot_trio\n" + program, {})
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("line", list(commands()))
def test_commands_and_their_flags_exist(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = line.split()
    name = words[: 2 if words[0] in ("daemon", "network") else 1]
    assert words[0] in MODULES
    assert run_command([*name, "--help"]) == 0
    help_text = capfd.readouterr().err
    for flag in re.findall(r"(?<=\s)--[a-z-]+", line):
        assert flag in help_text


@pytest.mark.parametrize("text", blocks("json"))
def test_settings_exist(text: str) -> None:
    assert {key.replace("_", "-") for key in json.loads(text)} <= {flag.name for flag in FLAGS}
