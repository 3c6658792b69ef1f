"""Messages and files that arrived, on disk (`spec/services.md` §3.7).

`pilotctl inbox`, `received` and `send-message --wait` read these directories themselves: names and JSON members are an
interface. Everything here blocks, so that it is plain to read; the services call it in a worker thread, one call at a
time (`Mailbox` is not safe to use from two threads at once).
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from pilot_trio.errors import PilotError
from pilot_trio.wire import canonical_json

INBOX_BYTES_MAX: Final = 256 << 20  # bytes of all messages kept; protocol §3.7, oldest go first
INBOX_FILES_MAX: Final = 10_000  # messages kept; protocol §3.7, oldest go first
INBOX_KEEP_SHARE: Final = 0.9  # of the byte limit is left after an eviction, so that not every message evicts
COUNT_EVERY: Final = 64  # messages between two counts of the directory, which others may empty; protocol §3.7
RECEIVED_BYTES_MAX: Final = 2 << 30  # bytes of received files, partial ones included; protocol §3.7
DISK_RESERVE: Final = 16 << 20  # bytes that a transfer leaves free on the disk; protocol §3.6
FILE_NAME_MAX: Final = 255  # bytes; what common file systems take
DEFAULT_NAME: Final = "received.bin"  # for a file without a usable name; protocol §3.6


class MailboxFull(PilotError):
    """The message or file does not fit below the limit; the text goes to the sender."""


@attrs.frozen
class StoredMessage:
    """Where a message was put, and what was written."""

    path: Path
    size: int


def rfc3339_nano(now_ns: int) -> str:
    """A point in time in the local zone, nanoseconds without trailing zeros, as the protocol's JSON has it."""
    seconds, nanos = divmod(now_ns, 1_000_000_000)
    local = time.localtime(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    if nanos:
        text += f".{nanos:09d}".rstrip("0")
    offset = local.tm_gmtoff
    if offset == 0:
        return text + "Z"
    sign, minutes = ("+", offset // 60) if offset > 0 else ("-", -offset // 60)
    return f"{text}{sign}{minutes // 60:02d}:{minutes % 60:02d}"


class Mailbox:
    """The `inbox` and `received` directories below one home."""

    def __init__(self, home: Path, *, text_as_base64: bool = False, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.inbox = home / "inbox"
        self.received = home / "received"
        self.partial = self.received / ".partial"
        self._text_as_base64 = text_as_base64
        self._now_ns = now_ns
        self._sequence = 0  # since the daemon started, shared by messages and files; protocol §3.7
        self._inbox_bytes: int | None = None  # None: not counted yet
        self._until_count = COUNT_EVERY

    def save_message(
        self, kind: str, payload: bytes, *, sender: str, message_id: str = "", reply_to: str = ""
    ) -> StoredMessage:
        """Write one message file.

        Raises:
          MailboxFull: the message alone is larger than the inbox may be.
          OSError: the disk said no; nothing is left behind.
        """
        now_ns = self._now_ns()
        record: dict[str, object] = {"bytes": len(payload), "from": sender, "type": kind}
        record["received_at"] = rfc3339_nano(now_ns)
        text = None if kind == "BINARY" or self._text_as_base64 else _as_text(payload)
        if text is None:
            record |= {"data_encoding": "base64", "data_b64": base64.b64encode(payload).decode()}
        else:
            record |= {"data_encoding": "utf8", "data": text}
        record |= {key: value for key, value in (("message_id", message_id), ("reply_to", reply_to)) if value}
        body = canonical_json.dumps(record)
        self.inbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(len(body))
        path = self.inbox / f"{kind}-{self._stamp(now_ns)}.json"
        # Readers poll the directory for *.json: they must never see half a message.
        _write_new(path, body)
        self._inbox_bytes = (self._inbox_bytes or 0) + len(body)
        return StoredMessage(path, len(payload))

    def save_file(self, name: str, data: bytes) -> Path:
        """Write a file that came in one piece. Raises as `save_message`."""
        self.received.mkdir(mode=0o700, parents=True, exist_ok=True)
        used = self.received_bytes()
        if used + len(data) > RECEIVED_BYTES_MAX:
            raise MailboxFull(f"received-files quota exceeded: {used} + {len(data)} > {RECEIVED_BYTES_MAX}")
        path = self.final_path(name)
        _write_new(path, data)
        return path

    def final_path(self, name: str) -> Path:
        """Choose where a file of this name goes. Only the last component of `name` counts."""
        last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].replace("\0", "")
        if last in {"", ".", ".."}:
            last = DEFAULT_NAME
        stem, dot, extension = last.rpartition(".")
        if not dot:
            stem, extension = last, ""
        stamp = self._stamp(self._now_ns())
        room = FILE_NAME_MAX - len(f"-{stamp}{dot}".encode())
        extension = _cut(extension, room // 2)
        return self.received / f"{_cut(stem, room - len(extension.encode()))}-{stamp}{dot}{extension}"

    def received_bytes(self) -> int:
        """Count what all received files, partial ones included, occupy."""
        return sum(size for _, size, _ in _files(self.received)) + sum(size for _, size, _ in _files(self.partial))

    def _stamp(self, now_ns: int) -> str:
        self._sequence += 1
        seconds, nanos = divmod(now_ns, 1_000_000_000)
        moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))
        return f"{moment}.{nanos // 1_000_000:03d}-{self._sequence:06d}"

    def _make_room(self, needed: int) -> None:
        if needed > INBOX_BYTES_MAX:
            raise MailboxFull(f"inbox byte budget exceeded: {needed} > {INBOX_BYTES_MAX}")
        self._until_count -= 1
        # The sum may be too high (others delete messages), never too low, so only a sum above the limit needs a look.
        must_count = self._inbox_bytes is None or self._until_count <= 0
        if not must_count and (self._inbox_bytes or 0) + needed <= INBOX_BYTES_MAX:
            return
        self._until_count = COUNT_EVERY
        files = sorted(_files(self.inbox), key=lambda file: file[2])
        total = sum(size for _, size, _ in files)
        surplus = max(0, len(files) + 1 - INBOX_FILES_MAX)
        target = INBOX_BYTES_MAX * INBOX_KEEP_SHARE if total + needed > INBOX_BYTES_MAX else INBOX_BYTES_MAX
        for index, (path, size, _) in enumerate(files):
            if index >= surplus and total + needed <= target:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._inbox_bytes = total


def _cut(text: str, size: int) -> str:
    """Shorten to at most `size` bytes of UTF-8 without breaking a character."""
    return text.encode()[:size].decode("utf-8", "ignore")


def _as_text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _files(directory: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield path, size and modification time of the regular files in a directory that may be missing."""
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # a reader deleted it meanwhile
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield Path(entry.path), status.st_size, status.st_mtime


def _write_new(path: Path, body: bytes) -> None:
    """Write a file so that it is complete the moment it has its name."""
    temporary = path.with_name(f".{path.name[:64]}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            file.write(body)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
