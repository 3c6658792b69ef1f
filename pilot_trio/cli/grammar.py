"""The argument grammar of the command line (`spec/cli.md` §2.1).

Flags are `--key value`, `-key value` or either with `=`; `--json` stands anywhere, `-1` is a plain word, and flags that a
version does not know are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

GLOBAL_FLAGS: Final = frozenset({"--json", "--verbose", "-v"})
HELP_FLAGS: Final = frozenset({"-h", "--help"})
_NUMBER: Final = re.compile(r"-[0-9]|-\.[0-9]")
_TRUE: Final = frozenset({"true", "1", ""})
_SWITCH_VALUES: Final = frozenset({"true", "false", "1", "0"})


class Globals(NamedTuple):
    """The flags that may stand anywhere."""

    as_json: bool
    verbose: bool


class Normalised(NamedTuple):
    """A command's words, sorted."""

    flags: list[tuple[str, str]]  # name and text in the order given, switches that are on with their text
    plain: list[str]
    unknown: list[str]  # flags that were dropped because the command does not have them


def take_globals(argv: Sequence[str]) -> tuple[Globals, list[str]]:
    """Separate the global flags from the other words. After `--` every word is plain."""
    end = argv.index("--") if "--" in argv else len(argv)
    found = GLOBAL_FLAGS.intersection(argv[:end])
    rest = [word for word in argv[:end] if word not in GLOBAL_FLAGS] + list(argv[end:])
    return Globals("--json" in found, bool(found & {"--verbose", "-v"})), rest


def normalise(words: Sequence[str], options: Mapping[str, bool]) -> Normalised:
    """Sort a command's words; `options` says for each flag name whether it is a switch (takes no value)."""
    flags: list[tuple[str, str]] = []
    plain: list[str] = []
    unknown: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            plain += left
            break
        if not is_flag(word):
            plain.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        switch = options.get(name)
        if not equals:
            wanted = left and (left[0] in _SWITCH_VALUES if switch else not is_flag(left[0]))
            value = left.pop(0) if wanted else "true"
        if switch is None:
            unknown.append(f"--{name}")
        elif not switch or value in _TRUE:
            flags.append((name, value))
    return Normalised(flags, plain, unknown)


def is_flag(word: str) -> bool:
    """Say whether a word is a flag: it begins with `-`, and is neither `-` itself nor a negative number."""
    return word.startswith("-") and word != "-" and not _NUMBER.match(word)
