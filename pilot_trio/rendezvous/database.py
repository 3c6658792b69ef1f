"""The SQLite file behind the store: blocking calls, made from worker threads only, one at a time.

SQLite's write-ahead log with `synchronous=FULL` syncs the log at every commit: a transaction that returned survives a
killed process and a failing power supply. `NORMAL`, the usual companion of the log, would lose the last ones with the power.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from pilot_trio.errors import ConfigError
from pilot_trio.proto.directory import Change

APPLICATION_ID: Final = 0x50494C54  # "PILT"; marks the file as ours in SQLite's header
SCHEMA_VERSION: Final = 1  # of the file's layout; a newer one is refused
BUSY_TIMEOUT: Final = 1.0  # seconds to wait for a lock at the start; a predecessor may be on its last write

# A table with row ids, so that rows come back in the order in which they were first written.
_SCHEMA = "CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, row TEXT NOT NULL, UNIQUE (kind, key))"
_UPSERT = "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET row = excluded.row"
_DELETE = "DELETE FROM records WHERE kind = ? AND key = ?"
_SELECT = "SELECT kind, key, row FROM records ORDER BY rowid"

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_DENIED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)

StoredRow = tuple[str, str, Any]


class Database:
    """An open file that nobody else can use meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; raise `ConfigError` that names it and the remedy."""
        self.path = path
        self._lock = threading.Lock()  # a call whose waiter has given up may still run when the next one comes
        self._written = 0  # number of the latest batch that reached the disk
        self._create()
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=8
            )
        except sqlite3.Error as exc:
            raise self._unusable(exc) from exc
        try:
            self._prepare()
        except sqlite3.Error as exc:
            self._connection.close()
            raise self._unusable(exc) from exc
        except ConfigError:
            self._connection.close()
            raise

    def load(self) -> list[StoredRow]:
        """Return every row; raise `ConfigError` if one cannot be read."""
        with self._lock:
            try:
                return [(kind, key, json.loads(row)) for kind, key, row in self._connection.execute(_SELECT)]
            except sqlite3.Error as exc:
                raise self._unusable(exc) from exc
            except (ValueError, RecursionError) as exc:
                raise self.damaged(f"a row is not JSON: {exc}") from exc

    def write(self, number: int, changes: Iterable[Change]) -> None:
        """Make all changes in one transaction that is on the disk when this returns; raise `sqlite3.Error`.

        Batches are numbered upwards. One that was given up and comes late does nothing: its rows are part of a later one,
        and older.
        """
        with self._lock, closing(self._connection.cursor()) as cursor:
            if number <= self._written:
                return
            cursor.execute("BEGIN IMMEDIATE")
            try:
                for change in changes:
                    if change.row is None:
                        cursor.execute(_DELETE, (change.table, change.key))
                    else:
                        row = json.dumps(change.row, separators=(",", ":"))
                        cursor.execute(_UPSERT, (change.table, change.key, row))
                cursor.execute("COMMIT")
                self._written = number
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def finish(self, number: int, changes: Sequence[Change]) -> None:
        """Write a last batch if the disk takes it, and close."""
        try:
            if changes:
                with suppress(sqlite3.Error):  # nobody has been told that these are safe
                    self.write(number, changes)
        finally:
            self.close()

    def close(self) -> None:
        """Fold the log into the file and release it."""
        with self._lock:
            self._connection.close()

    def _create(self) -> None:
        """Make an empty private file where there is none: SQLite would make it as readable as the umask allows."""
        # An existing file is not opened here: closing it again would drop the locks that this process may have on it.
        try:
            if not self.path.exists():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return  # a dangling link, or somebody was faster; opening will tell
        except OSError as exc:
            remedy = "create its directory and make it writable, or choose another --store"
            raise ConfigError(f"rendezvous store {self.path}: {exc.strerror}; {remedy}") from exc
        if self.path.is_dir():
            raise ConfigError(f"rendezvous store {self.path} is a directory; name a file in it")

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the log: then it needs no shared memory
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")  # takes the lock for good
        ours, version = self._pragma("application_id") == APPLICATION_ID, self._pragma("user_version")
        if not ours:
            if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise ConfigError(f"rendezvous store {self.path} is another program's database; choose another --store")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version > SCHEMA_VERSION:
            remedy = "run that version, or choose another --store"
            raise ConfigError(
                f"rendezvous store {self.path} was written by a newer version (layout {version}); {remedy}"
            )
        connection.execute("COMMIT")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise self.damaged(verdict)

    def _pragma(self, name: str) -> int:
        value = self._connection.execute(f"PRAGMA {name}").fetchone()[0]
        assert isinstance(value, int)
        return value

    def _unusable(self, exc: sqlite3.Error) -> ConfigError:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the primary code; higher bits say more than we need
        if code in _BUSY:
            return ConfigError(
                f"rendezvous store {self.path} is in use by another process; stop that one, or choose another --store"
            )
        if code in _DAMAGED:
            return self.damaged(str(exc))
        if code in _DENIED:
            remedy = "make it and its directory writable for this user, or choose another --store"
            return ConfigError(f"rendezvous store {self.path}: {exc}; {remedy}")
        return ConfigError(f"rendezvous store {self.path}: {exc}; free the disk, or choose another --store")

    def damaged(self, detail: str) -> ConfigError:
        """Return what to raise when the file's content cannot be used."""
        remedy = "restore a backup; or move it away, and nodes will get new ids and have to trust each other anew"
        return ConfigError(f"rendezvous store {self.path} is damaged ({detail}); {remedy}")
