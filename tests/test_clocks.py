"""The clock of the tests: a deadline comes for who computes or waits too long, and for nobody else."""

from __future__ import annotations

import threading
import time

import pytest
import trio

from tests.clocks import THREADS_RATE, UndisturbedClock


async def test_it_is_the_clock_of_tests_that_name_none() -> None:
    assert isinstance(trio.lowlevel.current_clock(), UndisturbedClock)


async def test_time_that_others_take_does_not_count() -> None:
    with trio.fail_after(0.25):
        time.sleep(0.5)  # noqa: ASYNC251 - as if the process had been stopped
        await trio.lowlevel.checkpoint()


async def test_waiting_counts() -> None:
    began, really_began = trio.current_time(), time.perf_counter()
    await trio.sleep(0.05)
    assert trio.current_time() - began >= 0.05
    assert time.perf_counter() - really_began >= 0.05
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
        await trio.sleep_forever()


async def test_computing_counts() -> None:
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
        await compute_for_ever()


async def compute_for_ever() -> None:
    while True:
        await trio.lowlevel.checkpoint()


async def test_worker_threads_get_more_time() -> None:
    done = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: done.wait(60))
        really_began = time.perf_counter()
        await trio.sleep(0.04)
        assert time.perf_counter() - really_began >= 0.04 / THREADS_RATE / 2  # its own computing is part of it
        done.set()
