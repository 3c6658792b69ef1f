"""Time in tests that is not virtual: of a machine that does nothing else.

A deadline in a test says what the program may take, not what a busy machine may take from it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

_Result = TypeVar("_Result")

OFFSET: Final = 100_000.0  # seconds; Trio has one too, so that nobody takes its time for another
THREADS_RATE: Final = 0.1  # of real time, while a worker thread has work: disks are slow now and then


class UndisturbedClock(trio.abc.Clock):
    """Counts what the run computes, and what it waits while nothing can be done; not what others do on its processor.

    So whoever is stopped for a second, or gets every third turn only, is not late. With peers in the same process there is
    little that a test could wait for else: bytes are with the receiver when a call to the kernel has sent them.
    """

    def __init__(self) -> None:
        self._now = OFFSET
        self._computed = 0.0  # processor time up to which it is part of `_now`
        self._wait: tuple[float, float, float] | None = None  # since when, for how long at most, at what rate

    def start_clock(self) -> None:
        self._computed = time.thread_time()

    def current_time(self) -> float:
        if self._wait is not None:
            since, longest, rate = self._wait
            self._wait = None
            self._now += rate * min(time.perf_counter() - since, longest)
            self._computed = time.thread_time()
        computed = time.thread_time()
        self._now += computed - self._computed
        self._computed = computed
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # Trio asks when no task can run, and waits for so long, or until something happens.
        threads_work = trio.to_thread.current_default_thread_limiter().borrowed_tokens > 0
        rate = THREADS_RATE if threads_work else 1.0
        longest = max(deadline - self.current_time(), 0.0) / rate
        self._wait = (time.perf_counter(), longest, rate)
        return longest


def run_undisturbed(
    function: Callable[[], Awaitable[_Result]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> _Result:
    """Run like `trio.run`, with this clock if no other one is named."""
    return trio.run(function, clock=clock or UndisturbedClock(), instruments=instruments)
