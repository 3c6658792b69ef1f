"""Documents that the registry keeps without understanding them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.directory.documents import DOCUMENT_DEPTH_MAX, DOCUMENT_MAX, parse_expr_policy, parse_rules
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.wire.canonical_json import dumps

RULES = {"links": 3, "cycle": "1m", "prune": 1, "prune_by": "age", "fill": 1, "fill_how": "random"}


def policy(**fields: Any) -> dict[str, Any]:
    return {"version": 1, "rules": [{}], **fields}


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("{", "expr_policy: invalid JSON: "),
        ("[]", "expr_policy: invalid JSON: must be an object"),
        (7, "expr_policy: invalid JSON: must be an object"),
        ("[" * 100_000, "expr_policy too long"),
        ("[" * 5000, "expr_policy: invalid JSON: "),
        ({}, "expr_policy: unsupported version 0 (want 1)"),
        (policy(version=2), "expr_policy: unsupported version 2 (want 1)"),
        (policy(version=True), "expr_policy: unsupported version 0 (want 1)"),
        (policy(version="1"), "expr_policy: unsupported version 0 (want 1)"),
        (policy(rules=[]), "expr_policy: at least one rule is required"),
        (policy(rules={"a": 1}), "expr_policy: at least one rule is required"),
        ('{"version":1,"rules":[NaN]}', "expr_policy: invalid JSON: nested"),
        (policy(x=float("inf")), "expr_policy: invalid JSON: nested"),
        (policy(x=10**400), "expr_policy: invalid JSON: nested"),
        (policy(x=-(2**63) - 2000), "expr_policy: invalid JSON: nested"),
    ],
)
def test_documents_that_are_no_policies(given_: object, text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_expr_policy(given_)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("nothing", [None, "", "null", " null "])
def test_nothing_is_no_document(nothing: object) -> None:
    assert parse_expr_policy(nothing) is None
    assert parse_rules(nothing) is None


@pytest.mark.parametrize(("depth", "fits"), [(DOCUMENT_DEPTH_MAX - 2, True), (DOCUMENT_DEPTH_MAX, False)])
def test_depth_is_bounded(depth: int, fits: bool) -> None:
    nested: Any = 0
    for _ in range(depth):
        nested = [nested]
    if fits:
        assert parse_expr_policy(policy(x=nested)) is not None
    else:
        with pytest.raises(Refused, match="nested deeper than 32 levels"):
            parse_expr_policy(policy(x=nested))


@pytest.mark.parametrize(("surplus", "fits"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("as_text", [True, False])
def test_size_is_bounded(surplus: int, fits: bool, as_text: bool) -> None:
    fill = DOCUMENT_MAX + surplus - len(json.dumps(policy(x="")))
    document = policy(x="x" * fill)
    given_ = json.dumps(document) if as_text else document
    if fits:
        assert parse_expr_policy(given_) == document
    else:
        with pytest.raises(Refused, match=r"expr_policy too long \(max 65536 bytes\)"):
            parse_expr_policy(given_)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=30))
def test_what_is_taken_can_be_written(value: Any) -> None:
    try:
        document = parse_expr_policy(policy(x=value))
    except Refused:
        return
    assert document is not None
    assert json.loads(dumps(document))["version"] == 1


def test_rules_of_a_managed_network() -> None:
    assert parse_rules(RULES) == RULES
    assert parse_rules(json.dumps(RULES)) == RULES
    assert parse_rules(RULES | {"grace": "1h30m", "cycle": "90.5s"}) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"links": 0}, {"links": "3"}, {"links": None}, {"links": True}, {"prune": 4}, {"prune": -1}, {"fill": 4}, {"fill": 1.5},
        {"cycle": "59s"}, {"cycle": ""}, {"cycle": "1"}, {"cycle": "1x"}, {"cycle": 60}, {"cycle": None}, {"cycle": "-1m"},
        {"cycle": "1" * 100 + "m"}, {"prune_by": "luck"}, {"fill_how": "sorted"}, {"grace": "soon"}, {"grace": 5},
    ],
)  # fmt: skip
def test_rules_that_no_daemon_could_run(change: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"^rules: invalid"):
        parse_rules(RULES | change)
