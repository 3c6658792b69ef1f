"""Keep the daemon's own log from growing without end: copy, compress, truncate (`spec/services.md` §8.6).

Only a log that was set up for the node is touched: a regular file below the home directory, or any file if the size was
chosen by the operator. The file must be open for appending, else truncating it would leave a hole of its old size.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import stat
from pathlib import Path
from typing import Final

MEGABYTE: Final = 1 << 20  # bytes; what the sizes of log files are counted in
SUFFIX: Final = ".pilot"  # <log>.pilot.1.gz is the newest; the reference uses the same names


class Rotation:
    """Rotates the file behind a descriptor. Called from the thread that writes the log, so that no line is lost."""

    def __init__(self, descriptor: int, path: Path, size_max: int, backups: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._size_max = size_max
        self._backups = backups

    def __call__(self) -> None:
        """Rotate if the file is too large. A failure leaves the log as it is; the next call tries again."""
        try:
            if os.fstat(self._descriptor).st_size > self._size_max:
                self._rotate()
        except OSError:
            return

    def _rotate(self) -> None:
        if self._backups > 0:
            for number in range(self._backups, 1, -1):
                older = self._backup(number - 1)
                if older.exists():
                    older.replace(self._backup(number))
            descriptor = os.open(self._backup(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with (
                self._path.open("rb") as source,
                os.fdopen(descriptor, "wb") as raw,
                gzip.GzipFile("", "wb", fileobj=raw) as packed,
            ):
                shutil.copyfileobj(source, packed)
        os.ftruncate(self._descriptor, 0)

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}{SUFFIX}.{number}.gz")


def rotation_for(descriptor: int, home: Path, *, megabytes: int, backups: int, chosen: bool) -> Rotation | None:
    """Return the rotation of the file behind `descriptor`, or None if it is not ours to rotate.

    Args:
      descriptor: where the log goes.
      home: the node's home directory.
      megabytes: size from which to rotate; 0 never.
      backups: compressed generations to keep.
      chosen: the operator asked for rotation, so the file may be anywhere.
    """
    if megabytes <= 0:
        return None
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not path.exists():
            return None
        appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        ours = chosen or path.is_relative_to(home.resolve())
    except OSError:
        return None
    return Rotation(descriptor, path, megabytes * MEGABYTE, backups) if appending and ours else None
