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

    __slots__ = ("_settle", "depth")

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Also after an exception: what was held back before it is to go on.
        if self.depth == 1:
            try:
                self._settle()
            finally:
                self.depth = 0
        else:
            self.depth -= 1
