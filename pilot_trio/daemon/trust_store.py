"""The trust table, and `trust.json` in step with it (`spec/services.md` §1.13)."""

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
    """The table, the file and its writer. Without a path nothing is kept."""

    def __init__(self, path: Path | None, wall_time: Callable[[], float]) -> None:
        self.table = TrustTable()
        self._path = path
        self._wall_time = wall_time
        self._revision = 0
        self._file = SavedFile(path, lambda: dump_trust(self.table), "trust state")
        self.run = self._file.run
        self.flush = self._file.flush

    def changed(self) -> None:
        """Have the table written soon, if there is anything new in it."""
        if self.table.revision != self._revision:
            self._revision = self.table.revision
            self._file.changed()

    async def load(self) -> None:
        """Take over the stored table, if there is one. An unreadable file is not fatal: trust can be given anew."""
        if self._path is None:
            return
        try:
            content = await files.load(self._path)
            if content is None:
                return
            table, skipped = load_trust(content, self._wall_time())
        except (OSError, DecodeError) as exc:
            _log.warning("trust state unreadable, starting empty", extra={"kv": {"error": str(exc)}})
            return
        for text in skipped:
            _log.warning("trust record skipped", extra={"kv": {"record": text}})
        counts = {
            "peers": len(table.trusted),
            "pending": len(table.pending),
            "revoked": len(table.revoked),
            "outgoing": len(table.outgoing),
        }
        _log.info("loaded trust state", extra={"kv": counts})
        self.table, self._revision = table, table.revision
