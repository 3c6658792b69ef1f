"""A file that follows something in memory: one writer, off the loop, which writes the latest state and skips others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from pilot_trio.net import files

SAVE_RETRY: Final = 5.0  # seconds after a failed save; a full disk is seldom freed sooner

_log = logging.getLogger("pilot_trio.daemon")


class SavedFile:
    """One file and its writer.

    Args:
      path: where it is; None keeps nothing.
      content: returns what it is to hold now.
      name: what it holds, for the log.
      gap: seconds between two saves at least.
    """

    def __init__(self, path: Path | None, content: Callable[[], bytes], name: str, gap: float = 0.0) -> None:
        self._path = path
        self._content = content
        self._name = name
        self._gap = gap
        self._changes = self._saved = 0  # of what is in memory: all of them, and those that the file has
        self._wake = trio.Event()

    def changed(self) -> None:
        """Have the file written soon."""
        self._changes += 1
        self._wake.set()

    async def run(self) -> None:
        """Write after changes until cancelled; `flush` writes what came last."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if await self._save():
                await trio.sleep(self._gap)
            else:
                await trio.sleep(SAVE_RETRY)
                self._wake.set()

    async def flush(self) -> None:
        """Write what is unwritten, even if cancelled: a write that has begun cannot be, and the file is small."""
        with trio.CancelScope(shield=True):
            await self._save()

    async def _save(self) -> bool:
        if self._path is None or self._saved == self._changes:
            return True
        changes, content = self._changes, self._content()
        try:
            await files.save(self._path, content)
        except OSError as exc:
            _log.warning("%s not saved", self._name, extra={"kv": {"path": str(self._path), "error": str(exc)}})
            return False
        self._saved = changes
        return True
