"""One holder at a time, and nobody after the holder's end, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_trio.net.file_lock import LockHeld, hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from pilot_trio.net.file_lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_it_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with hold_lock(path):
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(LockHeld) as caught, hold_lock(path):
                pass
            assert caught.value.pid == os.getpid()


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld) as caught, hold_lock(path):
            pass
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold_lock(path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_what_the_holder_wrote_need_not_be_a_number(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_lock(path):
        path.write_text("who knows")
        with pytest.raises(LockHeld, match="another process"), hold_lock(path):
            pass


def test_where_nothing_can_be_locked_nothing_is(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_lock(tmp_path / "missing" / "lock"), hold_lock(tmp_path / "missing" / "lock"):
            pass
