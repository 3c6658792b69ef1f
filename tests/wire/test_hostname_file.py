from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire.hostname_file import KnownName, dump_names, load_names

ANSWER = {"type": "resolve_hostname_ok", "node_id": 2, "address": "0:0000.0000.0002", "public": True}
# What the original daemon 1.18.0 wrote, but for the number of members in the answer.
CAPTURED = (
    b'{"saved_at":"2026-11-26T10:47:50.319837272Z","hostnames":{"beta":{"resp":{"hostname":"beta","node_id":2,'
    b'"type":"resolve_hostname_ok"},"cached_at":"2026-11-26T10:47:50.318572801Z"}}}'
)


def test_the_originals_file_is_read() -> None:
    (known,) = load_names(CAPTURED)
    assert known.name == "beta"
    assert known.answer == {"hostname": "beta", "node_id": 2, "type": "resolve_hostname_ok"}
    assert known.answered_at == pytest.approx(1_795_690_070.3185728, abs=1e-5)


def test_the_file_looks_like_the_originals() -> None:
    assert dump_names([KnownName("beta", 1_795_690_070.5, {"node_id": 2})], 1_795_690_071.0) == (
        b'{"saved_at":"2026-11-26T10:47:51Z",'
        b'"hostnames":{"beta":{"resp":{"node_id":2},"cached_at":"2026-11-26T10:47:50.5Z"}}}'
    )


@given(st.dictionaries(st.text(max_size=63), st.integers(0, 4_000_000_000), max_size=5))
def test_what_is_written_is_read(names: dict[str, int]) -> None:
    known = [KnownName(name, float(at), ANSWER) for name, at in names.items()]
    assert load_names(dump_names(known, 0.0)) == known


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        {},
        {"resp": ANSWER},
        {"resp": ANSWER, "cached_at": 5},
        {"resp": ANSWER, "cached_at": "yesterday"},
        {"resp": None, "cached_at": "2026-11-26T10:47:50Z"},
        {"resp": {"node_id": True}, "cached_at": "2026-11-26T10:47:50Z"},
        {"resp": {"node_id": 0}, "cached_at": "2026-11-26T10:47:50Z"},
        {"resp": {"node_id": 1 << 32}, "cached_at": "2026-11-26T10:47:50Z"},
    ],
)
def test_a_row_that_says_nothing_is_left_out(row: Any) -> None:
    good = {"resp": ANSWER, "cached_at": "2026-11-26T10:47:50Z"}
    content = json.dumps({"hostnames": {"bad": row, "good": good}}).encode()
    assert [known.name for known in load_names(content)] == ["good"]


@given(st.binary(max_size=60) | st.just(b'{"hostnames":[]}'))
def test_anything_else_is_refused_or_empty(content: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert load_names(content) == []
