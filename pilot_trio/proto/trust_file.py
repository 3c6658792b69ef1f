"""`trust.json`: the trust table on disk, in the format that other daemons read and write (`spec/services.md` §1.13)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.proto.trust import OUTGOING_MAX, REQUEST_LIFETIME, PendingRequest, TrustedPeer, TrustTable
from pilot_trio.wire import canonical_json
from pilot_trio.wire.json_text import member, parse_object
from pilot_trio.wire.times import parse_rfc3339, rfc3339

_U32_MAX: Final = 0xFFFFFFFF
_U16_MAX: Final = 0xFFFF

T = TypeVar("T")


def dump_trust(table: TrustTable) -> bytes:
    """Return the file's content: two-space indent, no final newline, empty members left out except `trusted`."""
    record: dict[str, Any] = {"trusted": [_dump_trusted(peer) for peer in table.trusted.values()] or None}
    lists = {
        "pending": [_dump_pending(request) for request in table.pending.values()],
        "revoked": [{"node_id": node, "until": rfc3339(until)} for node, until in table.revoked.items()],
        "outgoing": [{"node_id": node, "sent_at": rfc3339(sent)} for node, sent in table.outgoing.items()],
    }
    record.update((name, rows) for name, rows in lists.items() if rows)
    return canonical_json.escape(json.dumps(record, indent=2, ensure_ascii=False))


def load_trust(content: bytes, now: float) -> tuple[TrustTable, list[str]]:
    """Read the file's content; return the table and a text per entry that could not be used.

    Expired revocations and own requests are left out. Expired pending requests stay until the first `reap`.

    Raises:
      DecodeError: the content is no JSON object with lists of objects.
    """
    record = parse_object(content)
    table = TrustTable()
    skipped: list[str] = []
    for peer in _entries(record, "trusted", _load_trusted, skipped):
        table.trusted[peer.node_id] = peer
    for request in _entries(record, "pending", _load_pending, skipped):
        table.pending[request.node_id] = request
    for node, until in _entries(record, "revoked", lambda entry: (_node(entry), _time(entry, "until")), skipped):
        if until > now:
            table.revoked[node] = until
    sent = _entries(record, "outgoing", lambda entry: (_node(entry), _time(entry, "sent_at")), skipped)
    for node, sent_at in sorted(sent, key=lambda item: item[1])[-OUTGOING_MAX:]:
        if now - sent_at <= REQUEST_LIFETIME:
            table.outgoing[node] = sent_at
    return table, skipped


def _dump_trusted(peer: TrustedPeer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node_id": peer.node_id,
        "public_key": peer.public_key,
        "approved_at": rfc3339(peer.approved_at),
        "mutual": peer.mutual,
    }
    return row | ({"network": peer.network} if peer.network else {})


def _dump_pending(request: PendingRequest) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node_id": request.node_id,
        "public_key": request.public_key,
        "justification": request.justification,
        "received_at": rfc3339(request.received_at),
        "source": request.source,
    }
    return {key: value for key, value in row.items() if value or key == "node_id"}


def _load_trusted(entry: dict[str, Any]) -> TrustedPeer:
    return TrustedPeer(
        _node(entry),
        _time(entry, "approved_at"),
        member(entry, "public_key", str, ""),
        member(entry, "mutual", bool, False),
        NetworkId(_number(entry, "network", _U16_MAX)),
    )


def _load_pending(entry: dict[str, Any]) -> PendingRequest:
    return PendingRequest(
        _node(entry),
        _time(entry, "received_at"),
        member(entry, "public_key", str, ""),
        member(entry, "justification", str, ""),
        NodeId(_number(entry, "source", _U32_MAX)),
    )


def _entries(record: dict[str, Any], name: str, load: Callable[[dict[str, Any]], T], skipped: list[str]) -> Iterator[T]:
    for entry in member(record, name, list, []):
        try:
            if not isinstance(entry, dict):
                raise DecodeError("not an object")
            yield load(entry)
        except DecodeError as exc:
            skipped.append(f"{name}: {exc}")


def _node(entry: dict[str, Any]) -> NodeId:
    return NodeId(_number(entry, "node_id", _U32_MAX))


def _number(entry: dict[str, Any], key: str, maximum: int) -> int:
    value: int = member(entry, key, int, 0)
    if not 0 <= value <= maximum:
        raise DecodeError(f"{key} is {value}")
    return value


def _time(entry: dict[str, Any], key: str) -> float:
    text = member(entry, key, str, "")
    moment = parse_rfc3339(text)
    if moment is None:
        raise DecodeError(f"not a time: {text!r}")
    return moment
