from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.net.service_nursery import open_service_nursery


class Recorder:
    def __init__(self) -> None:
        self.events: list[str] = []

    async def service(self, name: str, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started(name)
            await trio.sleep_forever()
        finally:
            self.events.append(f"{name} ends")


async def test_services_outlive_a_body_that_is_cancelled(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    with trio.move_on_after(1) as scope:
        async with open_service_nursery() as services:
            assert await services.start(recorder.service, "s") == "s"
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(5, shield=True):
                    await trio.sleep(3)
                recorder.events.append("body ends")
    assert scope.cancelled_caught
    assert recorder.events == ["body ends", "s ends"]


async def test_services_end_with_a_body_that_returns_or_fails(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_service_nursery() as services:
        await services.start(recorder.service, "a")

    async def failing_body() -> None:
        async with open_service_nursery() as services:
            await services.start(recorder.service, "b")
            raise ValueError("body")

    with pytest.raises(ExceptionGroup) as caught:
        await failing_body()
    assert caught.group_contains(ValueError, match="body")
    assert recorder.events == ["a ends", "b ends"]


async def test_service_that_crashes_ends_the_body(autojump_clock: MockClock) -> None:
    recorder = Recorder()

    async def crash(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        raise ValueError("service")

    async def body() -> None:
        async with open_service_nursery() as services:
            await services.start(recorder.service, "other")
            await services.start(crash)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    assert caught.group_contains(ValueError, match="service")
    assert recorder.events == ["other ends"]


async def test_service_that_does_not_come_up_can_be_cancelled_or_fails_in_place(autojump_clock: MockClock) -> None:
    async def hang(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("in use")

    with trio.move_on_after(1) as scope:
        async with open_service_nursery() as services:
            await services.start(hang)
    assert scope.cancelled_caught
    async with open_service_nursery() as services:
        with pytest.raises(OSError, match="in use"):
            await services.start(fail)
