"""Where a user's node keeps its things.

A command line asks at every start, and most commands need no `Path`: loading `pathlib` is an eighth of their time.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def default_home() -> Path:
    """Return the directory in which a user's node keeps its state: `~/.pilot`."""
    from pathlib import Path

    return Path.home() / ".pilot"


def default_socket() -> Path:
    """Return the IPC socket that clients look for when told nothing (`spec/ipc.md` §1)."""
    from pathlib import Path

    return Path(default_socket_name())


def default_socket_name() -> str:
    """Return the same as a string."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform == "linux" and runtime_dir:
        return f"{runtime_dir.rstrip('/')}/pilot.sock"
    return "/tmp/pilot.sock"  # noqa: S108  (the protocol's place; it is created safely)
