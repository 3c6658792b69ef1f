"""The directories in which the daemon puts messages and files, read as any program may (`spec/services.md` §3.7).

They lie below `$HOME`, whatever `PILOT_HOME` says. A name carries its time behind the first dash, so names sort by time
without a look into the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pilot_trio.cli.durations import parse_duration
from pilot_trio.cli.output import CliError

PREVIEW_MAX: Final = 120  # characters of a message in a list; protocol, `spec/cli.md` §6.8
Message = dict[str, Any]


def inbox_directory() -> Path:
    """Where messages are."""
    return Path.home() / ".pilot" / "inbox"


def received_directory() -> Path:
    """Where files are."""
    return Path.home() / ".pilot" / "received"


def newest_first(directory: Path, pattern: str) -> list[Path]:
    """Return the regular files of a directory, which may be missing, newest first."""
    found = [path for path in directory.glob(pattern) if not path.name.startswith(".") and path.is_file()]
    return sorted(found, key=lambda path: path.name.partition("-")[2] or path.name, reverse=True)


def load_message(path: Path) -> Message | None:
    """Return a message file's object with its `id`; None if it is gone or is no message."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return {**value, "id": path.stem} if isinstance(value, dict) else None


def messages(
    directory: Path, *, sender: str = "", since: datetime | None = None, before: datetime | None = None
) -> Iterator[tuple[Path, Message]]:
    """Yield the messages that pass the filters, newest first."""
    for path in newest_first(directory, "*.json"):
        message = load_message(path)
        if message is None or (sender and message.get("from") != sender):
            continue
        if within(_received_at(path, message), since, before):
            yield path, message


def within(moment: datetime, since: datetime | None, before: datetime | None) -> bool:
    """Say whether a point in time is after `since` and before `before`, where these are given."""
    return (since is None or moment > since) and (before is None or moment < before)


def modified_at(path: Path) -> datetime:
    """When a file was written; the beginning of time if it is gone."""
    with suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)


def summary(message: Message, *, full: bool) -> dict[str, Any]:
    """Return how a list shows a message: with a preview, or with all of its text."""
    keys = ("id", "from", "received_at", "type", "bytes", "message_id", "reply_to")
    row = {key: message[key] for key in keys if message.get(key) not in (None, "")}
    text = str(message.get("data") or "")
    row.setdefault("bytes", 0)
    return row | ({"data": text} if full else {"preview": preview(text)})


def preview(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= PREVIEW_MAX else line[:PREVIEW_MAX] + "…"


def read_since(text: str | None) -> datetime | None:
    """Read `--since`: a span until now, or a point in time."""
    if text is None:
        return None
    span = _seconds(text)
    if span is not None:
        return _ago(span)
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.astimezone()
    raise CliError("invalid_argument", "--since must be a duration (5m, 1h) or an RFC3339 timestamp")


def read_before(seconds: float | None, *, clear: bool) -> datetime | None:
    """Read `--before`, which only narrows what `--clear` deletes."""
    return _ago(seconds) if clear and seconds is not None else None


def remove(paths: Iterable[Path]) -> int:
    """Delete files; return how many were there to be deleted."""
    count = 0
    for path in paths:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise CliError("internal", f"remove {path}: {exc.strerror or exc}") from exc
        count += 1
    return count


def rfc3339_seconds(seconds: float) -> str:
    """Return a point in time in the local zone, to the second."""
    text = datetime.fromtimestamp(int(seconds)).astimezone().isoformat()
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def age(moment: datetime) -> str:
    """Return how long ago something was, as people say it."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"


def received_at(message: Message) -> datetime | None:
    """When a message arrived, as its file says."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(str(message.get("received_at")))
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def _received_at(path: Path, message: Message) -> datetime:
    return received_at(message) or modified_at(path)


def _seconds(text: str) -> float | None:
    with suppress(ValueError):
        return parse_duration(text)
    with suppress(ValueError):
        return float(text)
    return None


def _ago(seconds: float) -> datetime:
    now = datetime.now(UTC)
    try:
        return datetime.fromtimestamp(now.timestamp() - seconds, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise CliError("invalid_argument", f"{seconds:g} seconds ago is not a point in time") from exc
