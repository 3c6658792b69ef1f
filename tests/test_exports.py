"""The public names: each has one home, and static tools see what a program gets."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pilot_trio

STATIC = ast.parse(Path(pilot_trio.__file__).read_text())


def names_for_type_checkers() -> dict[str, str]:
    block = next(node for node in STATIC.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_programs_see_the_same_names() -> None:
    homes = names_for_type_checkers()
    assert sorted(homes) == sorted(set(pilot_trio.__all__) - {"__version__"})
    assert homes == pilot_trio._HOME_OF


@pytest.mark.parametrize("name", sorted(pilot_trio.__all__))
def test_public_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(pilot_trio, name)
    assert name in dir(pilot_trio)
    if name not in {"__version__", "NodeId"}:
        assert value.__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pilot_trio.nonsense


def test_package_loads_nothing_until_something_is_used() -> None:
    code = "import sys, pilot_trio; sys.exit(any(m in sys.modules for m in ('trio', 'attrs', 'cryptography')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_is_that_of_the_package() -> None:
    metadata = importlib.import_module("importlib.metadata")
    assert pilot_trio.__version__ == metadata.version("pilot-trio")


def test_every_public_error_is_exported() -> None:
    errors = importlib.import_module("pilot_trio.errors")
    own = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert own <= set(pilot_trio.__all__)
