"""Runs that repeat: virtual time, and a scheduler whose choices come from a seed.

Trio runs tasks that are ready at the same time in random order, on purpose. For a test that found something this is one
source of chance too many: with `run_simulation` the seed that failed fails again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

_Result = TypeVar("_Result")


@contextlib.contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """Let Trio decide the order of tasks by `seed` inside the block, which must be around `trio.run`, not within it."""
    # The two names that the Hypothesis plugin of Trio sets; Trio has no public ones for it.
    scheduler: Any = trio._core._run
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        scheduler._r.setstate(state)


def run_simulation(function: Callable[..., Awaitable[_Result]], *args: Any, seed: int = 0) -> _Result:
    """Run an async function in virtual time that jumps whenever all tasks wait, with tasks in an order decided by `seed`.

    For `SimulatedNetwork` and everything on it; nothing in it may wait for a thread, a real socket or a process.
    """
    with deterministic_scheduling(seed):
        return trio.run(function, *args, clock=MockClock(autojump_threshold=0))
