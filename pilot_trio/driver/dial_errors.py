"""The classes behind the daemon's dial errors, in one table (`spec/ipc.md` §5.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from pilot_trio.errors import (
    DaemonError,
    DialCancelled,
    DialError,
    DialRefused,
    DialTimeout,
    NoRoute,
    PilotError,
    PortNotAllowed,
    PortsExhausted,
)

_TABLE: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], DialError]], ...]] = (
    (re.compile(r"connection refused"), lambda _: DialRefused()),
    (re.compile(r"dial timeout.*"), lambda match: DialTimeout(match[0])),
    (re.compile(r"context canceled"), lambda _: DialCancelled()),
    (re.compile(r"ephemeral ports exhausted"), lambda _: PortsExhausted()),
    (re.compile(r"port (\d+) not allowed by network (\d+) policy"), lambda m: PortNotAllowed(int(m[1]), int(m[2]))),
    (re.compile(r"(resolve node \d+: |no tunnel to node ).*", re.DOTALL), lambda match: NoRoute(match[0])),
)


def dial_error(error: DaemonError) -> PilotError:
    """Return the exception for a dial that the daemon refused: same text, the class that says why.

    A text that is not in the table (a newer daemon's) stays the `DaemonError` it is.
    """
    for pattern, make in _TABLE:
        match = pattern.fullmatch(str(error))
        if match is not None:
            return make(match)
    return error
