"""What the registry must never forget, in one SQLite file (`spec/registry.md` §9.2).

A row of the directory is a row here: table, key, JSON. `commit` returns when its changes are on the disk, so an answer that
is sent after it can be relied upon whatever happens next: the process may be killed, the power may fail.

    commit ──▶ open batch ──▶ writer task ──▶ worker thread: BEGIN, rows, COMMIT (fsync)
    commit ──▶     "            one batch at a time; what arrives meanwhile shares the next one

An fsync costs milliseconds and everybody who waits shares it, so the rate of mutations is not bounded by the disk.

The file is opened in exclusive mode: two registries over one file would give one id to two keys. It is private to its
owner, because networks have secrets.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from pilot_trio.errors import StoreError
from pilot_trio.proto.directory import Change
from pilot_trio.rendezvous.database import Database, StoredRow

RETRY_INTERVAL: Final = (
    5.0  # seconds until rows that the disk refused are tried again, if nothing else is written sooner
)
CLOSE_TIMEOUT: Final = 1.0  # seconds for the last batch when the rendezvous stops; a disk that hangs must not hang it


@attrs.frozen
class StoreStatistics:
    """How the store is doing."""

    persistent: bool
    transactions: int  # that reached the disk
    rows: int  # written or deleted in them
    failures: int  # transactions that did not
    unwritten: int  # rows that wait for the disk to work again


@attrs.define(eq=False)
class _Batch:
    """Changes that go to the disk together, and everybody who waits for that."""

    rows: dict[tuple[str, str], Change] = attrs.field(factory=dict)  # the latest of each row
    done: trio.Event = attrs.field(factory=trio.Event)
    failure: str = ""

    def add(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.rows[change.table, change.key] = change


class Store:
    """A place for a directory's rows. Made by `open_store`."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._open_batch = _Batch()  # collects while another one is being written
        self._writing: _Batch | None = None
        self._wake = trio.Event()
        self._closed = False
        self._batches = self._transactions = self._rows = self._failures = 0

    async def load(self) -> list[StoredRow]:
        """Return every stored row: `(table, key, row)`; none in memory. Raises `ConfigError` for a damaged file."""
        if self._database is None:
            await trio.lowlevel.checkpoint()
            return []
        return await trio.to_thread.run_sync(self._database.load)

    async def commit(self, changes: Sequence[Change]) -> None:
        """Return once `changes`, and all that were handed over before, are safe.

        The changes are accepted before the first await: cancelling the wait does not take them back. Without changes it
        only waits for earlier ones, and does not wait at all if there are none.

        Raises:
          StoreError: the disk failed. The changes are kept and written with the next ones.
          trio.ClosedResourceError: the store is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")
        if self._database is None:
            await trio.lowlevel.checkpoint()
            return
        self._open_batch.add(changes)
        if self._open_batch.rows:
            batch = self._open_batch
            self._wake.set()
        elif self._writing is not None:
            batch = self._writing
        else:
            await trio.lowlevel.checkpoint()
            return
        await batch.done.wait()
        if batch.failure:
            raise StoreError(batch.failure)

    def statistics(self) -> StoreStatistics:
        """Return counters."""
        waiting = len(self._open_batch.rows) + (len(self._writing.rows) if self._writing else 0)
        return StoreStatistics(self._database is not None, self._transactions, self._rows, self._failures, waiting)

    async def _write_batches(self) -> None:
        """Write one batch after another for as long as the store is open."""
        while True:
            with trio.move_on_after(RETRY_INTERVAL if self._open_batch.rows else math.inf):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._write_batch()

    async def _write_batch(self) -> None:
        assert self._database is not None
        batch, self._open_batch = self._open_batch, _Batch()
        self._writing = batch
        self._batches += 1
        batch.failure = f"cannot write {self._database.path}: it is being closed"
        try:
            # A cancelled wait leaves the thread to itself, for the disk may hang. What it was writing is written again
            # at the end: rows are whole, so once more changes nothing.
            rows = list(batch.rows.values())
            await trio.to_thread.run_sync(self._database.write, self._batches, rows, abandon_on_cancel=True)
            batch.failure = ""
            self._transactions += 1
            self._rows += len(batch.rows)
        except sqlite3.Error as exc:
            self._failures += 1
            batch.failure = f"cannot write {self._database.path}: {exc}"
        finally:
            if batch.failure:
                # The directory has these changes in memory, so they must follow: under what has arrived since.
                self._open_batch.rows = batch.rows | self._open_batch.rows
            self._writing = None
            batch.done.set()


@asynccontextmanager
async def open_store(path: Path | None) -> AsyncIterator[Store]:
    """Open the file, or no file: then nothing is kept and every commit succeeds at once.

    Leaving the block writes what has been committed, waiting `CLOSE_TIMEOUT` at most, and releases the file. The block runs
    in a nursery: what it raises arrives in an exception group.

    Raises:
      ConfigError: the file cannot be used; the text names it and says what to do.
    """
    if path is None:
        store = Store(None)
        try:
            yield store
        finally:
            store._closed = True
        return
    database = await trio.to_thread.run_sync(Database, path)
    store = Store(database)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._write_batches)
            try:
                yield store
            finally:
                nursery.cancel_scope.cancel()
    finally:
        store._closed = True
        rest = list(store._open_batch.rows.values())
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
            await trio.to_thread.run_sync(database.finish, store._batches + 1, rest, abandon_on_cancel=True)
