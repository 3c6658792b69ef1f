"""Holding things back until the end of what is being worked on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import final


@final
class Turn(AbstractContextManager[None, None]):
    """Inside, things are held back; `settle` is called when the outermost block ends, still inside of it.

    One object for all the turns of its owner: a turn costs two integer operations.
    """

    __slots__ = ("_last", "_settle", "depth")

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._last: list[Callable[[], None]] = []
        self.depth = 0

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when this turn ends, before it settles; it must not fail."""
        self._last.append(call)

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Also after an exception: what was held back before it is to go on.
        if self.depth == 1:
            try:
                while self._last:
                    self._last.pop()()
                self._settle()
            finally:
                self.depth = 0
        else:
            self.depth -= 1
