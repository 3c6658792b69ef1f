"""Runs that repeat: virtual time, and a scheduler whose choices come from a seed.

Trio runs tasks that are ready at the same time in random order, on purpose. For a test that found something this is one
source of chance too many: with `run_simulation` the seed that failed fails again, in this process or another, to the byte:
a `SimulatedNetwork` decides keys, nonces and the calendar too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Generator
from math import inf
from typing import Any, TypeVar

import trio

_Result = TypeVar("_Result")


class SimulationClock(trio.abc.Clock):
    """Virtual time that jumps to the next deadline the moment all tasks wait, as under `MockClock(autojump_threshold=0)`.

    The difference is what a jump costs: that clock finds out in one turn of Trio's loop that nothing happens, and jumps in
    the next. Here is no real I/O that it could miss, so one turn does, and an idle overlay is little else but jumps.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._runner: Any = None

    def start_clock(self) -> None:
        # Trio does not say publicly whether somebody is in `wait_all_tasks_blocked`; they go first.
        core: Any = trio._core._run  # pyright: ignore[reportPrivateUsage]
        self._runner = core.GLOBAL_RUN_CONTEXT.runner

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # Trio asks when no task can run.
        if self._runner.waiting_for_idle or deadline == inf:
            return inf
        self._now = max(self._now, deadline)
        return 0.0


@contextlib.contextmanager
def deterministic_scheduling(seed: int) -> Generator[None]:
    """Let Trio decide the order of tasks by `seed` inside the block, which must be around `trio.run`, not within it."""
    # The two names that the Hypothesis plugin of Trio sets; Trio has no public ones for it.
    scheduler: Any = trio._core._run  # pyright: ignore[reportPrivateUsage]
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        scheduler._r.setstate(state)


@contextlib.contextmanager
def _threads_in_place() -> Generator[None]:
    """Do the work of worker threads in the loop: how long a thread takes is chance, and the clock would jump meanwhile."""
    original = trio.to_thread.run_sync

    async def run_sync(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    trio.to_thread.run_sync = run_sync  # type: ignore[assignment] # for our own calls it is the same
    try:
        yield
    finally:
        trio.to_thread.run_sync = original


@contextlib.contextmanager
def _seeded_random(seed: int) -> Generator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def run_simulation(function: Callable[..., Awaitable[_Result]], *args: Any, seed: int = 0) -> _Result:
    """Run an async function in virtual time that jumps whenever all tasks wait, with tasks in an order decided by `seed`.

    For `SimulatedNetwork` and everything on it. Files are read and written while virtual time stands still; nothing may wait
    for a real socket, a process or another thread. What your own code draws from the module `random` comes from the seed
    too; two things in it can still make runs differ: the real clock (`time.time`), and the order of a set of strings,
    which changes from process to process.
    """
    with deterministic_scheduling(seed), _threads_in_place(), _seeded_random(seed):
        return trio.run(function, *args, clock=SimulationClock())
