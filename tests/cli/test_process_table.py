"""Pid file, liveness, and the reason in a log."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_trio.cli import process_table
from pilot_trio.cli.output import CliError
from pilot_trio.cli.process_table import PidFile, failure_reason, is_alive, is_daemon, spawn, stop


def test_a_claim_is_exclusive_and_ends_with_the_pid(tmp_path: Path) -> None:
    pids = PidFile(tmp_path / ".pilot")
    assert pids.read() == 0
    pids.claim()
    assert pids.path.read_text() == "0\n"
    assert stat.S_IMODE(pids.path.stat().st_mode) == 0o600
    with pytest.raises(CliError, match="another daemon start is in progress"):
        pids.claim()
    pids.write(123)
    assert pids.path.read_text() == "123"
    assert pids.read() == 123
    pids.remove()
    pids.remove()
    assert pids.read() == 0


@pytest.mark.parametrize("text", ["", "x", "-5", "12 34"])
def test_a_pid_file_with_something_else_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "pilot.pid").write_text(text)
    assert PidFile(tmp_path).read() == 0


@pytest.mark.parametrize(
    ("name", "daemon"), [("/x/pilot-daemon", True), ("daemon", True), ("pilot-daemons", False), ("sh", False)]
)
def test_a_daemon_is_known_by_its_name(name: str, daemon: bool) -> None:
    program = [name, "-c", "echo up; read x"]
    process = subprocess.Popen(program, executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert is_daemon(process.pid) is daemon
        assert is_alive(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet noticed by its parent
        assert not is_alive(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert not is_alive(process.pid)
    assert not is_daemon(process.pid)


@pytest.mark.parametrize(
    ("program", "forced"), [("echo up; exec cat", False), ("trap '' TERM; echo up; while read x; do :; done", True)]
)
def test_stopping_is_polite_first(monkeypatch: pytest.MonkeyPatch, program: str, forced: bool) -> None:
    monkeypatch.setattr(process_table, "STOP_TIMEOUT", 0.3 if forced else 60)  # who ends in time may be slow
    process = subprocess.Popen(["/bin/sh", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert stop(process.pid) is forced
        process.wait(60)  # a busy machine takes a moment even for that
        assert not is_alive(process.pid)
    finally:
        process.kill()
        process.communicate()


def test_a_started_process_is_detached_and_logs_to_its_own_file(tmp_path: Path) -> None:
    process, log = spawn([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"], os.environ, tmp_path)
    assert process.wait(20) == 0
    assert log == tmp_path / f"pilot-{process.pid}.log"
    assert log.read_text() == "True\n"
    assert (tmp_path / "pilot.log").readlink() == Path(log.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([log.name, "pilot.log"])


def test_a_program_that_cannot_be_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot run /nonexistent/x: No such file"):
        spawn(["/nonexistent/x"], os.environ, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'level=INFO msg=x\nlevel=ERROR msg="daemon start: no \\"x\\"" a=b\nlevel=INFO msg=later\n',
            'daemon start: no "x"',
        ),
        ("level=ERROR msg=short\n", "short"),
        ("Traceback (most recent call last):\n  File\nImportError: no module\n\n", "ImportError: no module"),
    ],
)
def test_the_reason_is_the_last_error_else_the_last_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "log").write_text("x" * process_table.LOG_TAIL + "\n" + text)
    assert failure_reason(tmp_path / "log") == reason


def test_without_a_log_there_is_no_reason(tmp_path: Path) -> None:
    assert failure_reason(tmp_path / "log") == "no log"
    (tmp_path / "log").touch()
    assert failure_reason(tmp_path / "log").startswith("nothing in its log")
