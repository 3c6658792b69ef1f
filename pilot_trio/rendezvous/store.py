"""What the registry must never forget, in one SQLite file (`spec/registry.md` §9.2).

A row of the directory is a row here: table, key, JSON. `commit` returns when its changes are on the disk, so an answer that
is sent after it can be relied upon whatever happens next: the process may be killed, the power may fail.

    commit ──▶ waiting rows ──▶ lock ──▶ worker thread: BEGIN, all waiting rows, COMMIT (fsync)
    commit ──▶      "          whoever holds it writes for everybody; those behind find their rows written

An fsync costs milliseconds and everybody who waits shares it, so the rate of mutations is not bounded by the disk. There is
no task behind the scenes: what must be written is written by those who need it, the rest when the store is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from pilot_trio.errors import DecodeError, StoreError
from pilot_trio.proto.directory import Change, Directory, DirectorySettings
from pilot_trio.rendezvous.database import Database, StoredRow

CLOSE_TIMEOUT: Final = 1.0  # seconds for the last rows when the rendezvous stops; a disk that hangs must not hang it


@attrs.frozen
class StoreStatistics:
    """How the store is doing."""

    persistent: bool
    transactions: int  # that reached the disk
    rows: int  # written or deleted in them
    failures: int  # transactions that did not
    unwritten: int  # rows on their way, or waiting for the disk to work again


class Store:
    """A place for a directory's rows. Made by `open_store`."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._lock = trio.Lock()  # held by the one that writes
        self._waiting: dict[tuple[str, str], Change] = {}  # the latest of each row; as many as the directory has rows
        self._writing = 0  # rows that a thread is writing
        self._accepted = self._durable = 0  # commits with changes: handed over, and on the disk
        self._attempts = self._transactions = self._rows = self._failures = 0
        self._failure = ""
        self._closed = False

    async def load(self) -> list[StoredRow]:
        """Return every stored row: `(table, key, row)`; none in memory. Raises `ConfigError` for a damaged file."""
        if self._database is None:
            await trio.lowlevel.checkpoint()
            return []
        return await trio.to_thread.run_sync(self._database.load)

    async def load_directory(self, settings: DirectorySettings, *, now: float) -> Directory:
        """Rebuild the directory that was stored; an empty one from nothing. Raises `ConfigError` for a damaged file."""
        rows = await self.load()
        try:
            # In a thread, for it takes seconds where there are a hundred thousand nodes; nobody else knows the object yet.
            return await trio.to_thread.run_sync(partial(Directory.restore, rows, settings, now=now))
        except DecodeError as exc:
            assert self._database is not None
            raise self._database.damaged(str(exc)) from exc

    async def commit(self, changes: Sequence[Change]) -> None:
        """Return once `changes`, and all that were handed over before, are safe.

        The changes are accepted before the first await: cancelling the wait does not take them back, it leaves them to the
        next commit or to the end. Without changes it only waits for earlier ones, and not at all if there are none.

        Raises:
          StoreError: the disk failed. The changes are kept and written with the next ones.
          trio.ClosedResourceError: the store is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")
        if changes and self._database is not None:
            self._waiting.update({(change.table, change.key): change for change in changes})
            self._accepted += 1
        ticket, failures = self._accepted, self._failures
        if ticket <= self._durable:
            await trio.lowlevel.checkpoint()
            return
        async with self._lock:
            # Others may have written, or failed to, since this call began; a failure is everybody's who waits.
            if ticket > self._durable and failures == self._failures:
                await self._write()
        if ticket > self._durable:
            raise StoreError(self._failure)

    def statistics(self) -> StoreStatistics:
        """Return counters."""
        return StoreStatistics(
            persistent=self._database is not None,
            transactions=self._transactions,
            rows=self._rows,
            failures=self._failures,
            unwritten=self._writing + len(self._waiting),
        )

    async def _write(self) -> None:
        """Write all that waits; called with the lock held."""
        assert self._database is not None
        rows, self._waiting, upto = self._waiting, {}, self._accepted
        self._attempts += 1
        self._writing = len(rows)
        written = False
        try:
            # A cancelled wait leaves the thread to itself, for the disk may hang. What it was writing is written again
            # by the next one: rows are whole, so once more changes nothing.
            await trio.to_thread.run_sync(
                self._database.write, self._attempts, list(rows.values()), abandon_on_cancel=True
            )
            written = True
            self._durable = upto
            self._transactions += 1
            self._rows += len(rows)
        except sqlite3.Error as exc:
            self._failures += 1
            self._failure = f"cannot write {self._database.path}: {exc}"
        finally:
            self._writing = 0
            if not written:
                # The directory has these changes in memory, so they must follow: under what has arrived since.
                self._waiting = rows | self._waiting

    async def aclose(self) -> None:
        """Write what has been handed over, waiting `CLOSE_TIMEOUT` at most, and release the file; `open_store` does it."""
        self._closed = True
        if self._database is not None:
            rest = list(self._waiting.values())
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
                await trio.to_thread.run_sync(self._database.finish, self._attempts + 1, rest, abandon_on_cancel=True)


@asynccontextmanager
async def open_store(path: Path | None) -> AsyncGenerator[Store]:
    """Open the file, or no file: then nothing is kept and every commit succeeds at once.

    Leaving the block writes what has been handed over, waiting `CLOSE_TIMEOUT` at most, and releases the file.

    Raises:
      ConfigError: the file cannot be used; the text names it and says what to do.
    """
    store = Store(None if path is None else await trio.to_thread.run_sync(Database, path))
    try:
        yield store
    finally:
        await store.aclose()
