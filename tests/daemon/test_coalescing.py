from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.daemon.coalescing import WOKEN_PER_TURN, Coalescer
from pilot_trio.errors import RegistryError, RegistryUnavailable


@attrs.define
class Oracle:
    """Answers each question with its own number, a second later."""

    asked: list[str] = attrs.field(factory=list)
    refuse: Callable[[int], Exception | None] = lambda _number: None

    async def ask(self, key: str) -> int:
        self.asked.append(key)
        number = len(self.asked)
        await trio.sleep(1)
        if (refusal := self.refuse(number)) is not None:
            raise refusal
        return number


async def ask_at(coalescer: Coalescer[str, int], at: float, answers: list[tuple[float, int]], key: str = "x") -> None:
    await trio.sleep(at)
    answer = await coalescer.ask(key)
    answers.append((trio.current_time(), answer))


async def test_those_who_ask_meanwhile_share_the_next_answer(autojump_clock: MockClock) -> None:
    oracle = Oracle()
    coalescer: Coalescer[str, int] = Coalescer(oracle.ask)
    answers: list[tuple[float, int]] = []
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for at in (0, 0.25, 0.5, 0.75, 1.5):
            nursery.start_soon(ask_at, coalescer, at, answers)
    # The last one asked while the second question was under way: it may not have that one's older answer.
    assert [(when - start, answer) for when, answer in answers] == [(1, 1), (2, 2), (2, 2), (2, 2), (3, 3)]
    assert len(coalescer) == 0


async def test_different_questions_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    oracle = Oracle()
    coalescer: Coalescer[str, int] = Coalescer(oracle.ask)
    answers: list[tuple[float, int]] = []
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for key in "abc":
            nursery.start_soon(ask_at, coalescer, 0, answers, key)
    assert trio.current_time() - start == 1
    assert sorted(oracle.asked) == ["a", "b", "c"]


async def test_refusal_is_shared_and_is_everybodys_own(autojump_clock: MockClock) -> None:
    oracle = Oracle(refuse=lambda number: RegistryUnavailable("away", "lookup") if number == 2 else None)
    coalescer: Coalescer[str, int] = Coalescer(oracle.ask)
    refusals: list[RegistryError] = []

    async def refused() -> None:
        with pytest.raises(RegistryUnavailable, match="registry: away") as caught:
            await coalescer.ask("x")
        refusals.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.ask, "x")
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(refused)
    assert len(oracle.asked) == 2
    assert len(set(map(id, refusals))) == 3
    assert {refusal.request for refusal in refusals} == {"lookup"}


async def test_crash_is_the_askers_own_and_the_others_ask_anew(autojump_clock: MockClock) -> None:
    oracle = Oracle(refuse=lambda number: ValueError("bug") if number == 1 else None)
    coalescer: Coalescer[str, int] = Coalescer(oracle.ask)
    answers: list[tuple[float, int]] = []

    async def crash() -> None:
        with pytest.raises(ValueError, match="bug"):
            await coalescer.ask("x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask_at, coalescer, 0, answers)
    assert [answer for _, answer in answers] == [2]
    assert len(coalescer) == 0


@given(
    askers=st.lists(
        st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 12)), st.sampled_from("xy")), max_size=12
    )
)
def test_whoever_is_cancelled_the_others_get_answers_younger_than_their_question(
    askers: list[tuple[int, int | None, str]],
) -> None:
    """Askers come at quarters of a second and may give up at any; nobody is forgotten, nothing stays behind."""
    sent_at: dict[int, float] = {}
    most_at_once = {"x": 0, "y": 0}
    answered = 0

    async def answer(key: str) -> int:
        number = len(sent_at) + 1
        sent_at[number] = trio.current_time()
        most_at_once[key] += 1
        assert most_at_once[key] == 1
        try:
            await trio.sleep(1)
        finally:
            most_at_once[key] -= 1
        return number

    async def asker(coalescer: Coalescer[str, int], at: int, patience: int | None, key: str) -> None:
        nonlocal answered
        await trio.sleep(at / 4)
        asked_at = trio.current_time()
        with trio.move_on_after(float("inf") if patience is None else patience / 4):
            assert sent_at[await coalescer.ask(key)] >= asked_at
            answered += 1

    async def main() -> None:
        coalescer: Coalescer[str, int] = Coalescer(answer)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for asking in askers:
                    nursery.start_soon(asker, coalescer, *asking)
        assert len(coalescer) == 0
        assert not coalescer._gathering

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert answered >= sum(patience is None for _, patience, _ in askers)


async def test_an_answer_wakes_a_few_askers_per_loop_turn(autojump_clock: MockClock) -> None:
    oracle = Oracle()
    coalescer: Coalescer[str, int] = Coalescer(oracle.ask)
    turns = Turns()
    woken_in: list[int] = []

    async def asker() -> None:
        await coalescer.ask("x")
        woken_in.append(turns.count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coalescer.ask, "x")
        await wait_all_tasks_blocked()
        for _ in range(10 * WOKEN_PER_TURN):
            nursery.start_soon(asker)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(3)
        trio.lowlevel.remove_instrument(turns)
    assert len(woken_in) == 10 * WOKEN_PER_TURN
    assert max(Counter(woken_in).values()) <= WOKEN_PER_TURN + 1  # the one who asked for all is there already
    assert len(oracle.asked) == 2


@attrs.define(eq=False)
class Turns(trio.abc.Instrument):
    """Counts turns of the loop."""

    count: int = 0

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.count += 1
