"""Connections learn their path from their peer's row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.wire.info_rows import with_paths

PEERS: list[dict[str, Any]] = [
    {"node_id": 6, "relay": True, "relay_reason": "direct path silent"},
    {"node_id": 7, "relay": False, "relay_reason": ""},
    {"node_id": 8, "relay": True},  # the original's daemon gives no reasons
]


@pytest.mark.parametrize(
    ("address", "relay", "reason"),
    [
        ("0:0000.0000.0006", True, "direct path silent"),
        ("9:0009.0000.0006", True, "direct path silent"),  # in another network it is the same node
        ("0:0000.0000.0007", False, ""),
        ("0:0000.0000.0008", True, ""),
        ("0:0000.0000.0009", False, ""),
        ("nonsense", False, ""),
    ],
)
def test_a_connection_takes_the_path_of_its_peer(address: str, relay: bool, reason: str) -> None:
    (row,) = with_paths([{"id": 1, "remote_addr": address}], PEERS)
    assert row == {"id": 1, "remote_addr": address, "relay": relay, "relay_reason": reason}


def test_what_a_row_says_itself_is_left_alone() -> None:
    row = {"remote_addr": "0:0000.0000.0006", "relay": False, "relay_reason": "mine"}
    assert with_paths([row], PEERS) == [row]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=3)
ROWS = st.lists(st.dictionaries(st.sampled_from(["remote_addr", "node_id", "relay", "relay_reason"]), JSON))


@given(ROWS, ROWS)
def test_no_row_is_an_error(connections: list[dict[str, Any]], peers: list[dict[str, Any]]) -> None:
    rows = with_paths(connections, peers)
    assert [row | connection for row, connection in zip(rows, connections, strict=True)] == rows
