"""Go's duration texts (`1m30s`, `500ms`), which flags, configuration files and the reference's users write."""

from __future__ import annotations

import re
from typing import Final

from pilot_trio.address import quote

_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}  # seconds
_PIECE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([^\d.]*)", re.ASCII)
_MAX: Final = (1 << 63) / 1e9  # seconds; Go counts nanoseconds in 63 bits
_DIGITS_MAX: Final = 40  # longer numbers say nothing more and only cost time


def parse_duration(text: str) -> float:
    """Return the seconds that a Go duration text means; raise `ValueError` with Go's words if it is none."""
    sign = -1.0 if text.startswith("-") else 1.0
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(body):
        piece = _PIECE.match(body, at)
        if piece is None or len(piece[1]) > _DIGITS_MAX:
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not piece[2]:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if piece[2] not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(piece[2])} in duration {quote(text)}")
        total += float(piece[1]) * _UNITS[piece[2]]
        at = piece.end()
    if not body or total >= _MAX:
        raise ValueError(f"time: invalid duration {quote(text)}")
    return sign * total


def format_duration(seconds: float) -> str:
    """Return the way Go writes a duration: `1m30s`, `2.5s`, `620µs`."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1_000), ("µs", 1_000_000), ("ms", 1_000_000_000)):
        if nanoseconds < size:
            return f"{sign}{_decimal(nanoseconds, size // 1_000)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, 1_000_000_000)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).zfill(len(str(unit)) - 1).rstrip('0')}"
