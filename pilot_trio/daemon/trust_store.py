"""Keeps `trust.json` in step with the trust table (`spec/services.md` §1.13)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pilot_trio.daemon.saved_file import SavedFile
from pilot_trio.errors import DecodeError
from pilot_trio.net import files
from pilot_trio.proto.trust import TrustTable
from pilot_trio.proto.trust_file import dump_trust, load_trust

_log = logging.getLogger("pilot_trio.trust")


class TrustStore:
    """The file and its writer. Without a path nothing is kept."""

    def __init__(self, path: Path | None, table: Callable[[], TrustTable], wall_time: Callable[[], float]) -> None:
        self._path = path
        self._wall_time = wall_time
        self._revision = 0
        self._file = SavedFile(path, lambda: dump_trust(table()), "trust state")
        self.run = self._file.run
        self.flush = self._file.flush

    def changed(self, revision: int) -> None:
        """Note the table's revision; a new one is written soon."""
        if revision != self._revision:
            self._revision = revision
            self._file.changed()

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
