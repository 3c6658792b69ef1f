"""The file of the daemon's Unix socket: made so that nobody can misuse it, never taken from a living daemon.

Blocking, for a thread; `unix_listener` wraps it. The rules (`spec/ipc.md` §1):

- The socket is bound inside a private staging directory, gets mode 0600 there, and only then appears under its final
  name. So it is never reachable with loose rights, and the process's umask is left alone.
- What is at the final name is removed only if it is a socket on which nobody listens. A living daemon keeps its socket
  and we say who that is; anything that is not a socket is the user's.
- The final name is given with `link`, which fails where `rename` would replace. So when two daemons start at once, the
  later one finds the earlier one's socket and stops, however the two interleave.
- On stop the name is removed only if it still leads to our own socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Final

import attrs

from pilot_trio.errors import StartupError

LISTEN_BACKLOG: Final = 4096  # connections waiting for accept; above the client cap, so that a burst waits for nobody
SOCKET_PATH_MAX: Final = 107  # bytes; the kernel's `sun_path` is 108 with its terminator
_SOCKET_MODE: Final = 0o600
_STAGING_PREFIX: Final = ".pilot-sock-"
_STAGED_NAME: Final = "s"  # short, because the kernel's limit applies to the name that we bind
_PUBLISH_ATTEMPTS: Final = 3  # times that the name may be taken again between our check and our link
_CREDENTIALS = struct.Struct("3i")  # SO_PEERCRED: pid, uid, gid


@attrs.frozen
class PeerCredentials:
    """Who is at the other end of a Unix socket, as the kernel knows it."""

    pid: int
    uid: int


@attrs.frozen
class SocketFile:
    """A listening socket and the name under which clients find it."""

    path: Path
    listener: socket.socket
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the name unless it leads elsewhere by now; never raises."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                self.path.unlink()


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Ask the kernel who connected (or, on a client's socket, who listens). Raises `OSError`."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return PeerCredentials(pid, uid)


def create_socket_file(path: Path) -> SocketFile:
    """Listen on `path`, mode 0600.

    Raises:
      StartupError: a daemon is alive there, something else has the name, or the directory does not allow it. The text
        names the path and the remedy.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow a symlink that the user chose
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise StartupError(
            f"ipc start: socket path {path} is {len(os.fsencode(path))} bytes long, "
            f"the system allows {SOCKET_PATH_MAX}: choose a shorter one"
        )
    _make_way(path)
    with _staging_directory(path.parent) as staging:
        staged = staging / _STAGED_NAME
        listener = _listen(staged)
        try:
            staged.chmod(_SOCKET_MODE)
            _publish(staged, path)
            found = path.lstat()
        except BaseException:
            listener.close()
            raise
    return SocketFile(path, listener, found.st_dev, found.st_ino)


def _make_way(path: Path) -> None:
    """Remove a socket that its daemon left behind; refuse to touch anything else."""
    try:
        found = path.lstat()
    except OSError:
        return  # nothing there, or no way there: creating the staging directory says which
    if stat.S_ISDIR(found.st_mode):
        raise StartupError(f"ipc start: socket path {path} is a directory: name a file in it")
    if not stat.S_ISSOCK(found.st_mode):
        raise StartupError(f"ipc start: {path} exists and is not a socket: remove it or choose another socket path")
    _refuse_if_alive(path)
    try:
        _remove_stale(path, found)
    except FileNotFoundError:
        pass  # another daemon that starts was faster
    except OSError as exc:
        raise StartupError(f"ipc start: remove stale socket {path}: {_reason(exc)}") from exc


def _remove_stale(path: Path, found: os.stat_result) -> None:
    """Remove the socket that was found dead, and no other that may have taken its place since.

    Looking first would leave a moment in between. So it is moved aside, looked at, and put back if it is another, which
    `_publish` will notice. Its number alone does not tell: file systems give the number of a removed file to the next one.
    """
    aside = path.with_name(f"{_STAGING_PREFIX}{os.getpid()}.stale")
    path.rename(aside)
    try:
        now = aside.lstat()
        if (now.st_ino, now.st_mtime_ns) != (found.st_ino, found.st_mtime_ns):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path, follow_symlinks=False)
    finally:
        aside.unlink()


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer too: somebody listens
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            raise StartupError(f"ipc start: socket {path} belongs to a running daemon (busy): stop it first") from None
        except OSError as exc:
            raise StartupError(f"ipc start: cannot tell whether socket {path} is in use: {_reason(exc)}") from exc
        pid = peer_credentials(probe).pid
    raise StartupError(
        f"ipc start: socket {path} belongs to a running daemon (pid {pid}): stop it first, or choose another socket path"
    )


@contextlib.contextmanager
def _staging_directory(parent: Path) -> Generator[Path]:
    # The wording up to the last colon is the reference daemon's.
    failed = f"ipc start: create socket staging dir under {parent}"
    try:
        parent.stat()
    except OSError as exc:
        remedy = "create it, or choose another socket path"
        raise StartupError(f"{failed}: stat {parent}: {_reason(exc)}: {remedy}") from exc
    try:
        staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))  # mode 0700
    except OSError as exc:
        remedy = "choose a socket path in a directory where this user may create files"
        raise StartupError(f"{failed}: {_reason(exc)}: {remedy}") from exc
    try:
        yield staging
    finally:
        with contextlib.suppress(OSError):
            for left_over in staging.iterdir():
                left_over.unlink()
            staging.rmdir()


def _listen(staged: Path) -> socket.socket:
    """Bind and listen, by way of the open directory: the staged path may be longer than the kernel takes."""
    directory = os.open(staged.parent, os.O_PATH | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{staged.name}")
        listener.listen(LISTEN_BACKLOG)
    except OSError as exc:
        listener.close()
        raise StartupError(f"ipc start: listen on {staged}: {_reason(exc)}") from exc
    finally:
        os.close(directory)
    return listener


def _publish(staged: Path, path: Path) -> None:
    for _ in range(_PUBLISH_ATTEMPTS):
        try:
            os.link(staged, path, follow_symlinks=False)
        except FileExistsError:
            _make_way(path)  # refuses if another daemon was faster
        except OSError as exc:
            raise StartupError(f"ipc start: give socket {path} its name: {_reason(exc)}") from exc
        else:
            return
    raise StartupError(f"ipc start: socket {path} keeps coming back: another daemon is starting there")


def _reason(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()  # the reference's system texts are in lower case
