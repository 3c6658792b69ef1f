"""Reading JSON with the protocol's error texts (`spec/ipc.md` §5.10)."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire.json_text import member, parse_json, parse_object, parse_strings


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "unexpected end of JSON input"),
        ("  ", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ('"abc', "unexpected end of JSON input"),
        ("[1,", "unexpected end of JSON input"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        ('{"a"x', "invalid character 'x' after object key"),
        ("1 2", "invalid character '2' after top-level value"),
        ('"\n"', "invalid character '\\n' in string literal"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("[-Infinity]", "invalid character 'I' looking for beginning of value"),
        ("[" * 100_000, "exceeded max depth"),
    ],
)
def test_texts(text: str, error: str) -> None:
    with pytest.raises(DecodeError, match=rf"^{re.escape(error)}$"):
        parse_json(text.encode())


@given(st.binary())
def test_any_bytes_give_a_value_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        parse_json(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_values_come_back(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


def test_an_integer_with_thousands_of_digits_is_refused() -> None:
    with pytest.raises(DecodeError):
        parse_json(b"1" * 5000)


def test_strings() -> None:
    assert parse_strings(b'["a",null]') == ["a", ""]
    assert parse_strings(b"null") == []
    for text, kind in (("[1]", "number into Go value of type string"), ("{}", "object into Go value of type []string")):
        with pytest.raises(DecodeError, match=rf"^json: cannot unmarshal {re.escape(kind)}$"):
            parse_strings(text.encode())


def test_objects() -> None:
    assert parse_object(b'{"a":1}') == {"a": 1}
    assert parse_object(b"null") == {}
    with pytest.raises(DecodeError, match=r"^json: cannot unmarshal array into Go value of type object$"):
        parse_object(b"[]")


def test_members() -> None:
    record = {"n": 1, "s": "x", "b": True, "null": None}
    assert member(record, "n", int, 0) == 1
    assert member(record, "absent", int, 7) == 7
    assert member(record, "null", str, "d") == "d"
    assert member(record, "b", bool, False) is True
    for key, kind, default in (("b", int, 0), ("n", bool, False), ("s", int, 0), ("n", str, "")):
        with pytest.raises(DecodeError, match=rf"into Go struct field \.{key} of type "):
            member(record, key, kind, default)
