"""Names that the registry has resolved, in memory and in `hostname_cache.json`, for a start without the registry.

The file is shared with the original daemon, which reads and writes the same one (`spec/services.md` §6.1). Losing it costs
questions, nothing else, so it is written now and then, and what cannot be read is forgotten.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from pilot_trio.daemon.saved_file import SavedFile
from pilot_trio.daemon.timed_cache import STALE, TimedCache
from pilot_trio.errors import DecodeError
from pilot_trio.net import files
from pilot_trio.wire.hostname_file import KnownName, dump_names, load_names
from pilot_trio.wire.registry import Message

NAMES_MAX: Final = 4096  # names remembered; a client that resolves at random must not fill the memory
ANSWER_MAX: Final = 4096  # bytes of an answer that is remembered; real ones have 200, and 4,096 of the largest 16 MiB
KEPT_MAX: Final = 1024  # names in the file, the latest ones; at most 4 MiB
SAVE_GAP: Final = 10.0  # seconds between two writes; a client that resolves name after name must not wear the disk

_log = logging.getLogger("pilot_trio.daemon")


class HostnameCache:
    """What is known of names. Without a path nothing is kept, and `run` need not run.

    Args:
      path: `hostname_cache.json`.
      wall_time: Unix seconds.
    """

    def __init__(self, path: Path | None = None, wall_time: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_time = wall_time
        self._answers: TimedCache[str, Message] = TimedCache(NAMES_MAX)
        self._file = SavedFile(path, self._dump, "hostname cache", SAVE_GAP)

    def get(self, name: str, max_age: float) -> Message | None:
        """Return the answer about a name if it is younger than `max_age` seconds."""
        return self._answers.get(name, trio.current_time(), max_age)

    def put(self, name: str, answer: Message) -> None:
        """Remember an answer that has just come, unless it is larger than any should be."""
        if len(json.dumps(answer)) > ANSWER_MAX:
            self.forget(name)
            return
        self._answers.put(name, answer, trio.current_time())
        self._file.changed()

    def forget(self, name: str) -> None:
        """Drop what is known of a name."""
        self._answers.forget(name)
        self._file.changed()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is stored, report the start, and store what is new until cancelled."""
        await self._load()
        task_status.started()
        try:
            await self._file.run()
        finally:
            await self._file.flush()

    async def _load(self) -> None:
        if self._path is None:
            return
        try:
            names = load_names(await files.load(self._path) or b"{}")
        except (OSError, DecodeError) as exc:
            _log.warning("cannot read hostname cache", extra={"kv": {"path": str(self._path), "error": str(exc)}})
            return
        now, elapsed = self._wall_time(), trio.current_time()
        for name, answered_at, answer in sorted(names, key=lambda known: known.answered_at):
            if 0 <= now - answered_at < STALE:
                self._answers.put(name, answer, elapsed - (now - answered_at))

    def _dump(self) -> bytes:
        now, elapsed = self._wall_time(), trio.current_time()
        names = [
            KnownName(name, now - (elapsed - answered_at), answer)
            for name, answered_at, answer in self._answers.rows()
            if elapsed - answered_at < STALE
        ]
        return dump_names(names[-KEPT_MAX:], now)
