"""A lock beside a file that only one process may use at a time. The kernel gives it back however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

_MODE: Final = 0o600
_PID_MAX: Final = 20  # bytes of the lock file that are read: a process id and a newline


class LockHeld(Exception):
    """Another process has the lock; `pid` is what it wrote there, 0 if that is no number."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"held by process {pid}" if pid else "held by another process")
        self.pid = pid


@contextlib.contextmanager
def hold_lock(path: Path) -> Generator[None]:
    """Hold the lock `path`, a file that is made if need be and stays, for the block. Never waits.

    Where files cannot be made or locked (a read-only directory, some network file systems) there is no lock, and no error.

    Raises:
      LockHeld: somebody else has it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    except OSError:
        yield
        return
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, _PID_MAX, 0).strip()
        raise LockHeld(int(text) if text.isdigit() else 0) from None
    except OSError:
        return
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
