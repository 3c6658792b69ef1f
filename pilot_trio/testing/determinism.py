"""Runs that repeat: virtual time, and a scheduler whose choices come from a seed.

Trio runs tasks that are ready at the same time in random order, on purpose. For a test that found something this is one
source of chance too many: with `run_simulation` the seed that failed fails again, in this process or another, to the byte:
a `SimulatedNetwork` decides keys, nonces and the calendar too.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

_Result = TypeVar("_Result")


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
        return trio.run(function, *args, clock=MockClock(autojump_threshold=0))
