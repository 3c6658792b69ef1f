"""Running the command line inside the test process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from pilot_trio.cli.app import run as run_app
from tests.cli.fake_daemon import FakeDaemon, fake_daemon, patient_poll

NOBODY = "127.0.0.1:1"  # a registry that refuses connections


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The result of a command that succeeded."""
        envelope = json.loads(self.out)
        assert envelope.keys() == {"data", "status"}
        assert envelope["status"] == "ok"
        return envelope["data"]

    @property
    def error(self) -> dict[str, Any]:
        """The error object; nothing may be on standard output."""
        assert self.out == ""
        envelope: dict[str, Any] = json.loads(self.err)
        assert envelope["status"] == "error"
        assert envelope["error"] == envelope["message"]
        return envelope


class Cli(Protocol):
    """Runs one command line."""

    def __call__(self, *words: str) -> Result: ...


def relative_weight(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return how much longer a program computes than an interpreter that loads two modules of its own: on any machine."""
    plain = (sys.executable, "-c", "import json, socket")
    runs = [(computing_time(command, environment), computing_time(plain, environment)) for _ in range(5)]
    return min(ours for ours, _ in runs) / min(theirs for _, theirs in runs)


def computing_time(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a program; return how many seconds it has computed, which other work on the machine changes little."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory, and an environment that points nowhere else."""
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as name:  # short: a socket's path must fit 107 bytes
        for variable in (
            "PILOT_HOME",
            "PILOT_ADMIN_TOKEN",
            "XDG_RUNTIME_DIR",
            "PILOT_DAEMON_BIN",
            "PILOTCTL_TRACE_TIME",
        ):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("HOME", name)
        monkeypatch.setenv("PILOT_SOCKET", f"{name}/s")
        monkeypatch.setenv("PILOT_REGISTRY", NOBODY)
        yield Path(name)


@pytest.fixture
def cli(home: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `pilot-trio WORDS` and return what it left behind."""
    del home

    def run(*words: str) -> Result:
        capfd.readouterr()
        code = run_app(words)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def daemon(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A scripted daemon on the socket that the commands use."""
    with fake_daemon(home / "s") as running:
        monkeypatch.setattr("pilot_trio.cli.ipc_client.select", patient_poll(running))
        yield running
