"""Imports go down only. Each layer says what it may import; everything else is banned, for the reason given with it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import pilot_trio

ROOT = Path(pilot_trio.__file__).parent
PURE_BANS = {
    "trio": "pure layers are driven from outside, so that tests need no loop",
    "socket": "pure layers get bytes and give bytes",
    "ssl": "pure layers get bytes and give bytes",
    "select": "pure layers never wait",
    "time": "time comes in as an argument, so that tests own the clock",
    "logging": "pure code returns what happened; the shell around it logs",
    "random": "entropy comes in as an argument, so that a run can be repeated",
    "secrets": "entropy comes in as an argument, so that a run can be repeated",
    "threading": "pure code has one caller",
    "subprocess": "pure layers do not touch the system",
    "asyncio": "this is Trio's house",
}


class Layer(NamedTuple):
    may_import: frozenset[str]
    reason: str  # for the ban on everything else of ours
    pure: bool = False


def layer(names: str, reason: str, *, pure: bool = False) -> Layer:
    return Layer(frozenset(names.split()), reason, pure)


BASE = "errors address version paths"
LAYERS: dict[str, Layer] = {
    "errors": layer("", "everybody raises these, so they depend on nobody", pure=True),
    "address": layer("errors", "everybody names nodes, so addresses depend on nothing but errors", pure=True),
    "version": layer("", "answers at once, so it loads nothing", pure=True),
    "paths": layer("", "a command line asks at every start, so it loads nothing"),
    "wire": layer(BASE, "formats do not know what is done with them", pure=True),
    "crypto": layer(f"{BASE} wire", "what is sealed and signed are formats, which do not know of it", pure=True),
    "proto": layer(f"{BASE} wire crypto", "state machines do not know who drives them", pure=True),
    "config": layer(f"{BASE} wire net.endpoint rendezvous.settings", "settings are values that load without Trio"),
    "net": layer(f"{BASE} wire crypto proto", "sockets and files do not know what they carry"),
    "registry": layer(f"{BASE} wire crypto proto net", "the registry client serves any node"),
    "driver": layer(f"{BASE} wire crypto proto net", "the driver knows the daemon by its protocol only"),
    "services": layer(f"{BASE} wire crypto proto net", "services run on any Trio listener, not only in our daemon"),
    "daemon": layer(
        f"{BASE} wire crypto proto net config registry services",
        "daemon, driver and rendezvous meet in wire, where each can be replaced by the original",
    ),
    "rendezvous": layer(
        f"{BASE} wire crypto proto net", "daemon, driver and rendezvous meet in wire, where each can be replaced"
    ),
    "serving": layer(
        f"{BASE} wire crypto proto net config registry daemon rendezvous",
        "only this module composes daemon and rendezvous",
    ),
    "testing": layer(
        f"{BASE} wire crypto proto net config registry driver daemon rendezvous serving",
        "fixtures stand beside the command line, on top of everything else",
    ),
    "cli": layer(
        f"{BASE} wire crypto proto net config registry driver daemon rendezvous serving",
        "the command line is on top, and tests' tools are not for production",
    ),
}

SOURCES = sorted(ROOT.rglob("*.py"))


class Import(NamedTuple):
    line: int
    module: str


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            for alias in node.names:
                # `from pilot_trio.wire import ipc` imports the module pilot_trio.wire.ipc.
                yield Import(
                    node.lineno, f"{node.module}.{alias.name}" if node.module == "pilot_trio" else node.module or ""
                )


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def allowed(own: str, module: str) -> bool:
    parts = module.split(".")[1:]
    if not parts or parts[0] == own:
        return True
    return any(parts[: len(name)] == name for name in (entry.split(".") for entry in LAYERS[own].may_import))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_is_below_it(path: Path) -> None:
    own = layer_of(path)
    if own == "__init__":  # the public names come from everywhere
        return
    assert own in LAYERS, f"{path}: a new layer needs a place in the order"
    for line, module in imports_of(path):
        top = module.partition(".")[0]
        if top == "pilot_trio":
            assert allowed(own, module), f"{path}:{line}: {own} may not import {module}: {LAYERS[own].reason}"
        elif LAYERS[own].pure:
            assert top not in PURE_BANS, f"{path}:{line}: {own} may not import {module}: {PURE_BANS[top]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_depends_on_tools_for_tests(path: Path) -> None:
    banned = {"pytest", "hypothesis", "pytest_trio", "pilotprotocol"}
    for line, module in imports_of(path):
        assert module.partition(".")[0] not in banned or layer_of(path) == "testing", f"{path}:{line}: {module}"


def test_layers_form_no_cycle() -> None:
    order = list(LAYERS)
    for name, entry in LAYERS.items():
        for other in entry.may_import:
            if "." not in other:
                assert order.index(other) < order.index(name), f"{name} imports {other}, which comes after it"


@pytest.mark.parametrize(
    ("own", "module", "verdict"),
    [
        ("wire", "pilot_trio.errors", True),
        ("wire", "pilot_trio.proto.limits", False),
        ("config", "pilot_trio.net.endpoint", True),
        ("config", "pilot_trio.net.network", False),
        ("driver", "pilot_trio.daemon.dispatch", False),
        ("rendezvous", "pilot_trio.daemon.node", False),
        ("daemon", "pilot_trio.rendezvous.serve", False),
        ("daemon", "pilot_trio.daemon.commands.state", True),
        ("cli", "pilot_trio.testing", False),
    ],
)
def test_the_rule_itself_tells_allowed_from_banned(own: str, module: str, verdict: bool) -> None:
    assert allowed(own, module) is verdict


PACKAGES = sorted(path.parent for path in ROOT.rglob("__init__.py") if path.parent != ROOT and "cli" not in path.parts)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_says_what_lives_in_it(package: Path) -> None:
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert {name for name in modules | packages if f"`{name}`" not in doc} == set()


def test_modules_form_no_cycle() -> None:
    """Each module can be read after those that it imports. What is imported inside a function, at first use, does not count."""
    dotted = {path: ".".join(("pilot_trio", *path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES}
    names = {name.removesuffix(".__init__"): path for path, name in dotted.items()}
    imports = {
        name: {
            submodule if (submodule := f"{node.module}.{alias.name}") in names else node.module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pilot_trio")
            for alias in node.names
        }
        for name, path in names.items()
    }
    while leaves := {name for name, needed in imports.items() if not needed & imports.keys()}:
        imports = {name: needed for name, needed in imports.items() if name not in leaves}
    assert imports == {}
