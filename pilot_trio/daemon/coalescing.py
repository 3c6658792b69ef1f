"""One question under way per key: whoever asks meanwhile shares the next one.

    A asks ──► under way ────────────► answer for A
                 B, C, D ask meanwhile ──► under way ──► one answer for B, C and D

An answer is shared only by those who had asked before its question left, so nobody gets news older than their question:
what a registry acknowledged to somebody before I asked is in my answer. There are no tasks here: one of those who wait
asks for all of them, and when that one is cancelled the next takes over. An answer wakes a few, each of them one more:
a crowd that is told all at once would hold up everybody else for that turn of the loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

import attrs
import trio

from pilot_trio.errors import RegistryError

WOKEN_PER_TURN: Final = 4  # askers told of an answer per loop turn and key; as many as a client may start tasks

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@attrs.define(eq=False)
class _Batch(Generic[V]):
    """Those who share one answer."""

    waiting: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    answer: V | None = None
    refusal: RegistryError | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.refusal is not None

    def result(self) -> V:
        if self.refusal is not None:
            # Everybody raises an exception of their own: one that many tasks raise collects all their tracebacks.
            raise type(self.refusal)(self.refusal.text, self.refusal.request) from self.refusal
        assert self.answer is not None
        return self.answer


class Coalescer(Generic[K, V]):
    """Asks questions of which many are the same.

    Args:
      ask: asks one question; may raise `RegistryError`, which is an answer too. Answers are never None.
    """

    def __init__(self, ask: Callable[[K], Awaitable[V]]) -> None:
        self._ask = ask
        self._under_way: set[K] = set()
        self._gathering: dict[K, _Batch[V]] = {}  # per key under way: who asked since, at least one

    def __len__(self) -> int:
        return len(self._under_way)

    async def ask(self, key: K) -> V:
        """Return the answer to a question that leaves from now on. Cancelling one asker does not concern the others.

        Raises:
          RegistryError: as `ask` does.
        """
        if key not in self._under_way:
            self._under_way.add(key)
            batch: _Batch[V] = _Batch()
            await self._ask_for(key, batch)
        else:
            batch = self._gathering.setdefault(key, _Batch())
            try:
                await batch.waiting.park()
            finally:
                if not batch.waiting and self._gathering.get(key) is batch:
                    del self._gathering[key]
            if batch.done:
                batch.waiting.unpark()
            else:
                await self._ask_for(key, batch)
        return batch.result()

    async def _ask_for(self, key: K, batch: _Batch[V]) -> None:
        """Ask for everybody in `batch`, which is closed to others from here on, and let the next ones ask."""
        if self._gathering.get(key) is batch:
            del self._gathering[key]
        try:
            batch.answer = await self._ask(key)
        except RegistryError as exc:
            batch.refusal = exc
        finally:
            if batch.done:
                batch.waiting.unpark(count=WOKEN_PER_TURN)
            self._hand_over(key, batch)

    def _hand_over(self, key: K, batch: _Batch[V]) -> None:
        for heirs in (batch, self._gathering.get(key)):
            # Whoever is woken runs before any cancellation reaches it, so the key stays taken without a gap.
            if heirs is not None and not heirs.done and heirs.waiting:
                heirs.waiting.unpark()
                return
        self._under_way.discard(key)
