"""Run something in this terminal until a stop signal: what `up` and `rendezvous` have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import trio

from pilot_trio.address import quote
from pilot_trio.cli import logs
from pilot_trio.cli.daemon_run import leaves, settle
from pilot_trio.cli.output import CliError
from pilot_trio.cli.shutdown import Watchdog, cancel_on_signal, stop_signals
from pilot_trio.errors import PilotError
from pilot_trio.net.unix_listener import raise_open_files_limit

Start = Callable[[trio.Nursery], Awaitable[None]]


def run_until_signal(start: Start, *, log_level: str, log_format: str) -> None:
    """Call `start` with a nursery, and let what it started there run until SIGINT or SIGTERM.

    Raises:
      CliError: it could not start, or ended by an error that an operator can understand.
    """
    for what, word, known in (("level", log_level, logs.LEVELS), ("format", log_format, logs.FORMATS)):
        if word not in known:
            raise CliError("invalid_argument", f"--log-{what}: {quote(word)} is none of {', '.join(known)}")
    handler = logs.configure(log_level, log_format)
    raise_open_files_limit()
    try:
        trio.run(partial(_serve, start, Watchdog(handler.close)))
    except BaseExceptionGroup as group:
        causes = list(leaves(group))
        if not all(isinstance(cause, PilotError | OSError) for cause in causes):
            raise
        cause = causes[0]
        if isinstance(cause, OSError) and cause.strerror and not cause.filename:
            raise CliError("internal", f"cannot run: {cause.strerror}") from group
        raise CliError("internal", f"cannot run: {cause}") from group
    finally:
        handler.close()


async def _serve(start: Start, watchdog: Watchdog) -> None:
    signals: AsyncIterator[int]
    with stop_signals(watchdog) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            await start(nursery)
            settle()
