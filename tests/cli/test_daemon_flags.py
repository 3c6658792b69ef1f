"""The daemon's flag grammar, help layout and table."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.cli.daemon_flags import BY_KEY, BY_NAME, FLAGS, FlagError, Kind, help_text, markdown_table, parse_argv

# What `pilotctl daemon start` was seen to pass.
STARTED_BY_PILOTCTL = (
    "--registry 127.0.0.1:9000 --beacon 127.0.0.1:9001 --listen :0 --socket /tmp/x.sock --identity /tmp/identity.json "
    "--log-level info --log-format text --encrypt=false --email a@b --hostname h --config /tmp/c.json --public "
    "--webhook http://127.0.0.1/ --networks 1,2 --trust-auto-approve --endpoint 192.0.2.1:1 --compat-beacon wss://x "
    "--registry-trust system --registry-fingerprint 00 --tls-trust system --motd-feed-url x --motd-interval 5m "
    "--transport auto --proxy off"
)


def test_everything_that_pilotctl_passes_is_understood() -> None:
    given_flags = parse_argv(STARTED_BY_PILOTCTL.split())
    assert given_flags["registry"] == "127.0.0.1:9000"
    assert given_flags["encrypt"] is False
    assert given_flags["public"] is True
    assert given_flags["motd-interval"] == 300.0
    assert given_flags["transport"] == "auto"
    assert len(given_flags) == STARTED_BY_PILOTCTL.count("--")


@pytest.mark.parametrize("form", ["-keepalive 5s", "-keepalive=5s", "--keepalive 5s", "--keepalive=5s"])
def test_all_four_forms_of_a_flag_are_equal(form: str) -> None:
    assert parse_argv(form.split()) == {"keepalive": 5.0}


@pytest.mark.parametrize(
    ("words", "value"),
    [("-public", True), ("-public=false", False), ("-public=T", True), ("-public=0", False), ("-public false", True)],
)
def test_a_boolean_takes_its_value_after_the_equals_sign_only(words: str, value: bool) -> None:
    assert parse_argv(words.split())["public"] is value


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("-3", -3), ("+3", 3), ("0x10", 16), ("0b11", 3), ("010", 8), ("0o10", 8), ("1_000", 1000), ("0", 0)],
)
def test_integers_are_written_as_in_go(text: str, value: int) -> None:
    assert parse_argv([f"-syn-rate-limit={text}"]) == {"syn-rate-limit": value}


@pytest.mark.parametrize("end", ["--", "-", "word", ""])
def test_the_first_word_that_is_no_flag_ends_the_flags(end: str) -> None:
    assert parse_argv(["-public", end, "-nonsense"]) == {"public": True}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-foo"], "flag provided but not defined: -foo"),
        (["--foo=1"], "flag provided but not defined: -foo"),
        (["-keepalive", "abc"], 'invalid value "abc" for flag -keepalive: parse error'),
        (["-keepalive", "5"], 'invalid value "5" for flag -keepalive: parse error'),
        (["-keepalive="], 'invalid value "" for flag -keepalive: parse error'),
        (["-public=zz"], 'invalid boolean value "zz" for -public: parse error'),
        (["-syn-rate-limit", "x"], 'invalid value "x" for flag -syn-rate-limit: parse error'),
        (["-syn-rate-limit", "09"], 'invalid value "09" for flag -syn-rate-limit: parse error'),
        (["-syn-rate-limit", "9" * 20], f'invalid value "{"9" * 20}" for flag -syn-rate-limit: value out of range'),
        (["-syn-rate-limit", "9" * 9999], f'invalid value "{"9" * 9999}" for flag -syn-rate-limit: value out of range'),
        (["-registry"], "flag needs an argument: -registry"),
        (["-=x"], "bad flag syntax: -=x"),
        (["---x"], "bad flag syntax: ---x"),
    ],
)
def test_a_bad_flag_is_refused_with_the_words_of_the_reference(words: list[str], error: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse_argv(words)
    assert str(caught.value) == error


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_give_flags_or_a_flag_error(words: list[str]) -> None:
    try:
        parsed = parse_argv(words)
    except FlagError:
        return
    assert set(parsed) <= set(BY_NAME)


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help_wins_over_whatever_follows(word: str) -> None:
    assert parse_argv([word, "-nonsense"]) == {"help": True}


def test_the_help_has_the_layout_that_pilotctl_reads() -> None:
    lines = help_text("pilot-daemon").splitlines()
    assert lines[0] == "Usage of pilot-daemon:"
    assert len(lines) == 1 + 2 * len(FLAGS)
    for head, usage in zip(lines[1::2], lines[2::2], strict=True):
        assert re.fullmatch(r"  -[a-z0-9-]+( string| int| duration)?", head)
        assert usage.startswith("    \t")
    transport = lines[lines.index("  -transport string") + 1]
    assert "'auto'" in transport
    assert "  -proxy string" in lines


def test_defaults_are_shown_as_go_shows_them() -> None:
    text = help_text("x")
    assert 'registry address host:port (default "34.71.57.205:9000")' in text
    assert "encrypt tunnels (default true)" in text
    assert "(default 1m0s)" in text
    assert "(default 1024)" in text


def test_flag_names_and_keys_are_unique_and_defaults_have_their_type() -> None:
    assert len(BY_NAME) == len(FLAGS)
    types = {Kind.TEXT: str, Kind.BOOL: bool, Kind.INT: int, Kind.DURATION: float}
    for flag in FLAGS:
        assert type(flag.default) is types[flag.kind], flag.name
        assert flag.usage
    assert "config" not in BY_KEY


def test_the_table_names_every_public_flag() -> None:
    table = markdown_table()
    for flag in FLAGS:
        assert (f"| `-{flag.name}` |" in table) is flag.public
