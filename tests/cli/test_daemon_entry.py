"""The daemon as a process: help, version, flag errors, its name, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.cli import daemon_entry, runtime_file
from pilot_trio.version import REFERENCE_VERSION, __version__
from tests.cli.conftest import relative_weight

ENTRY = (sys.executable, "-m", "pilot_trio.cli.daemon_entry")
Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE = 45  # seconds that a busy machine may take for what takes one
ATTEMPTS = 5  # at an end that the watchdog, whose patience is not ours, does not have to force
NOWHERE = ("-registry", "127.0.0.1:1", "-beacon", "127.0.0.1:1", "-listen", "127.0.0.1:0")


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as name:  # short: a socket's path must fit 107 bytes
        yield Path(name)


def environment(home: Path, **extra: str) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], **extra}


def run(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENTRY, *words], env=environment(home, **env), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start daemons that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*words: str, **env: str) -> subprocess.Popen[str]:
        process = spawn(home, *words, **env)
        started.append(process)
        wait_for_socket(home, process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def spawn(home: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start a daemon whose registry does not answer."""
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [*ENTRY, *NOWHERE, "-socket", str(home / "s"), *words],
            env=environment(home, **env),
            stdout=log,
            stderr=log,
            text=True,
        )


def wait_for_socket(home: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not connects(home / "s"):
        assert process.poll() is None, (home / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def test_help_goes_to_standard_error_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon_entry.main(["-help"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage of ")


def test_version_is_the_bare_number_that_clients_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon_entry.main(["-version"]) == 0
    assert capsys.readouterr().out == f"{REFERENCE_VERSION}\n"


def test_a_bad_flag_ends_with_two_and_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon_entry.main(["-nonsense"]) == 2
    assert capsys.readouterr().err.startswith("flag provided but not defined: -nonsense\nUsage of ")


def test_the_version_is_that_of_the_package() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{__version__}"' in project


def test_help_and_version_load_nothing_heavy(home: Path) -> None:
    code = (
        "import sys; from pilot_trio.cli import daemon_entry; daemon_entry.main([sys.argv[1]]);"
        "print(sorted(m for m in ('trio', 'attrs', 'cryptography', 'click', 'asyncio', 'ssl') if m in sys.modules))"
    )
    for word in ("-help", "-version"):
        done = subprocess.run(
            [sys.executable, "-c", code, word], env=environment(home), capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_quick(home: Path) -> None:
    assert relative_weight([*ENTRY, "-help"], environment(home)) < 3  # measured 1.3; 5.5 with Trio


def test_a_daemon_shows_the_name_that_pilotctl_looks_for_and_keeps_its_pid(start: Start) -> None:
    process = start(**{daemon_entry._RENAMED: "not a pid"})
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert Path(os.fsdecode(words[0])).name == "pilot-daemon"
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert f"{daemon_entry._RENAMED}={process.pid}".encode() in environ  # once, and not again: it would not be up
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_daemon_cleanly(home: Path, start: Start, number: signal.Signals) -> None:
    for _ in range(ATTEMPTS):
        process = start("-identity", str(home / "identity.json"))
        deadline = time.monotonic() + PATIENCE
        while not (note := runtime_file.read(home / ".pilot", home / "s")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert note["registry"] == "127.0.0.1:1"
        for ignored in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            process.send_signal(ignored)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        log = (home / "log").read_text()
        assert 'msg="outbound network" transport=udp' in log
        assert f'msg="shutting down" signal={number.name}' in log
        assert "level=ERROR" not in log
        if "shutdown incomplete" not in log:
            break
        (home / "log").unlink()
    else:
        pytest.fail(log)
    assert not (home / "s").exists()
    assert not list((home / ".pilot").rglob("run/*"))


def test_a_second_daemon_on_the_socket_refuses_to_start(home: Path, start: Start) -> None:
    process = start()
    try:
        second = run(home, *NOWHERE, "-socket", str(home / "s"))
        assert second.returncode == 1
        last = second.stderr.strip().splitlines()[-1]
        assert "level=ERROR" in last
        assert 'msg="daemon start: ' in last
        assert str(process.pid) in last
        assert connects(home / "s")
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("words", "config", "text"),
    [
        (
            ("-transport", "compat"),
            None,
            "-transport: the compat transport is not supported by this node; use udp or auto",
        ),
        (("-email", "nobody"), None, "daemon start: invalid email: email address must contain @"),
        ((), "{", "load config: "),
        ((), {"keepalive": 5}, "keepalive is 5"),
        (("-config", "/nonexistent/x"), None, "load config: open /nonexistent/x: no such file or directory"),
        (("-registry-trust", "x"), None, "daemon start: "),
    ],
)
def test_what_prevents_the_start_is_the_last_line_of_the_log(
    home: Path, words: tuple[str, ...], config: Any, text: str
) -> None:
    if config is not None:
        (home / ".pilot").mkdir()
        (home / ".pilot" / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    done = run(home, *NOWHERE, "-socket", str(home / "s"), "-identity", str(home / "identity.json"), *words)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert " level=ERROR " in last
    assert text.replace('"', '\\"') in last
    assert not (home / "s").exists()


def test_unknown_config_keys_are_told_of_and_do_no_harm(home: Path, start: Start) -> None:
    (home / ".pilot").mkdir()
    (home / ".pilot" / "config.json").write_text('{"log-levl": "debug"}')
    process = start()
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert "did_you_mean=log_level" in (home / "log").read_text()
