"""Fixtures for tests against the real programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pilot_trio.net.network import Endpoint
from tests.interop.go import GoHome, GoPrograms

GO_VERSION = "1.18.0"  # that of the protocol's documents
REQUIRED = "PILOT_TRIO_INTEROP_REQUIRED"  # set by `nox -s interop`: there a run without the programs has failed

# The longest files first, lest one worker ends with such a one while the others have nothing left.
FIRST = (
    "test_overlay_mixed_network.py",
    "test_messages_files_events.py",
    "test_overlay_busy.py",
    "test_overlay_streams.py",
    "test_services_on_our_node.py",
    "test_overlay_sdk.py",
    "test_pilotctl_commands.py",
    "test_overlay_kills.py",
    "test_overlay_idle.py",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lives here is an interop test: a file that forgets the mark would be chosen by nobody."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.interop)
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def go_programs() -> GoPrograms:
    """The real 1.18.0 programs."""
    programs = GoPrograms.find()
    if programs is None:
        missing = f"the real programs are not installed; `pip install pilotprotocol=={GO_VERSION}` brings them"
        if os.environ.get(REQUIRED):
            pytest.fail(missing)
        pytest.skip(missing)
    assert metadata.version("pilotprotocol") == GO_VERSION
    return programs


@pytest.fixture
def make_go_home(go_programs: GoPrograms) -> Iterator[Callable[[Endpoint, Endpoint], GoHome]]:
    """Make homes for real daemons, `make_go_home(registry, beacon)`; they are removed after the test."""
    homes: list[GoHome] = []

    def make(registry: Endpoint, beacon: Endpoint) -> GoHome:
        homes.append(GoHome.create(go_programs, registry=registry, beacon=beacon))
        return homes[-1]

    yield make
    for home in homes:
        home.remove()
