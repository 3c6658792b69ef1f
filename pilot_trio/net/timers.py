"""One task for all deadlines.

Most deadlines never come: an acknowledgement moves a retransmission on, traffic moves an idle timeout on. So moving one
later must cost nothing. A `Timer` remembers its deadline and the wake-up that is armed for it; a later deadline changes
the number alone, and when the old wake-up fires, finds nothing due and arms the next. Only a move to earlier touches the
heap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Final

import trio

DUE_MAX: Final = 256  # timers run before other tasks get a turn


class Timer:
    """One deadline that moves. Made by `Timers.timer`."""

    __slots__ = ("_deadline", "_timers", "_wake_at", "on_due")

    def __init__(self, timers: Timers, on_due: Callable[[float], None]) -> None:
        self._timers = timers
        self._deadline = inf
        self._wake_at = inf  # the earliest wake-up armed for this timer
        self.on_due = on_due

    @property
    def deadline(self) -> float:
        """When it is due, in Trio's clock; `math.inf` while it is not armed."""
        return self._deadline

    def arm(self, at: float) -> None:
        """Be due at `at`; `math.inf`: not at all. Call it whenever the deadline may have changed."""
        self._deadline = at
        if at < self._wake_at:
            self._timers.wake_at(at, self)

    def cancel(self) -> None:
        """Never be due, unless armed again."""
        self._deadline = inf

    def _woken(self, at: float, now: float) -> bool:
        """Take a wake-up; True if it made the timer due."""
        if at != self._wake_at:
            return False  # an earlier wake-up has taken its place
        self._wake_at = inf
        if self._deadline > now:
            self.arm(self._deadline)
            return False
        self._deadline = inf
        return True


class Timers:
    """Timers, and the task that runs them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # equal deadlines come in the order of arming
        self._scope: trio.CancelScope | None = None

    def __len__(self) -> int:
        """How many wake-ups are armed."""
        return len(self._heap)

    def timer(self, on_due: Callable[[float], None]) -> Timer:
        """Return a timer that is not armed. `on_due(now)` must neither wait nor raise; it may arm the timer again."""
        return Timer(self, on_due)

    def wake_at(self, at: float, timer: Timer) -> None:
        """Arm a wake-up; `Timer.arm` calls this."""
        timer._wake_at = at
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        if self._scope is not None and at < self._scope.deadline:
            self._scope.deadline = at

    async def run(self) -> None:
        """Run timers as they fall due, until cancelled."""
        while True:
            at = self._heap[0][0] if self._heap else inf
            if at <= trio.current_time():
                self._run_due(trio.current_time())
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=at) as self._scope:
                await trio.sleep_forever()
            self._scope = None

    def _run_due(self, now: float) -> None:
        for _ in range(DUE_MAX):
            if not self._heap or self._heap[0][0] > now:
                return
            at, _, timer = heapq.heappop(self._heap)
            if timer._woken(at, now):
                timer.on_due(now)
