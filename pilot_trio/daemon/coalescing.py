"""One question under way per key: whoever asks meanwhile shares the next one.

    A asks ──► under way ────────────► answer for A
                 B, C, D ask meanwhile ──► under way ──► one answer for B, C and D

An answer is shared only by those who had asked before its question left, so nobody gets news older than their question:
what a registry acknowledged to somebody before I asked is in my answer. There is one task per key under way and none per
asker: who asks leaves a callback, so that a crowd costs little more than one. A crowd is told in pieces, because all at
once would hold up everybody else for that turn of the loop; and the same is not asked again at once, because a client that
repeats itself would keep node and registry busy with nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final, final

import trio

from pilot_trio.daemon.turn import Turn

QUESTION_GAP: Final = 0.01  # seconds between two questions about the same; as long as a way to a registry and back
TOLD_PER_TURN: Final = 8  # askers told of an answer per loop turn and key; as many as a client may ask in one
PATIENCE: Final = 8.0  # seconds that an asker waits, for other questions too; protocol, `spec/ipc.md` §8

Question = Callable[[float], Awaitable[bytes]]
"""Asks; gets the time (Trio clock) by which it has to end. Raises what is to be told as a refusal."""
Tell = Callable[["bytes | Exception"], None]
"""Takes the answer, or why there is none. Every asker of a question gets the same object."""


@final
class Coalescer:
    """Asks questions of which many are the same."""

    def __init__(self) -> None:
        self.turn: Final = Turn(_nothing)
        """Entered while askers are told, so that they may do at its end what they would do for each answer."""
        self._gathering: dict[Hashable, _Batch] = {}  # per key under way: who has asked since
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._gathering)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled; then nobody is told anything more."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def ask(self, key: Hashable, question: Question, tell: Tell) -> None:
        """Ask, or share the next one of those who ask the same, and `tell` the answer. Not to be called before `run`."""
        assert self._nursery is not None
        batch = self._gathering.get(key)
        if batch is None:
            batch = self._gathering[key] = _Batch()
            self._nursery.start_soon(self._ask_for_all, key, question)
        batch.add(tell)

    async def _ask_for_all(self, key: Hashable, question: Question) -> None:
        while batch := self._gathering[key]:
            self._gathering[key] = _Batch()  # the one before is closed from here on
            asked_at = trio.current_time()
            try:
                answer: bytes | Exception = await question(batch.since + PATIENCE)
            except Exception as exc:
                answer = exc  # each asker's own affair, a defect too
            await self._tell(batch, answer)
            await trio.sleep_until(asked_at + QUESTION_GAP)
        del self._gathering[key]

    async def _tell(self, batch: list[Tell], answer: bytes | Exception) -> None:
        for start in range(0, len(batch), TOLD_PER_TURN):
            if start:
                await trio.lowlevel.checkpoint()
            with self.turn:
                for tell in batch[start : start + TOLD_PER_TURN]:
                    tell(answer)


class _Batch(list[Tell]):
    """Those who share one answer."""

    since = 0.0  # Trio-clock seconds at which the first of them asked

    def add(self, tell: Tell) -> None:
        if not self:
            self.since = trio.current_time()
        self.append(tell)


def _nothing() -> None:
    """Hold nothing back."""
