"""Keeps `trust.json` in step with the trust table: one writer, off the loop, coalescing (`spec/services.md` §1.13)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from pilot_trio.errors import DecodeError
from pilot_trio.net import files
from pilot_trio.proto.trust import TrustTable
from pilot_trio.proto.trust_file import dump_trust, load_trust

SAVE_RETRY: Final = 5.0  # seconds after a failed save; a full disk is seldom freed sooner

_log = logging.getLogger("pilot_trio.trust")


class TrustStore:
    """The file and its writer. Without a path nothing is kept."""

    def __init__(self, path: Path | None, table: Callable[[], TrustTable], wall_time: Callable[[], float]) -> None:
        self._path = path
        self._table = table
        self._wall_time = wall_time
        self._saved_revision = 0
        self._revision = 0
        self._wake = trio.Event()

    def changed(self, revision: int) -> None:
        """Note the table's revision; a new one is written soon."""
        if revision != self._revision:
            self._revision = revision
            self._wake.set()

    async def load(self) -> TrustTable | None:
        """Return the stored table, None if there is none. An unreadable file is not fatal: trust can be given anew."""
        if self._path is None:
            return None
        try:
            content = await files.load(self._path)
            if content is None:
                return None
            table, skipped = load_trust(content, self._wall_time())
        except (OSError, DecodeError) as exc:
            _log.warning("trust state unreadable, starting empty", extra={"kv": {"error": str(exc)}})
            return None
        for text in skipped:
            _log.warning("trust record skipped", extra={"kv": {"record": text}})
        counts = {
            "peers": len(table.trusted),
            "pending": len(table.pending),
            "revoked": len(table.revoked),
            "outgoing": len(table.outgoing),
        }
        _log.info("loaded trust state", extra={"kv": counts})
        return table

    async def run(self) -> None:
        """Write after changes until cancelled; `flush` writes what came last."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if not await self._save():
                await trio.sleep(SAVE_RETRY)
                self._wake.set()

    async def flush(self) -> None:
        """Write what is unwritten, even if cancelled: a write that has begun cannot be, and the file is small."""
        with trio.CancelScope(shield=True):
            await self._save()

    async def _save(self) -> bool:
        if self._path is None or self._saved_revision == self._revision:
            return True
        revision, content = self._revision, dump_trust(self._table())
        try:
            await files.save(self._path, content)
        except OSError as exc:
            _log.warning("trust state not saved", extra={"kv": {"path": str(self._path), "error": str(exc)}})
            return False
        self._saved_revision = revision
        return True
