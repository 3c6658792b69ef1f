"""`hostname_cache.json`: answers about names, in the format that other daemons read and write (`spec/services.md` §6.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from pilot_trio.wire.json_text import member, parse_object
from pilot_trio.wire.registry import Message
from pilot_trio.wire.times import parse_rfc3339, rfc3339_nano

_NODE_MAX: Final = 0xFFFFFFFF


class KnownName(NamedTuple):
    """One name, and what the registry answered about it."""

    name: str
    answered_at: float  # Unix seconds
    answer: Message


def dump_names(names: Iterable[KnownName], saved_at: float) -> bytes:
    """Return the file's content: compact, times in UTC to the nanosecond."""
    rows = {known.name: {"resp": known.answer, "cached_at": _nano(known.answered_at)} for known in names}
    return json.dumps({"saved_at": _nano(saved_at), "hostnames": rows}, separators=(",", ":")).encode()


def load_names(content: bytes) -> list[KnownName]:
    """Read the file's content; what names no node, or has no time, is left out.

    Raises:
      DecodeError: the content is no JSON object with an object of names.
    """
    found = []
    for name, row in member(parse_object(content), "hostnames", dict, {}).items():
        if not isinstance(row, dict):
            continue
        answer, answered_at = row.get("resp"), parse_rfc3339(row.get("cached_at"))
        if answered_at is not None and isinstance(answer, dict) and _names_a_node(answer):
            found.append(KnownName(name, answered_at, answer))
    return found


def _names_a_node(answer: Message) -> bool:
    return type(node := answer.get("node_id")) is int and 0 < node <= _NODE_MAX


def _nano(unix_seconds: float) -> str:
    return rfc3339_nano(int(unix_seconds * 1e9))
