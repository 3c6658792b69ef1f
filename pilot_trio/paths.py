"""Where a user's node keeps its things. Imports little, so that a command line may ask at every start."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_home() -> Path:
    """Return the directory in which a user's node keeps its state: `~/.pilot`."""
    return Path.home() / ".pilot"


def default_socket() -> Path:
    """Return the IPC socket that clients look for when told nothing (`spec/ipc.md` §1)."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform == "linux" and runtime_dir:
        return Path(runtime_dir) / "pilot.sock"
    return Path("/tmp/pilot.sock")  # noqa: S108  (the protocol's place; it is created safely)
