from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.net.background import open_background


async def test_tasks_end_with_the_block() -> None:
    ended = []

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async with open_background() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
    assert ended == [True]


async def test_an_exception_of_the_block_is_not_wrapped() -> None:
    async def fail() -> None:
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        await fail()
    assert caught.value.__context__ is None


async def test_a_group_of_the_block_stays_as_it_is() -> None:
    group = ExceptionGroup("mine", [KeyError(), ValueError()])

    async def fail() -> None:
        async with open_background():
            raise group

    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    assert caught.value is group


async def test_a_crash_of_a_task_ends_the_block_and_comes_in_a_group() -> None:
    async def crash() -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with open_background() as nursery:
            nursery.start_soon(crash)
            await trio.sleep_forever()

    with pytest.RaisesGroup(ZeroDivisionError):
        await run()


async def test_cancellation_passes_through(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
