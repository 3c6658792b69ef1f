"""`trust.json` (`spec/services.md` §1.13)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.proto.trust import REQUEST_LIFETIME, PendingRequest, TrustedPeer, TrustTable
from pilot_trio.proto.trust_file import dump_trust, load_trust
from pilot_trio.wire.times import rfc3339

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())["trust_json"]
NOW = 1_795_458_660.0  # 2026-11-23T18:31:00Z

nodes = st.integers(0, 0xFFFFFFFF).map(NodeId)
seconds = st.integers(0, 4_000_000_000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_the_recorded_file_is_read_and_written_back() -> None:
    content = json.dumps(VECTOR["example"], indent=2)
    table, skipped = load_trust(content.encode(), NOW)
    assert skipped == []
    assert table.trusted[NodeId(1)].mutual
    assert table.pending[NodeId(301)].source == 301
    assert dump_trust(table).decode() == content


def test_an_empty_table() -> None:
    assert dump_trust(TrustTable()).decode() == VECTOR["empty_file_text"]
    table, skipped = load_trust(VECTOR["empty_file_text"].encode(), NOW)
    assert (table.trusted, skipped) == ({}, [])


def test_zero_members_are_left_out() -> None:
    table = TrustTable()
    table.trusted[NodeId(1)] = TrustedPeer(NodeId(1), NOW)
    table.pending[NodeId(2)] = PendingRequest(NodeId(2), NOW)
    record = json.loads(dump_trust(table))
    assert set(record) == {"trusted", "pending"}
    assert record["trusted"] == [
        {"node_id": 1, "public_key": "", "approved_at": "2026-11-23T18:31:00Z", "mutual": False}
    ]
    assert record["pending"] == [{"node_id": 2, "received_at": "2026-11-23T18:31:00Z"}]


@given(
    st.dictionaries(nodes, st.tuples(seconds, texts, st.booleans(), st.integers(0, 0xFFFF).map(NetworkId)), max_size=5),
    st.dictionaries(nodes, st.tuples(seconds, texts, texts, nodes), max_size=5),
    st.dictionaries(nodes, st.integers(int(NOW) + 1, 4_000_000_000), max_size=5),
    st.dictionaries(nodes, st.integers(int(NOW - REQUEST_LIFETIME), 4_000_000_000), max_size=5),
)
def test_what_is_written_is_read(
    trusted: dict[NodeId, Any], pending: dict[NodeId, Any], revoked: dict[NodeId, int], outgoing: dict[NodeId, int]
) -> None:
    table = TrustTable()
    table.trusted = {node: TrustedPeer(node, *fields) for node, fields in trusted.items()}
    table.pending = {node: PendingRequest(node, *fields) for node, fields in pending.items()}
    table.revoked = dict(revoked)
    table.outgoing.update(outgoing)
    again, skipped = load_trust(dump_trust(table), NOW)
    assert skipped == []
    assert again.trusted == table.trusted
    assert again.pending == table.pending
    assert again.revoked == table.revoked
    assert dict(again.outgoing) == dict(table.outgoing)


def test_expired_entries_stay_out_and_pending_ones_wait_for_the_reaper() -> None:
    old = rfc3339(NOW - REQUEST_LIFETIME - 1)
    content = {
        "pending": [{"node_id": 1, "received_at": old}],
        "revoked": [{"node_id": 2, "until": rfc3339(NOW)}, {"node_id": 3, "until": rfc3339(NOW + 1)}],
        "outgoing": [{"node_id": 4, "sent_at": old}, {"node_id": 5, "sent_at": rfc3339(NOW - REQUEST_LIFETIME)}],
    }
    table, skipped = load_trust(json.dumps(content).encode(), NOW)
    assert (set(table.pending), set(table.revoked), set(table.outgoing), skipped) == ({1}, {3}, {5}, [])
    assert table.reap(NOW) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"node_id": 1, "approved_at": "yesterday"},
        {"node_id": 1},
        {"node_id": 1, "approved_at": "2026-11-23T18:31:00"},
        {"node_id": -1, "approved_at": "2026-11-23T18:31:00Z"},
        {"node_id": "1", "approved_at": "2026-11-23T18:31:00Z"},
        {"node_id": 1, "approved_at": "2026-11-23T18:31:00Z", "network": 65_536},
        {"node_id": 1, "approved_at": "2026-11-23T18:31:00Z", "mutual": "yes"},
        17,
    ],
)
def test_an_unusable_entry_is_skipped_alone(entry: Any) -> None:
    good = {"node_id": 9, "approved_at": "2026-11-23T19:31:00.123456789+01:00", "public_key": "", "mutual": True}
    table, skipped = load_trust(json.dumps({"trusted": [entry, good]}).encode(), NOW)
    assert set(table.trusted) == {9}
    assert int(table.trusted[NodeId(9)].approved_at) == NOW
    assert len(skipped) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"trusted": 7}', b"\xff"])
def test_an_unusable_file_is_a_decode_error(content: bytes) -> None:
    with pytest.raises(DecodeError):
        load_trust(content, NOW)


@given(st.binary())
def test_arbitrary_content_is_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(DecodeError):
        load_trust(content, NOW)
