from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.wire.canonical_json import dumps

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('<>&\u2028\u2029\\"'))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(texts, values))
def test_what_is_written_reads_back(value: dict[str, object]) -> None:
    text = dumps(value)
    assert not any(c in text for c in (b"<", b">", b"&", "\u2028".encode(), "\u2029".encode()))
    assert json.loads(text) == value


def test_a_lone_surrogate_does_not_stop_the_answer() -> None:
    assert json.loads(dumps({"a": "x\ud800y"})) == {"a": "x?y"}


def test_keys_are_sorted_at_every_depth_and_markup_is_escaped() -> None:
    assert dumps({"b": {"z": 1, "a": "<&>"}, "a": "é\u2028"}) == (
        b'{"a":"\xc3\xa9\\u2028","b":{"a":"\\u003c\\u0026\\u003e","z":1}}'
    )


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps({"a": float("nan")})
