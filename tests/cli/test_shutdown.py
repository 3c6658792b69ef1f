"""Leaving on a signal, also when something hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import trio

from pilot_trio.cli.shutdown import Watchdog, cancel_on_signal, stop_signals

PATIENCE = 40  # seconds that a busy machine may take for what takes two; what hangs does so for longer
ATTEMPTS = 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_cancels_and_arms_the_watchdog(number: signal.Signals) -> None:
    left = threading.Event()
    watchdog = Watchdog(lambda: None, timeout=0.01, leave=lambda _code: left.set())
    before = signal.getsignal(number)
    with stop_signals(watchdog) as signals, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(trio.sleep_forever)
            signal.raise_signal(number)
    assert left.wait(PATIENCE)
    assert signal.getsignal(number) is before


def test_the_watchdog_says_its_last_words_and_leaves_with_zero() -> None:
    said: list[str] = []
    left = threading.Event()

    def leave(code: int) -> None:
        said.append(f"exit {code}")
        left.set()

    watchdog = Watchdog(lambda: said.append("flushed"), timeout=0.0, leave=leave)
    watchdog.arm()
    watchdog.arm()
    assert left.wait(PATIENCE)
    assert said == ["flushed", "exit 0"]


HANGS = {
    "a worker thread": "await trio.to_thread.run_sync(time.sleep, 600)",
    "the event loop": "time.sleep(0.01)\n    while True: pass",
    "a shielded task": "with trio.CancelScope(shield=True): await trio.sleep(600)",
    "a file that blocks": "os.read(os.pipe()[0], 1)",
    "nothing": "await trio.sleep_forever()",
}


PROGRAM = """
import os, time, trio
from pilot_trio.cli.shutdown import Watchdog, cancel_on_signal, stop_signals

async def hang():
    os.write(1, b"up")
    {what}

async def main():
    with stop_signals(Watchdog(lambda: None)) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(hang)

trio.run(main)
"""


def end_whatever_hangs(number: signal.Signals) -> float:
    """Stop a process for each way to hang, all at once; return the seconds until the last one has ended, with zero."""
    with contextlib.ExitStack() as stack:  # they do little but wait
        running: dict[str, subprocess.Popen[bytes]] = {}
        for what, code in HANGS.items():
            command = [sys.executable, "-c", PROGRAM.format(what=code)]
            running[what] = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(running[what].kill)
        for process in running.values():
            assert process.stdout is not None
            assert os.read(process.stdout.fileno(), 2) == b"up"
        began = time.monotonic()
        for process in running.values():
            process.send_signal(number)
        ended = {what: process.wait(PATIENCE) for what, process in running.items()}
        assert ended == dict.fromkeys(HANGS, 0)
        return time.monotonic() - began


@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_in_two_seconds_with_zero_whatever_hangs(number: signal.Signals) -> None:
    # One of a few attempts has to: the others may have met with a machine that was busy with something else.
    assert any(end_whatever_hangs(number) < 2.0 for _ in range(ATTEMPTS))
