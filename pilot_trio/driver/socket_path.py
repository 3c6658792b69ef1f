"""Where the daemon's socket is, and connecting to it (`spec/ipc.md` §1)."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Final

import trio

from pilot_trio.errors import DaemonUnavailable
from pilot_trio.net.socket_transport import SocketTransport

CONNECT_RETRY_INTERVAL: Final = 0.01  # seconds between attempts while the backlog is full; nothing tells when it is not
CONNECT_TIMEOUT: Final = 5.0  # seconds for the daemon to make room in its backlog; a living one needs milliseconds


def find_socket() -> Path:
    """Return the socket that `pilotctl` would use.

    That is the environment variable `PILOT_SOCKET`, else the key `socket` of `~/.pilot/config.json` (below `PILOT_HOME`
    instead of the home directory, if that is set), else `$XDG_RUNTIME_DIR/pilot.sock` on Linux, else
    `/tmp/pilot.sock`. Reads a small file; a missing or unusable one counts as empty.
    """
    if named := os.environ.get("PILOT_SOCKET"):
        return Path(named)
    home = Path(os.environ.get("PILOT_HOME") or Path.home())
    try:
        config = json.loads((home / ".pilot" / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    configured = config.get("socket") if isinstance(config, dict) else None
    if isinstance(configured, str) and configured:
        return Path(configured)
    runtime = os.environ.get("XDG_RUNTIME_DIR") if sys.platform == "linux" else None
    return Path(runtime or "/tmp") / "pilot.sock"  # noqa: S108 - where the protocol puts it


async def connect(path: Path) -> SocketTransport:
    """Connect to the daemon's socket.

    Raises:
      DaemonUnavailable: nobody answers there; the text names the path, the reason and what to do.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await _connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return SocketTransport(sock)


async def _connect(sock: socket.socket, path: Path) -> None:
    deadline = trio.current_time() + CONNECT_TIMEOUT
    while True:
        await trio.lowlevel.checkpoint()
        try:
            sock.connect(os.fspath(path))
        except BlockingIOError as exc:
            # A Unix socket connects at once or, with the backlog full, not at all; the kernel offers nothing to wait for.
            if trio.current_time() >= deadline:
                raise DaemonUnavailable(f"connect to daemon: {path}: its backlog is full") from exc
            await trio.sleep(CONNECT_RETRY_INTERVAL)
        except OSError as exc:
            remedy = "start one with `pilot-trio up`, or set PILOT_SOCKET if it listens elsewhere"
            raise DaemonUnavailable(f"connect to daemon: {path}: {exc.strerror or exc}; {remedy}") from exc
        else:
            return
