"""Policy documents of managed networks: is this one, and does it say things that exist (`spec/services.md` §7.3).

Documents are checked and kept, not enforced: expressions and actions are not executed.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from pilot_trio.address import quote
from pilot_trio.errors import DecodeError
from pilot_trio.wire.json_text import member, mismatch, parse_object

VERSION: Final = 1  # the only one there is; protocol, `spec/services.md` §7.3
POLICY_MAX: Final = 262_144  # bytes of a document; it is kept in memory and sent back whole, and people write kilobytes
EVENTS: Final = frozenset({"connect", "dial", "datagram", "cycle", "join", "leave"})
ACTIONS: Final = frozenset(
    {
        "allow",
        "deny",
        "tag",
        "evict",
        "evict_where",
        "prune",
        "fill",
        "prune_trust",
        "fill_trust",
        "webhook",
        "log",
    }
)


@attrs.frozen
class PolicyDocument:
    """A checked document. `text` is what was given, byte for byte: clients get it back with its keys in that order."""

    text: str
    rules: tuple[str, ...]  # their names


def parse_policy(text: bytes) -> PolicyDocument:
    """Check a document.

    Raises:
      DecodeError: it is none; the text starts with `policy: `.
    """
    if len(text) > POLICY_MAX:
        raise DecodeError(f"policy: document of {len(text)} bytes (max {POLICY_MAX})")
    try:
        record = parse_object(text)
        version = member(record, "version", int, 0)
        rules = member(record, "rules", list, [])
    except DecodeError as exc:
        raise DecodeError(f"policy: invalid JSON: {exc}") from exc
    if version != VERSION:
        raise DecodeError(f"policy: unsupported version {version} (want {VERSION})")
    if not rules:
        raise DecodeError("policy: at least one rule is required")
    return PolicyDocument(text.decode("utf-8", "replace").strip(), tuple(map(_check_rule, rules, range(len(rules)))))


def _check_rule(rule: Any, index: int) -> str:
    try:
        if not isinstance(rule, dict):
            raise mismatch(rule, "policylang.Rule")
        name: str = member(rule, "name", str, "")
        event = member(rule, "on", str, "")
        match = member(rule, "match", str, "")
        kinds = [_kind_of(action) for action in member(rule, "actions", list, [])]
    except DecodeError as exc:
        raise DecodeError(f"policy: invalid JSON: {exc}") from exc
    if not name:
        raise DecodeError(f"policy: rule[{index}]: name is required")
    where = f"policy: rule {quote(name)}"
    if event not in EVENTS:
        raise DecodeError(f"{where}: unknown event type {quote(event)}")
    if not match:
        raise DecodeError(f"{where}: match expression is required")
    if not kinds:
        raise DecodeError(f"{where}: at least one action is required")
    for number, kind in enumerate(kinds):
        if kind not in ACTIONS:
            raise DecodeError(f"{where} action[{number}]: unknown action type {quote(kind)}")
    return name


def _kind_of(action: Any) -> str:
    if not isinstance(action, dict):
        raise mismatch(action, "policylang.Action")
    kind: str = member(action, "type", str, "")
    return kind
