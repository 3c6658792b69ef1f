"""What one list of an Info body says of the other (`spec/ipc.md` §5.9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pilot_trio.address import Address
from pilot_trio.errors import DecodeError


def with_paths(connections: Iterable[Mapping[str, Any]], peers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of connections with the path that their packets take: `relay` and `relay_reason`, as their peer's row says.

    Rows that say it themselves stay as they are. The original's daemon names no reasons, and no path of a connection.
    """
    paths = {str(row.get("node_id")): (bool(row.get("relay")), row.get("relay_reason") or "") for row in peers}
    rows = []
    for connection in connections:
        relay, reason = paths.get(_remote_node(connection), (False, ""))
        rows.append({"relay": relay, "relay_reason": reason, **connection})
    return rows


def _remote_node(connection: Mapping[str, Any]) -> str:
    try:
        return str(Address.parse(str(connection.get("remote_addr"))).node)
    except DecodeError:
        return ""
