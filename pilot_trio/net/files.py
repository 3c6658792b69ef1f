"""Files that must not be lost or torn: atomic save, bounded load, off the loop in a worker thread (`spec/services.md` §6).

None of these calls can be cancelled half-way: what has begun is finished, so a file is either the old or the new one and
two saves by one task never overlap.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

import trio

from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import IdentityError

FILE_SIZE_MAX: Final = 64 << 20  # bytes; state files are far smaller, a larger one is a mistake
PRIVATE_MODE: Final = 0o600  # owner only: state names peers and holds keys; protocol, `spec/services.md` §6.1
PRIVATE_DIRECTORY_MODE: Final = 0o700  # of directories that we make; existing ones are left as they are

_TEMPORARY_SUFFIX: Final = ".tmp"  # the name that the protocol's other programs use and clean up


async def save(path: Path, data: bytes) -> None:
    """Replace the file by `data`, mode 0600, making missing parent directories (0700).

    After a crash at any moment the file is the old or the new one, whole. A symbolic link is followed: its target is
    replaced. Not for concurrent use on one path.

    Raises:
      OSError: the file could not be written; the old one is still there.
    """
    await trio.to_thread.run_sync(save_sync, path, data)


async def load(path: Path) -> bytes | None:
    """Return the file's content, None if there is no such file.

    Raises:
      OSError: it cannot be read, is no regular file, or is larger than 64 MiB.
    """
    return await trio.to_thread.run_sync(load_sync, path)


async def remove(path: Path) -> None:
    """Delete the file if it exists; raise `OSError` if that fails."""
    await trio.to_thread.run_sync(lambda: path.unlink(missing_ok=True))


async def make_directory(path: Path) -> None:
    """Make a private directory and its parents; leave an existing one as it is. Raises `OSError`."""
    await trio.to_thread.run_sync(_make_directory, path)


async def load_identity(path: Path) -> Identity | None:
    """Read an identity file, None if there is none.

    Raises:
      IdentityError: it is readable by others, or its content cannot be used (`spec/services.md` §6.2).
    """
    return await trio.to_thread.run_sync(_load_identity, path)


def save_sync(path: Path, data: bytes) -> None:
    """Do what `save` does, in the caller's thread."""
    target = Path(os.path.realpath(path))
    _make_directory(target.parent)
    temporary = target.with_name(target.name + _TEMPORARY_SUFFIX)
    try:
        _write_private(temporary, data)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def load_sync(path: Path) -> bytes | None:
    """Do what `load` does, in the caller's thread."""
    try:
        content, _ = _read(path)
    except FileNotFoundError:
        return None
    return content


def _write_private(path: Path, data: bytes) -> None:
    # An old temporary file may have been left with other rights by a crash or on purpose; start from none.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    # Best effort: the content is safe already; some file systems refuse to sync a directory.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY_MODE)
    path.mkdir(exist_ok=True, mode=PRIVATE_DIRECTORY_MODE)


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    # Without O_NONBLOCK, opening a pipe without a writer would hold the thread for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(FILE_SIZE_MAX + 1)
    if len(content) > FILE_SIZE_MAX:
        raise OSError(errno.EFBIG, f"larger than {FILE_SIZE_MAX} bytes", str(path))
    return content, status


def _load_identity(path: Path) -> Identity | None:
    try:
        content, status = _read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise IdentityError(f"read identity {path}: {exc.strerror}") from exc
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(f"identity file has loose permissions (mode {mode:o}); chmod 600 {path} and retry")
    try:
        return Identity.parse(content)
    except IdentityError as exc:
        remedy = f"restore {path} from a copy, or move it away to start with a new key and address"
        raise IdentityError(f"{exc}; {remedy}") from exc
