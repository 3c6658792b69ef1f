"""Between the tables and a store: rows of changes out, stored rows in.

A row is named by its table and a key: one or two ids joined by a colon, or a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import attrs

from pilot_trio.address import NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.proto.directory.records import (
    Binding,
    Invite,
    Mail,
    Membership,
    NetworkRecord,
    Node,
    Row,
    from_row,
    to_row,
)
from pilot_trio.proto.directory.tables import Tables

V = TypeVar("V")


class Change(NamedTuple):
    """One row to store: the whole row, or None to delete it."""

    table: str
    key: str
    row: Row | None


def take_changes(tables: Tables) -> list[Change]:
    """Return the rows that changed since the last call, as they are now."""
    return [Change(table, ":".join(map(str, key)), _render(tables, table, key)) for table, key in tables.take_journal()]


def load(tables: Tables, rows: Iterable[tuple[str, str, Any]], now: float) -> None:
    """Fill empty tables from stored rows, in any order; raise `DecodeError` for rows that cannot be.

    Every node gets the grace of having been heard at `now`: it had no chance to be heard while nobody listened.
    """
    for table, key, row in rows:
        try:
            _load_row(tables, table, key, row)
        except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise DecodeError(f"stored row {table}/{key}: {exc}") from exc
    tables.take_journal()
    tables.reaped_at = now
    for node in tables.nodes.values():
        node.stale_from = now
        node.stored_seen = node.last_seen
    for mails in (*tables.requests.values(), *tables.responses.values()):
        _reorder(mails, lambda mail: mail.timestamp)
    for invites in tables.invites.values():
        _reorder(invites, lambda invite: invite.timestamp)
    for asking in tables.pending.values():
        _reorder(asking, lambda asked_at: asked_at)
    _check(tables)


def _node(tables: Tables, node_id: int) -> Row | None:
    node = tables.nodes.get(node_id)
    if node is None:
        return None
    node.stored_seen = node.last_seen
    return to_row(node)


def _row(record: attrs.AttrsInstance | None) -> Row | None:
    return None if record is None else to_row(record)


def _value(name: str, value: float | None) -> Row | None:
    return None if value is None else {name: value}


def _render(tables: Tables, table: str, key: tuple[Any, ...]) -> Row | None:
    """Return a row as it is now, None if it is gone."""
    if table == "meta":
        return {"created_at": tables.created_at, "next_node": tables.next_node, "next_network": tables.next_network}
    return _render_pair(tables, table, *key) if len(key) > 1 else _render_single(tables, table, *key)


def _render_single(tables: Tables, table: str, key: Any) -> Row | None:
    match table:
        case "bindings":
            return _row(tables.bindings.get(key))
        case "nodes":
            return _node(tables, key)
        case "networks":
            return _row(tables.networks.get(key))
        case "nonces":
            return _value("expires_at", tables.nonces.get(key))
        case _:
            raise ValueError(f"unknown table {table}")


def _render_pair(tables: Tables, table: str, a: int, b: int) -> Row | None:
    match table:
        case "members":
            return _row(tables.members.get(a, {}).get(NodeId(b)))
        case "trust":
            return {} if (a, b) in tables.trust else None
        case "requests":
            return _row(tables.requests.get(a, {}).get(b))
        case "responses":
            return _row(tables.responses.get(a, {}).get(b))
        case "pending":
            return _value("timestamp", tables.pending.get(a, {}).get(b))
        case "invites":
            return _row(tables.invites.get(a, {}).get(b))
        case _:
            raise ValueError(f"unknown table {table}")


def _load_row(tables: Tables, table: str, key: str, row: Any) -> None:
    if table == "meta":
        tables.created_at, tables.next_node = float(row["created_at"]), int(row["next_node"])
        tables.next_network = int(row["next_network"])
    elif table == "nonces":
        tables.nonces[key] = float(row["expires_at"])
    else:
        first, _, second = key.partition(":")
        if second:
            _load_pair(tables, table, int(first), int(second), row)
        else:
            _load_single(tables, table, int(first), row)


def _load_single(tables: Tables, table: str, number: int, row: Any) -> None:
    match table:
        case "bindings":
            tables.bind(from_row(Binding, row))
        case "nodes":
            node = tables.nodes[number] = from_row(Node, row)
            if node.hostname:
                tables.by_hostname[node.hostname] = node.node_id
        case "networks":
            network = tables.networks[number] = from_row(NetworkRecord, row)
            tables.by_network_name[network.name] = number
            tables.members.setdefault(number, {})
        case _:
            raise ValueError("unknown table")


def _load_pair(tables: Tables, table: str, a: int, b: int, row: Any) -> None:
    match table:
        case "members":
            tables.members.setdefault(a, {})[NodeId(b)] = from_row(Membership, row)
            tables.joined.setdefault(b, set()).add(a)
        case "trust":
            tables.trust.add((a, b))
        case "requests":
            tables.requests.setdefault(a, {})[b] = from_row(Mail, row)
        case "responses":
            tables.responses.setdefault(a, {})[b] = from_row(Mail, row)
        case "pending":
            tables.pending.setdefault(a, {})[b] = float(row["timestamp"])
        case "invites":
            tables.invites.setdefault(a, {})[b] = from_row(Invite, row)
        case _:
            raise ValueError("unknown table")


def _reorder(box: dict[int, V], age: Callable[[V], float]) -> None:
    """Put the oldest first, as it was before it was stored."""
    items = sorted(box.items(), key=lambda item: age(item[1]))
    box.clear()
    box.update(items)


def _check(tables: Tables) -> None:
    # Ids given twice would be the worst failure of all (§9.2), so a store that could cause it is refused.
    if max(tables.bindings, default=0) >= tables.next_node or max(tables.networks, default=0) >= tables.next_network:
        raise DecodeError("stored ids reach beyond their counter")
    if len(tables.by_key) != len(tables.bindings):
        raise DecodeError("two stored ids have one key")
    if not tables.nodes.keys() <= tables.bindings.keys():
        raise DecodeError("a stored node has no key")
    if not tables.members.keys() <= tables.networks.keys():
        raise DecodeError("a stored membership has no network")
