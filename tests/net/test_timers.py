"""Deadlines under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from math import inf

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given
from trio.testing import MockClock

from pilot_trio.net.timers import DUE_MAX, Timers


@asynccontextmanager
async def running() -> AsyncIterator[Timers]:
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.testing.wait_all_tasks_blocked()
        yield timers
        nursery.cancel_scope.cancel()


async def test_timer_is_run_at_its_deadline_and_only_then(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[float] = []
        timer = timers.timer(fired.append)
        start = trio.current_time()
        timer.arm(start + 5)
        assert timer.deadline == start + 5
        await trio.sleep(4.999)
        assert fired == []
        await trio.sleep(0.002)
        assert fired == [start + 5]
        assert timer.deadline == inf
        await trio.sleep(100)
        assert len(fired) == 1


async def test_timer_armed_before_the_task_starts_or_in_the_past_is_run(autojump_clock: MockClock) -> None:
    timers = Timers()
    fired: list[float] = []
    timers.timer(fired.append).arm(trio.current_time() - 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.testing.wait_all_tasks_blocked()
        timers.timer(fired.append).arm(trio.current_time() - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(fired) == 2
        nursery.cancel_scope.cancel()


async def test_moving_later_touches_nothing(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[float] = []
        timer = timers.timer(fired.append)
        start = trio.current_time()
        for step in range(1000):
            timer.arm(start + 1 + step)
        assert len(timers) == 1
        await trio.sleep(998)
        assert fired == []
        assert len(timers) == 1
        await trio.sleep(3)
        assert fired == [start + 1000]


async def test_moving_earlier_wakes_earlier(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[float] = []
        timer = timers.timer(fired.append)
        start = trio.current_time()
        timer.arm(start + 10)
        timer.arm(start + 2)
        await trio.sleep(3)
        assert fired == [start + 2]
        await trio.sleep(20)
        assert fired == [start + 2]  # the first wake-up came, and found nothing due
        assert len(timers) == 0


async def test_short_deadlines_over_a_long_one_do_not_pile_up(autojump_clock: MockClock) -> None:
    async with running() as timers:
        timer = timers.timer(lambda now: None)
        end = trio.current_time() + 120
        for _ in range(500):  # a retransmission timeout that comes and goes over an idle timeout
            timer.arm(end)
            timer.arm(trio.current_time() + 0.2)
            await trio.sleep(0.21)
        assert len(timers) <= 1


async def test_wake_ups_for_nothing_are_cleared_away_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []
    run_due = Timers._run_due

    def counted(self: Timers, now: float) -> None:
        turns.append(now)
        run_due(self, now)

    monkeypatch.setattr(Timers, "_run_due", counted)
    async with running() as timers:
        fired: list[float] = []
        start = trio.current_time()
        for number in range(100):  # what many short streams leave: a timeout each, and a long one after it
            timer = timers.timer(fired.append)
            timer.arm(start + 1 + number / 1000)
            timer.arm(start + 50) if number % 2 else timer.cancel()
        await trio.sleep(40)
        assert not fired
        assert len(turns) <= 6
        await trio.sleep(20)
        assert fired == [start + 50] * 50
        assert len(timers) == 0


async def test_cancelled_timer_is_never_run_and_takes_no_room(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[float] = []
        many = [timers.timer(fired.append) for _ in range(1000)]
        for number, timer in enumerate(many):
            timer.arm(trio.current_time() + 60 + number)
        for timer in many[1:]:
            timer.cancel()
            timer.cancel()
            timer.arm(trio.current_time() + 1)
        assert len(timers) < 130
        await trio.sleep(3000)
        assert len(fired) == 1
        assert len(timers) == 0


async def test_timer_may_arm_itself_and_others(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[tuple[str, float]] = []

        def tick(now: float) -> None:
            fired.append(("tick", now))
            if len(fired) < 6:
                ticking.arm(now + 1)
                other.arm(now + 0.5)

        ticking = timers.timer(tick)
        other = timers.timer(lambda now: fired.append(("other", now)))
        start = trio.current_time()
        ticking.arm(start + 1)
        await trio.sleep(10)
        assert [(name, at - start) for name, at in fired] == [
            ("tick", 1), ("other", 1.5), ("tick", 2), ("other", 2.5), ("tick", 3), ("other", 3.5), ("tick", 4),
        ]  # fmt: skip


async def test_equal_deadlines_come_in_the_order_of_arming(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[int] = []
        at = trio.current_time() + 1
        for number in range(10):
            timers.timer(lambda now, number=number: fired.append(number)).arm(at)  # type: ignore[misc]
        await trio.sleep(2)
        assert fired == list(range(10))


async def test_others_get_a_turn_between_many_due_timers(autojump_clock: MockClock) -> None:
    async with running() as timers:
        fired: list[float] = []
        seen: list[int] = []

        async def watch() -> None:
            while len(fired) < 3 * DUE_MAX:
                seen.append(len(fired))
                await trio.lowlevel.checkpoint()

        for _ in range(3 * DUE_MAX):
            timers.timer(fired.append).arm(trio.current_time())
        await watch()
        assert any(0 < number < 3 * DUE_MAX for number in seen)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["arm", "cancel", "wait"]), st.integers(0, 20)), max_size=40)
)
def test_every_timer_fires_exactly_at_its_last_deadline(script: list[tuple[int, str, int]]) -> None:
    """Against a model: the deadline of each timer, without any heap."""

    async def main() -> None:
        async with running() as timers:
            fired: list[tuple[int, float]] = []
            expected: list[tuple[int, float]] = []
            made = [timers.timer(lambda now, n=n: fired.append((n, now))) for n in range(4)]  # type: ignore[misc]
            deadlines = [inf] * 4
            cancelled = [False] * 4
            for which, what, amount in script:
                if what == "arm" and not cancelled[which]:
                    deadlines[which] = trio.current_time() + amount + 0.5
                    made[which].arm(deadlines[which])
                elif what == "cancel":
                    made[which].cancel()
                    deadlines[which], cancelled[which] = inf, True
                elif what == "wait":
                    end = trio.current_time() + amount
                    await trio.sleep_until(end)
                    await trio.testing.wait_all_tasks_blocked()
                    due = [(at, n) for n, at in enumerate(deadlines) if at <= end]
                    for at, n in sorted(due):
                        expected.append((n, at))
                        deadlines[n] = inf
                    assert sorted(fired) == sorted(expected)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_callback_that_raises_ends_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    timers, fired = Timers(), list[str]()

    def broken(now: float) -> None:
        raise ValueError("a defect")

    timers.timer(broken).arm(trio.current_time() + 1)
    timers.timer(lambda now: fired.append("other")).arm(trio.current_time() + 2)
    with trio.move_on_after(3):
        await timers.run()
    assert fired == ["other"]
    assert timers.defects == 1
    assert "timer failed" in caplog.text


async def test_timers_due_together_run_inside_one_block_whose_defect_ends_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []

    class Around(AbstractContextManager[None, None]):
        def __enter__(self) -> None:
            log.append("in")

        def __exit__(self, *exc: object) -> None:
            log.append("out")
            if len(log) < 5:
                raise ValueError("a defect")

    async with running() as timers:
        timers.around = Around()
        for name, delay in (("one", 1), ("two", 1), ("three", 2)):
            timers.timer(lambda _, name=name: log.append(name)).arm(trio.current_time() + delay)  # type: ignore[misc]
        await trio.sleep(3)
        assert log == ["in", "one", "two", "out", "in", "three", "out"]
        assert timers.defects == 1
        assert "timer failed" in caplog.text
