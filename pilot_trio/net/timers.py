"""One task for all deadlines.

Most deadlines never come: an acknowledgement moves a retransmission on, traffic moves an idle timeout on. So moving one
later must cost nothing. A `Timer` remembers its deadline and the wake-ups that are armed for it; a later deadline changes
the number alone, and when the old wake-up fires, finds nothing due and makes sure that there is another. Only a move to
earlier touches the heap.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from math import inf
from typing import Final

import trio

DUE_MAX: Final = 256  # timers run before other tasks get a turn
LOOK_AHEAD: Final = (
    0.02  # seconds; wake-ups as near as this that would find nothing due are cleared away before sleeping
)
_log = logging.getLogger("pilot_trio.timers")
_NO_WAKES: Final[list[float]] = []
_SWEEP_FROM: Final = 64  # wake-ups of cancelled timers that are not worth a sweep


class Timer:
    """One deadline that moves. Made by `Timers.timer`."""

    __slots__ = ("_deadline", "_note_cancelled", "_on_due", "_push", "_wakes")

    def __init__(
        self,
        on_due: Callable[[float], None],
        push: Callable[[float, Timer], None],
        note_cancelled: Callable[[int], None],
    ) -> None:
        self._on_due: Callable[[float], None] | None = on_due  # None: cancelled
        self._push = push  # arms a wake-up
        self._note_cancelled = note_cancelled  # told how many wake-ups are left behind
        self._deadline = inf
        self._wakes: list[float] = [
            inf
        ]  # wake-ups armed for this timer, earliest last: each was armed because it was the earliest

    @property
    def deadline(self) -> float:
        """When it is due, in Trio's clock; `math.inf` while it is not armed."""
        return self._deadline

    @property
    def cancelled(self) -> bool:
        """Whether it is over for good."""
        return self._on_due is None

    def arm(self, at: float) -> None:
        """Be due at `at`; `math.inf`: not at all. Call it whenever the deadline may have changed."""
        if self._on_due is not None:
            self._deadline = at
            if at < self._wakes[-1]:
                self._wakes.append(at)
                self._push(at, self)

    def cancel(self) -> None:
        """Never be due again, and let go of what would have been called. Idempotent."""
        if self._on_due is not None:
            self._on_due = None
            self._deadline = inf
            self._note_cancelled(len(self._wakes) - 1)
            self._wakes = _NO_WAKES  # cancelled timers are kept for a while, by streams that have ended, and are many

    def wake(self, now: float) -> bool:
        """Take the earliest wake-up; run what is due. False if the timer was cancelled. For `Timers` alone."""
        on_due, deadline = self._on_due, self._deadline
        if on_due is None:
            return False
        self._wakes.pop()
        if deadline <= now:
            self._deadline = inf
            on_due(now)
        else:
            self.arm(deadline)
        return True

    def wakes_in_vain(self, at: float) -> bool:
        """Say whether the wake-up at `at` would find nothing due. For `Timers` alone."""
        return self._deadline > at


class Timers:
    """Timers, and the task that runs them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # equal deadlines come in the order of arming
        self._dead = 0  # wake-ups in the heap whose timers were cancelled
        self._scope: trio.CancelScope | None = None
        self._wakes_at = -inf  # the scope's deadline; -inf while it is being thought of
        self.defects = 0  # callbacks that raised
        self.around: AbstractContextManager[object, None] = nullcontext()
        """Entered around timers that are due together, which may have more to do together than one by one."""
        self._of_a_timer = self._push, self._note_cancelled  # bound once: every timer holds them

    def __len__(self) -> int:
        """How many wake-ups are armed."""
        return len(self._heap)

    def timer(self, on_due: Callable[[float], None]) -> Timer:
        """Return a timer that is not armed. `on_due(now)` must not wait; it may arm the timer again.

        What it raises is logged and counted (`defects`), and ends nothing else.
        """
        return Timer(on_due, *self._of_a_timer)

    async def run(self) -> None:
        """Run timers as they fall due, until cancelled."""
        while True:
            at = self._heap[0][0] if self._heap else inf
            if at <= (now := trio.current_time()):
                self._run_due(now)
                self._clear_ahead(now)
                at = self._heap[0][0] if self._heap else inf
                if at <= now:
                    await trio.lowlevel.checkpoint()
                    continue
            self._wakes_at = at
            with trio.CancelScope(deadline=at) as self._scope:
                await trio.sleep_forever()
            self._wakes_at = -inf

    def _run_due(self, now: float) -> None:
        try:
            with self.around:
                self._call_due(now)
        except Exception:
            self._note_defect()

    def _call_due(self, now: float) -> None:
        for _ in range(DUE_MAX):
            if not self._heap or self._heap[0][0] > now:
                return
            timer = heapq.heappop(self._heap)[2]
            try:
                if not timer.wake(now):
                    self._dead -= 1
            except Exception:
                self._note_defect()

    def _note_defect(self) -> None:
        """Go on after a defect of one owner: every other deadline of the process depends on this task."""
        self.defects += 1
        _log.exception("timer failed")

    def _clear_ahead(self, now: float) -> None:
        """Take out the wake-ups of the next moment that are for nothing: a thousand short streams leave one a millisecond.

        Each would cost a turn of the loop; now they cost what they would have cost in it.
        """
        kept = []
        for _ in range(DUE_MAX):
            if not self._heap or not now < self._heap[0][0] <= now + LOOK_AHEAD:
                break
            entry = heapq.heappop(self._heap)
            at, _, timer = entry
            if timer.wakes_in_vain(at):
                self._dead -= not timer.wake(now)
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self._heap, entry)

    def _push(self, at: float, timer: Timer) -> None:
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        if at < self._wakes_at and self._scope is not None:
            self._wakes_at = self._scope.deadline = at

    def _note_cancelled(self, wakes: int) -> None:
        """Throw out the wake-ups of cancelled timers once they are the majority: short streams have long timeouts."""
        self._dead += wakes
        if self._dead > max(_SWEEP_FROM, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self._dead = 0
