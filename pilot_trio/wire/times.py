"""Points in time as text: RFC 3339 (`spec/registry.md` §4, `spec/services.md` §6)."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def rfc3339(unix_seconds: float) -> str:
    """Return a point in time in UTC to the second, for example `2026-11-23T18:46:43Z`."""
    return f"{_to_the_second(math.floor(unix_seconds))}Z"


def rfc3339_nano(unix_ns: int) -> str:
    """Return a point in time in UTC to the nanosecond, without trailing zeros."""
    seconds, nanos = divmod(unix_ns, 1_000_000_000)
    return f"{_to_the_second(seconds)}{f'.{nanos:09d}'.rstrip('0') if nanos else ''}Z"


def parse_rfc3339(text: object) -> float | None:
    """Return Unix seconds; None for what is not the text of a point in time with an offset. Fractions are allowed."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) and "T" in text.upper() else None
        return moment.timestamp() if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _to_the_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
