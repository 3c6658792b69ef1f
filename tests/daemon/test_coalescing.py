from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.daemon.coalescing import PATIENCE, QUESTION_GAP, TOLD_PER_TURN, Coalescer
from pilot_trio.errors import RegistryError


@attrs.define(eq=False)
class Oracle:
    """Answers each question with its own number, a second later; notes what everybody is told, and when."""

    coalescer: Coalescer
    refusals: dict[int, Exception] = attrs.field(factory=dict)
    asked: list[float] = attrs.field(factory=list)  # when each question left
    deadlines: list[float] = attrs.field(factory=list)
    told: list[tuple[float, bytes | Exception]] = attrs.field(factory=list)

    async def answer(self, by: float) -> bytes:
        self.asked.append(trio.current_time())
        self.deadlines.append(by)
        number = len(self.asked)
        await trio.sleep(1)
        if number in self.refusals:
            raise self.refusals[number]
        return b"%d" % number

    def ask(self, key: str = "x") -> None:
        self.coalescer.ask(key, self.answer, self.tell)

    def tell(self, answer: bytes | Exception) -> None:
        self.told.append((trio.current_time(), answer))


@pytest.fixture
async def oracle(nursery: trio.Nursery) -> AsyncIterator[Oracle]:
    coalescer = Coalescer()
    await nursery.start(coalescer.run)
    yield Oracle(coalescer)
    assert len(coalescer) == 0


async def test_those_who_ask_meanwhile_share_the_next_answer(oracle: Oracle, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    for at in (0, 0.25, 0.5, 0.75, 1.5):
        await trio.sleep_until(start + at)
        oracle.ask()
    await trio.sleep(5)
    # The last one asked while the second question was under way: it may not have that one's older answer.
    told = [(when - start, answer) for when, answer in oracle.told]
    assert told == [(1, b"1"), (2, b"2"), (2, b"2"), (2, b"2"), (3, b"3")]


async def test_different_questions_do_not_wait_for_each_other(oracle: Oracle, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    for key in "abc":
        oracle.ask(key)
    await trio.sleep(5)
    assert [when - start for when, _ in oracle.told] == [1, 1, 1]


async def test_everybody_is_told_of_a_refusal_and_of_a_crash_and_those_after_them_ask_anew(
    oracle: Oracle, autojump_clock: MockClock
) -> None:
    oracle.refusals = {1: RegistryError("no"), 2: ZeroDivisionError()}
    oracle.ask()
    await wait_all_tasks_blocked()
    oracle.ask()
    oracle.ask()
    await trio.sleep(1.5)
    oracle.ask()
    await trio.sleep(5)
    assert [answer for _, answer in oracle.told] == [oracle.refusals[1], *[oracle.refusals[2]] * 2, b"3"]


async def test_a_question_ends_when_the_first_of_its_askers_has_waited_long_enough(
    oracle: Oracle, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    oracle.ask()
    await trio.sleep(0.25)
    oracle.ask()
    await trio.sleep(0.5)
    oracle.ask()
    await trio.sleep(5)
    assert [by - start for by in oracle.deadlines] == [PATIENCE, PATIENCE + 0.25]


async def test_the_same_is_not_asked_again_at_once_however_quick_the_answer(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    coalescer = Coalescer()
    await nursery.start(coalescer.run)
    asked: list[tuple[str, float]] = []
    start = trio.current_time()

    def ask_again_and_again(key: str, times: int) -> None:
        async def question(_by: float) -> bytes:
            asked.append((key, trio.current_time() - start))
            return b""

        if times:
            coalescer.ask(key, question, lambda _: ask_again_and_again(key, times - 1))

    ask_again_and_again("x", 3)
    ask_again_and_again("y", 1)
    await trio.sleep(1)
    assert [at for key, at in asked if key == "x"] == pytest.approx([0, QUESTION_GAP, 2 * QUESTION_GAP])
    assert [at for key, at in asked if key == "y"] == [0]
    assert len(coalescer) == 0


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("xy")), max_size=12))
def test_everybody_gets_one_answer_that_is_younger_than_the_question(askers: list[tuple[int, str]]) -> None:
    sent_at: dict[bytes, float] = {}
    under_way: Counter[str] = Counter()
    told: list[int] = []

    async def main() -> None:
        coalescer = Coalescer()

        def ask(number: int, key: str) -> None:
            asked_at = trio.current_time()

            async def question(by: float) -> bytes:
                assert by >= trio.current_time() + 1
                answer = b"%d" % len(sent_at)
                sent_at[answer] = trio.current_time()
                under_way[key] += 1
                assert under_way[key] == 1
                await trio.sleep(1)
                under_way[key] -= 1
                return answer

            def tell(answer: bytes | Exception) -> None:
                assert isinstance(answer, bytes)
                assert sent_at[answer] >= asked_at
                told.append(number)

            coalescer.ask(key, question, tell)

        async with trio.open_nursery() as nursery:
            await nursery.start(coalescer.run)
            start = trio.current_time()
            for number, (at, key) in enumerate(sorted(askers)):
                await trio.sleep_until(start + at / 4)
                ask(number, key)
            await trio.sleep(5)
            assert len(coalescer) == 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sorted(told) == list(range(len(askers)))
    assert len(sent_at) <= len(askers)


async def test_a_crowd_is_told_in_pieces_each_of_them_in_one_turn(oracle: Oracle, autojump_clock: MockClock) -> None:
    oracle.ask()
    await wait_all_tasks_blocked()
    loop, at_ends = LoopTurns(), 0
    told_in: list[int] = []  # loop turn in which each was told

    def note_end() -> None:
        nonlocal at_ends
        at_ends += 1

    def tell(_: bytes | Exception) -> None:
        told_in.append(loop.count)
        if len(told_in) % TOLD_PER_TURN == 1:
            oracle.coalescer.turn.at_end(note_end)
        assert at_ends == (len(told_in) - 1) // TOLD_PER_TURN  # the turns before have ended, this one has not

    for _ in range(10 * TOLD_PER_TURN):
        oracle.coalescer.ask("x", oracle.answer, tell)
    trio.lowlevel.add_instrument(loop)
    await trio.sleep(3)
    trio.lowlevel.remove_instrument(loop)
    assert len(oracle.asked) == 2
    assert set(Counter(told_in).values()) == {TOLD_PER_TURN}
    assert at_ends == 10


@attrs.define(eq=False)
class LoopTurns(trio.abc.Instrument):
    """Counts turns of the loop."""

    count: int = 0

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.count += 1
