"""Our two programs as processes, in the homes that `go.py` makes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import trio

from tests.interop.go import CTL_TIMEOUT, START_TIMEOUT, CtlResult, GoHome

DAEMON: Final = (sys.executable, "-m", "pilot_trio.cli.daemon_entry")
CTL: Final = (sys.executable, "-c", "from pilot_trio.cli import main; raise SystemExit(main())")


def daemon_script(home: GoHome) -> Path:
    """Write a program such as an installer makes of `pilot-trio-daemon`, and name it `PILOT_DAEMON_BIN`."""
    path = home.root / "pilot-trio-daemon"
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom pilot_trio.cli.daemon_entry import main\nsys.exit(main())\n")
    path.chmod(0o755)
    home.environment["PILOT_DAEMON_BIN"] = str(path)
    return path


async def our_ctl(home: GoHome, *arguments: str, json: bool = True, timeout: float = CTL_TIMEOUT) -> CtlResult:
    """Run `pilot-trio --json ARGUMENTS`."""
    with trio.fail_after(timeout):
        done = await trio.run_process(
            [*CTL, *(["--json"] if json else []), *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=home.environment,
        )
    return CtlResult(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.asynccontextmanager
async def open_our_daemon(home: GoHome, *flags: str) -> AsyncGenerator[trio.Process, None]:
    """Run our daemon in `home` until the end of the block; it is registered when the block begins."""
    with (home.root / "ours.log").open("ab") as log:
        start = log.tell()  # what an earlier daemon wrote says nothing of this one
        process = await trio.lowlevel.open_process(
            [*DAEMON, "-socket", str(home.socket), "-identity", str(home.identity), "-listen", "127.0.0.1:0", *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=home.environment,
        )
    try:
        with trio.fail_after(START_TIMEOUT):
            while b'msg="daemon running"' not in (home.root / "ours.log").read_bytes()[start:]:
                assert process.poll() is None, (home.root / "ours.log").read_text()
                await trio.sleep(0.02)  # a log file tells nobody that it has grown
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def alive(pid: int) -> bool:
    """Say whether a process runs, as opposed to waiting for its parent to notice its end."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
