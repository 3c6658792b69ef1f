"""The argument grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.cli.grammar import normalise, take_globals

OPTIONS = {"count": False, "data": False, "trace": True, "all": True}


def written(words: list[str]) -> list[str]:
    """Return the words as they are understood, in the one form that needs no rules."""
    done = normalise(words, OPTIONS)
    flags = [f"--{name}" if OPTIONS[name] else f"--{name}={text}" for name, text in done.flags]
    return [*flags, "--", *done.plain]


@pytest.mark.parametrize("form", [["--count", "2"], ["--count=2"], ["-count", "2"], ["-count=2"]])
def test_all_four_forms_of_a_flag_are_equal(form: list[str]) -> None:
    assert written(["x", *form]) == ["--count=2", "--", "x"]


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--data", "-"], ["--data=-", "--"]),
        (["--data", "-1"], ["--data=-1", "--"]),
        (["--data", "-3x"], ["--data=-3x", "--"]),
        (["--data", "-x"], ["--data=true", "--"]),
        (["--data=-x"], ["--data=-x", "--"]),
        (["--data"], ["--data=true", "--"]),
        (["--data="], ["--data=", "--"]),
        (["--data=a=b"], ["--data=a=b", "--"]),
        (["-1", "-3.14", "-"], ["--", "-1", "-3.14", "-"]),
        (["--", "--data", "x"], ["--", "--data", "x"]),
    ],
)
def test_what_counts_as_a_value(words: list[str], want: list[str]) -> None:
    assert written(words) == want


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--trace", "beta"], ["--trace", "--", "beta"]),
        (["--trace", "true", "beta"], ["--trace", "--", "beta"]),
        (["--trace=1"], ["--trace", "--"]),
        (["--trace="], ["--trace", "--"]),
        (["--trace=false"], ["--"]),
        (["--trace=yes"], ["--"]),
        (["--trace", "0", "beta"], ["--", "beta"]),
    ],
)
def test_a_switch_is_true_when_its_value_is_true_one_or_empty(words: list[str], want: list[str]) -> None:
    assert written(words) == want


def test_unknown_flags_are_dropped_with_their_value_and_told_of() -> None:
    done = normalise(["x", "--cont", "3", "y", "-z", "--data=1"], OPTIONS)
    assert (done.flags, done.plain) == ([("data", "1")], ["x", "y"])
    assert done.unknown == ["--cont", "--z"]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("flag", "json", "verbose"), [("--json", True, False), ("-v", False, True), ("--verbose", False, True)]
)
def test_global_flags_may_stand_anywhere(flag: str, at: int, json: bool, verbose: bool) -> None:
    words = ["health", "x"]
    words.insert(at, flag)
    flags, rest = take_globals(words)
    assert (flags.as_json, flags.verbose, rest) == (json, verbose, ["health", "x"])


def test_after_two_dashes_every_word_is_plain() -> None:
    flags, rest = take_globals(["send", "--", "--json"])
    assert (flags.as_json, rest) == (False, ["send", "--", "--json"])


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_words_are_normalised_and_a_second_time_changes_nothing(words: list[str]) -> None:
    once = written(words)
    assert written(once) == once
