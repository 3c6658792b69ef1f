"""Documents that the registry keeps for networks without understanding them: managed rules, expression policies (§7).

They arrive as an object or as a JSON string with one in it. What can never be handed out again is refused: depth that a
JSON writer gives up on, numbers that JSON does not have, and sheer size.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from pilot_trio.proto.directory.records import Row
from pilot_trio.proto.directory.refusal import Refused

DOCUMENT_MAX: Final = 65_536  # bytes of a rules or policy document; it travels in every join and sync
DOCUMENT_DEPTH_MAX: Final = 32  # levels of nesting in such a document; JSON writers give up somewhere beyond

_PRUNE_BY: Final = ("score", "age", "activity")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_CYCLE_MIN: Final = 60.0  # seconds; spec registry §7


def parse_expr_policy(given: Any) -> Row | None:
    """Return a policy document, None for none (absent, "", `null`); raise `Refused` for one that is not a policy."""
    document = _parse(given, "expr_policy")
    if document is None:
        return None
    version = document.get("version")
    if version is True or version != 1:
        raise Refused(f"expr_policy: unsupported version {_scalar(version)} (want 1)")
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        raise Refused("expr_policy: at least one rule is required")
    return document


def parse_rules(given: Any) -> Row | None:
    """Return the rules of a managed network, None for none; raise `Refused` for rules that no daemon could run."""
    rules = _parse(given, "rules")
    if rules is None:
        return None
    links = _count(rules, "links")
    if links < 1:
        raise Refused("rules: invalid links (must be integer >= 1)")
    for name in ("prune", "fill"):
        if not 0 <= _count(rules, name) <= links:
            raise Refused(f"rules: invalid {name} (must be integer between 0 and links)")
    if (_duration(rules.get("cycle")) or 0) < _CYCLE_MIN:
        raise Refused("rules: invalid cycle (must be a duration of at least 1m)")
    if rules.get("prune_by", "score") not in _PRUNE_BY:
        raise Refused("rules: invalid prune_by (use score, age or activity)")
    if rules.get("fill_how", "random") != "random":
        raise Refused("rules: invalid fill_how (use random)")
    if rules.get("grace") and _duration(rules["grace"]) is None:
        raise Refused("rules: invalid grace (must be a duration)")
    return rules


def _parse(given: Any, what: str) -> Row | None:
    if given is None or given == "":
        return None
    document = given
    if isinstance(given, str):
        if len(given) > DOCUMENT_MAX:
            raise Refused(f"{what} too long (max {DOCUMENT_MAX} bytes)")
        try:
            document = json.loads(given)
        except (ValueError, RecursionError) as exc:
            raise Refused(f"{what}: invalid JSON: {exc}") from None
        if document is None:
            return None
    if not isinstance(document, dict):
        raise Refused(f"{what}: invalid JSON: must be an object")
    if not _portable(document):
        raise Refused(f"{what}: invalid JSON: nested deeper than {DOCUMENT_DEPTH_MAX} levels, or a number out of range")
    if len(json.dumps(document)) > DOCUMENT_MAX:
        raise Refused(f"{what} too long (max {DOCUMENT_MAX} bytes)")
    return document


def _portable(document: Row) -> bool:
    """Say whether every JSON reader can take the document: bounded depth, finite numbers, integers of 64 bits."""
    level: list[Any] = [document]
    for _ in range(DOCUMENT_DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, int | float) and not -(2.0**63) <= value < 2.0**64:  # false for NaN, too
                return False
        if not below:
            return True
        level = below
    return False


def _scalar(value: Any) -> str:
    """Return a number for an error text as it was sent; 0 for anything else, which is how such a field reads."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else "0"


def _count(rules: Row, name: str) -> int:
    value = rules.get(name, 0)
    return value if type(value) is int else -1


def _duration(value: Any) -> float | None:
    """Return the seconds of a duration such as `1h30m`, None if it is not one."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
