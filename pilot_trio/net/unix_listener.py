"""The daemon's Unix socket: accepts clients of this user, many at a time, whatever the process runs short of."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Final, final

import trio

from pilot_trio.net.socket_file import SocketFile, create_socket_file, peer_credentials
from pilot_trio.net.socket_transport import SocketTransport
from pilot_trio.net.transport import Transport, TransportListener

ACCEPT_BATCH_MAX: Final = 16  # clients taken per loop turn; more would delay those that are connected already
ACCEPT_BACKOFF: Final = 0.1  # seconds of rest when a client can be neither served nor turned away

# Failures of one connection attempt, not of the listener: the client left before we came, or a transient refusal.
_ONE_CLIENT_LOST: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

_log = logging.getLogger("pilot_trio.ipc")


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one and return it: the usual 1,024 end before the client cap."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems refuse "unlimited"; then the old limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft


async def open_unix_listener(path: Path, *, uid: int | None = None) -> UnixListener:
    """Create the socket file (`spec/ipc.md` §1) and listen on it.

    Args:
      path: where clients look for it. A stale socket there is replaced; a living daemon's is not.
      uid: the user whose programs may connect; the one that runs this process unless given.

    Raises:
      StartupError: the text names the path and what to do.
    """
    file = await trio.to_thread.run_sync(create_socket_file, path)
    return UnixListener(file, os.getuid() if uid is None else uid)


@final
class UnixListener(TransportListener):
    """Accepts the clients of one user. Made by `open_unix_listener`."""

    def __init__(self, file: SocketFile, uid: int) -> None:
        self._file = file
        self._sock = file.listener
        self._uid = uid
        self._spare: int | None = _open_spare()
        self._short_of_descriptors = False

    @property
    def path(self) -> Path:
        """Where clients connect."""
        return self._file.path

    async def accept_some(self) -> list[Transport]:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            accepted, exhausted = self._accept_batch()
            if exhausted is not None and not self._turn_one_away():
                # Nothing helps but waiting until descriptors come free; the listener stays readable, so do not spin.
                await trio.sleep(ACCEPT_BACKOFF)
            self._note_shortage(exhausted)
            if accepted:
                return accepted

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        # While it is alive nobody takes it for stale, and the name for theirs.
        self._file.remove()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _accept_batch(self) -> tuple[list[Transport], OSError | None]:
        accepted: list[Transport] = []
        for _ in range(ACCEPT_BATCH_MAX):
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno in _ONE_CLIENT_LOST:
                    continue
                if exc.errno in _OUT_OF_DESCRIPTORS or exc.errno in (errno.ENOBUFS, errno.ENOMEM):
                    return accepted, exc
                raise
            if self._may_connect(sock) and not _has_left(sock):
                accepted.append(SocketTransport(sock))
            else:
                sock.close()
        return accepted, None

    def _may_connect(self, sock: socket.socket) -> bool:
        try:
            peer = peer_credentials(sock)
        except OSError:
            return False
        if peer.uid != self._uid:
            _log.warning("IPC rejected cross-UID connection peer_uid=%d uid=%d pid=%d", peer.uid, self._uid, peer.pid)
            return False
        return True

    def _turn_one_away(self) -> bool:
        """Give one waiting client its EOF although no descriptor is free, by lending it the spare one.

        Returns False if that failed too.
        """
        if self._spare is None:
            self._spare = _open_spare()
            return False
        os.close(self._spare)
        self._spare = None
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            pass  # it left by itself
        except OSError:
            return False
        finally:
            self._spare = _open_spare()
        return True

    def _note_shortage(self, exhausted: OSError | None) -> None:
        # One warning per shortage, not one per client.
        if exhausted is not None and not self._short_of_descriptors:
            _log.warning("IPC turns clients away: %s", exhausted.strerror)
        self._short_of_descriptors = exhausted is not None


def _has_left(sock: socket.socket) -> bool:
    """Say whether a client has ended its input without having written anything.

    Who does that over and over would keep others from being accepted: to serve such a client takes ten times as long.
    """
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False  # nothing has come yet; or it is broken, which its reader will find


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
