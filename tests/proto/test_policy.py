"""Policy documents (`spec/services.md` §7.3)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.proto.policy import ACTIONS, EVENTS, POLICY_MAX, parse_policy

RULE: dict[str, Any] = {"name": "r1", "on": "connect", "match": "true", "actions": [{"type": "allow"}]}


def document(**changes: Any) -> bytes:
    return json.dumps({"version": 1, "rules": [RULE], **changes}).encode()


def with_rule(**changes: Any) -> bytes:
    return document(rules=[{**RULE, **changes}])


def test_the_text_is_kept_as_it_came() -> None:
    text = '{"version":1, "rules":[' + json.dumps(RULE) + '], "a":"\\u00e9"}'
    policy = parse_policy(f" {text}\n".encode())
    assert policy.text == text
    assert policy.rules == ("r1",)


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_known_events(event: str) -> None:
    assert parse_policy(with_rule(on=event)).rules == ("r1",)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_known_actions(action: str) -> None:
    assert parse_policy(with_rule(actions=[{"type": action, "params": {"x": 1}}])).rules == ("r1",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"xx", "policy: invalid JSON: invalid character 'x' looking for beginning of value"),
        (b"[]", "policy: invalid JSON: json: cannot unmarshal array into Go value of type object"),
        (
            b'{"version":"1"}',
            "policy: invalid JSON: json: cannot unmarshal string into Go struct field .version of type int",
        ),
        (b"{}", "policy: unsupported version 0 (want 1)"),
        (b"null", "policy: unsupported version 0 (want 1)"),
        (document(version=2), "policy: unsupported version 2 (want 1)"),
        (document(rules=[]), "policy: at least one rule is required"),
        (document(rules=None), "policy: at least one rule is required"),
        (
            document(rules=["x"]),
            "policy: invalid JSON: json: cannot unmarshal string into Go value of type policylang.Rule",
        ),
        (with_rule(name=""), "policy: rule[0]: name is required"),
        (with_rule(on="sunset"), 'policy: rule "r1": unknown event type "sunset"'),
        (with_rule(actions=[]), 'policy: rule "r1": at least one action is required'),
        (with_rule(match=""), 'policy: rule "r1": match expression is required'),
        (
            with_rule(actions=["allow"]),
            "policy: invalid JSON: json: cannot unmarshal string into Go value of type policylang.Action",
        ),
        (with_rule(actions=[{"type": "explode"}]), 'policy: rule "r1" action[0]: unknown action type "explode"'),
        (
            with_rule(name=7),
            "policy: invalid JSON: json: cannot unmarshal number into Go struct field .name of type string",
        ),
    ],
)
def test_what_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(DecodeError, match=rf"^{re.escape(text)}$"):
        parse_policy(content)


@pytest.mark.parametrize(("size", "fits"), [(POLICY_MAX - 1, True), (POLICY_MAX, True), (POLICY_MAX + 1, False)])
def test_the_size_is_bounded(size: int, fits: bool) -> None:
    content = document()
    padded = content[:-1] + b" " * (size - len(content)) + b"}"
    if fits:
        parse_policy(padded)
    else:
        with pytest.raises(DecodeError, match=r"^policy: document of "):
            parse_policy(padded)


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["version", "rules", "name", "on", "actions", "type"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_content_is_taken_or_refused(content: bytes) -> None:
    reason = "policy: fine"
    try:
        parse_policy(content)
    except DecodeError as exc:
        reason = str(exc)
    assert reason.startswith("policy: ")
