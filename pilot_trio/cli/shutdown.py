"""Leaving on SIGTERM and SIGINT, and only then: within two seconds, whatever hangs (`spec/cli.md` §9.5)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import trio

SHUTDOWN_MAX: Final = 1.6  # seconds from the signal to a forced exit; orderly shutdown needs far less
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# A closing terminal must not end a service, nor a log rotation that means to tell it something: it has nothing to reload.
IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)

log = logging.getLogger("pilot_trio.shutdown")


class Watchdog:
    """Ends the process if an orderly shutdown has begun and is not over in time.

    It runs in a thread, because what hangs may be the event loop itself, or a worker thread that Trio waits for. The exit
    code is 0 all the same: the process was told to end, and has. `last_words` must not wait for long.
    """

    def __init__(
        self,
        last_words: Callable[[], None],
        *,
        timeout: float = SHUTDOWN_MAX,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._last_words = last_words
        self._timeout = timeout
        self._leave = leave
        self._timer: threading.Timer | None = None

    def arm(self) -> None:
        """Start the countdown, once."""
        if self._timer is None:
            self._timer = threading.Timer(self._timeout, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - documented in spite of its name
        frame = frames.get(threading.main_thread().ident or 0)
        where = "".join(traceback.format_stack(frame, limit=4)) if frame else "unknown"
        log.warning(
            "shutdown incomplete, leaving", extra={"kv": {"after": f"{self._timeout:g}s", "main_thread": where}}
        )
        self._last_words()
        self._leave(0)


def ignore_other_signals() -> None:
    """Ignore what would end the process without a farewell, as the reference does."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals(watchdog: Watchdog) -> Generator[AsyncIterator[int]]:
    """Receive the stop signals inside Trio; the first one arms the watchdog, even if the loop is stuck."""
    with trio.open_signal_receiver(*SIGNALS) as received:
        # Trio's own handler only tells the loop. Ours runs between two bytecodes of whatever the main thread does.
        handlers = {number: signal.getsignal(number) for number in SIGNALS}

        def on_signal(number: int, frame: FrameType | None) -> None:
            watchdog.arm()
            inner = handlers[signal.Signals(number)]
            if callable(inner):
                inner(number, frame)

        for number in SIGNALS:
            signal.signal(number, on_signal)
        yield received


async def cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Log the first stop signal and cancel `scope`."""
    async for number in signals:
        log.info("shutting down", extra={"kv": {"signal": signal.Signals(number).name}})
        scope.cancel()
        return
