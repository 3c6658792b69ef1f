"""The daemon as a process: its pid file, whether it lives, how it is started and stopped (`spec/cli.md` §6.2, §6.3)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pilot_trio.address import quote
from pilot_trio.cli.output import CliError

STOP_TIMEOUT: Final = 10.0  # seconds from SIGTERM to SIGKILL; protocol, `spec/cli.md` §6.3
POLL_INTERVAL: Final = 0.05  # seconds between two looks at a process; Linux tells only its parent
LOG_TAIL: Final = 64 * 1024  # bytes at the end of a log in which the reason of a failure is looked for
_NAMES: Final = frozenset({"pilot-daemon", "daemon"})  # argv[0] base names of a daemon
_MESSAGE: Final = re.compile(r'msg=("(?:[^"\\]|\\.)*"|\S+)')


class PidFile:
    """`pilot.pid`: the decimal pid of the daemon that the command line started, 0 while one is being started."""

    def __init__(self, home: Path) -> None:
        self.path = home / "pilot.pid"

    def read(self) -> int:
        """Return the pid, 0 if there is none."""
        try:
            return max(int(self.path.read_text().strip()), 0)
        except (OSError, ValueError):
            return 0

    def claim(self) -> None:
        """Create it, so that no second start runs at once; raise `already_exists` if one does."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as exc:
            text = "another daemon start is in progress (PID file locked)"
            raise CliError("already_exists", text, f"if none is, remove {self.path}") from exc
        with os.fdopen(descriptor, "w") as file:
            file.write("0\n")

    def write(self, pid: int) -> None:
        """Name the daemon."""
        self.path.write_text(str(pid))

    def remove(self) -> None:
        """Forget the daemon."""
        self.path.unlink(missing_ok=True)


def is_daemon(pid: int) -> bool:
    """Say whether a process lives and looks like a daemon: by the base name of its argv[0]."""
    return pid > 0 and is_alive(pid) and os.path.basename(_argv0(pid)) in _NAMES  # noqa: PTH119  (a name, not a file)


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def stop(pid: int) -> bool:
    """End a process: politely, then by force. Return whether force was needed."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if _gone_by(pid, time.monotonic() + STOP_TIMEOUT):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _gone_by(pid, time.monotonic() + STOP_TIMEOUT)
    return True


def spawn(command: Sequence[str], environ: Mapping[str, str], home: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a detached process whose output goes to `pilot-<pid>.log`; `pilot.log` points there. Return it and its log."""
    temporary = home / f".pilot-start-{os.getpid()}.log"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603  (the user's own program)
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            env=dict(environ),
        )
    except OSError as exc:
        temporary.unlink()
        raise CliError("internal", f"cannot run {command[0]}: {exc.strerror or exc}") from exc
    finally:
        os.close(descriptor)
    log = home / f"pilot-{process.pid}.log"
    temporary.replace(log)
    link = home / f".pilot-log-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(log.name)
    link.replace(home / "pilot.log")
    return process, log


def daemon_command(environ: Mapping[str, str]) -> list[str]:
    """Return how to run the daemon: `PILOT_DAEMON_BIN`, else our own."""
    named = environ.get("PILOT_DAEMON_BIN")
    return [named] if named else [sys.executable, "-P", "-m", "pilot_trio.cli.daemon_entry"]


def failure_reason(log: Path) -> str:
    """Return why a daemon ended: the message of its last ERROR line, else the last line of its log."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_TAIL, 0))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return "no log"
    lines = [line for line in lines if line.strip()]
    errors = [line for line in lines if "level=ERROR" in line]
    if errors and (found := _MESSAGE.search(errors[-1])):
        text = found[1]
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\") if text.startswith('"') else text
    return lines[-1] if lines else f"nothing in its log {quote(str(log))}"


def _gone_by(pid: int, deadline: float) -> bool:
    while is_alive(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def _argv0(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
    except OSError:
        pass
    found = subprocess.run(["ps", "-p", str(pid), "-o", "args="], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return found.stdout.split(" ")[0].strip()
