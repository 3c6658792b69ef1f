"""A note that a running node leaves for the command line: which registry it uses, and where.

The local protocol does not tell a client the node's registry, yet `lookup` and the check before a dial ask the registry
itself (`spec/cli.md` §7). With this note a user of a private registry, an embedded one above all, configures nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pilot_trio.cli import config_file

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY = "pilot-trio"  # below the home directory; the reference does not look there


def write(home: Path, socket: Path, facts: Mapping[str, str]) -> Path:
    """Leave the note of the node on `socket`; raise `OSError` if that is not possible."""
    path = _path(home, socket)
    config_file.save(path, {**facts, "socket": str(socket), "pid": os.getpid()})
    return path


def read(home: Path, socket: Path) -> dict[str, str]:
    """Return what the node on `socket` left, if that process still runs; else an empty dict."""
    try:
        facts = json.loads(_path(home, socket).read_bytes())
        pid = int(facts["pid"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it runs as another user
    except (OSError, OverflowError):
        return {}
    return {key: value for key, value in facts.items() if isinstance(value, str)}


def other_sockets(home: Path, socket: Path) -> list[Path]:
    """Return the sockets of the nodes that run with this home, `socket` aside, in no order."""
    from pathlib import Path

    found = []
    for path in (home / _DIRECTORY / "run").glob("*.json"):
        try:
            other = Path(str(json.loads(path.read_bytes())["socket"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if other != socket and read(home, other):
            found.append(other)
    return found


def remove(home: Path, socket: Path) -> None:
    """Take back the own note; another process's stays."""
    path = _path(home, socket)
    try:
        if json.loads(path.read_bytes()).get("pid") == os.getpid():
            path.unlink()
    except (OSError, ValueError, AttributeError):
        return  # a note of a process that is gone is no note


def _path(home: Path, socket: Path) -> Path:
    import hashlib  # it loads a library that most commands need not wait for

    name = hashlib.sha256(os.fsencode(os.path.abspath(socket))).hexdigest()[:16]  # noqa: PTH100  (no symlink resolution)
    return home / _DIRECTORY / "run" / f"{name}.json"
