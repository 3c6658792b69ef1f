"""Watch the inbox for the answer to one message (`spec/cli.md` §6.8, `send-message --wait`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from pilot_trio.address import Address
from pilot_trio.cli import mailbox_files as files

POLL: Final = 0.25  # seconds between two looks at the directory; protocol
HOLD: Final = 0.75  # seconds that an answer without an id waits for one with it, from peers that send them; protocol


class ReplyWatch:
    """Made before the message is sent: what is in the inbox by then is no answer to it."""

    def __init__(self, directory: Path, peer: Address) -> None:
        self._directory = directory
        self._peer = str(peer)
        self._seen = set(self._names())
        self._unnamed: dict[str, Any] | None = None  # the oldest message without `reply_to`
        self._unnamed_at = 0.0
        self._peer_names_ids: bool | None = None  # None: not looked yet

    def wait(self, message_id: str, deadline: float) -> dict[str, Any] | None:
        """Return the answer as its file has it, or None at the deadline (monotonic seconds); may be called again."""
        while True:
            reply = self._look(message_id)
            if reply is not None:
                return reply
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(POLL, left))

    def _look(self, message_id: str) -> dict[str, Any] | None:
        for name in sorted(set(self._names()) - self._seen, key=lambda name: name.partition("-")[2]):
            self._seen.add(name)
            message = files.load_message(self._directory / name)
            if message is None or message.get("from") != self._peer:
                continue
            del message["id"]
            answered = message.get("reply_to")
            if answered == message_id:
                return message
            if not answered and self._unnamed is None:
                self._unnamed, self._unnamed_at = message, time.monotonic()
        if self._unnamed is not None and (not self._names_ids() or time.monotonic() - self._unnamed_at >= HOLD):
            return self._unnamed
        return None

    def _names_ids(self) -> bool:
        """Say whether an earlier message of this peer names the one that it answers."""
        if self._peer_names_ids is None:
            found = files.messages(self._directory, sender=self._peer)
            self._peer_names_ids = any(message.get("reply_to") for _, message in found)
        return self._peer_names_ids

    def _names(self) -> list[str]:
        return [path.name for path in files.newest_first(self._directory, "*.json")]
