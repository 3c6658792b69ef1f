from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.daemon import hostname_cache as module
from pilot_trio.daemon.hostname_cache import ANSWER_MAX, SAVE_GAP, HostnameCache
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.daemon.timed_cache import FRESH, STALE
from pilot_trio.errors import RegistryUnavailable
from tests.daemon.fakes import FakeClient, make_state, refused, unavailable

NOW = 1_800_000_000.0


def found(node: int = 9, **fields: Any) -> dict[str, Any]:
    return {"type": "resolve_hostname_ok", "node_id": node, "address": "0:0000.0000.0009", **fields}


class Node:
    """A resolver whose names outlive it."""

    def __init__(self, path: Path | None) -> None:
        self.registry = FakeClient({"resolve_hostname": found()})
        self.path = path
        self.away = 0.0  # seconds that passed while no process ran
        self.cache: HostnameCache
        self.resolver: Resolver

    def wall_time(self) -> float:
        return NOW + self.away + trio.current_time()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.cache = HostnameCache(self.path, self.wall_time)
        self.resolver = Resolver(self.registry, make_state(), self.cache)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.cache.run)
            yield
            nursery.cancel_scope.cancel()

    def stored(self) -> dict[str, Any]:
        assert self.path is not None
        names = json.loads(self.path.read_bytes())["hostnames"]
        assert isinstance(names, dict)
        return names


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "hostname_cache.json")


@pytest.mark.parametrize(("away", "served"), [(STALE - 10, True), (STALE, False), (-30, False)])
async def test_a_name_is_known_after_a_restart_without_the_registry(
    autojump_clock: MockClock, node: Node, away: float, served: bool
) -> None:
    async with node.running():
        await node.resolver.resolve_hostname("nine")
    node.registry.answers["resolve_hostname"] = unavailable()
    node.away = away
    async with node.running():
        if served:
            assert await node.resolver.resolve_hostname("nine") == found()
        else:
            with pytest.raises(RegistryUnavailable):
                await node.resolver.resolve_hostname("nine")


@pytest.mark.parametrize(("away", "asked"), [(FRESH - 10, 1), (FRESH, 2)])
async def test_a_restart_makes_no_name_younger(autojump_clock: MockClock, node: Node, away: float, asked: int) -> None:
    async with node.running():
        await node.resolver.resolve_hostname("nine")
    node.away = away
    async with node.running():
        await node.resolver.resolve_hostname("nine")
    assert len(node.registry.calls) == asked


async def test_a_name_that_the_registry_denies_is_gone_from_the_file(autojump_clock: MockClock, node: Node) -> None:
    async with node.running():
        await node.resolver.resolve_hostname("nine")
        await trio.sleep(FRESH)
        node.registry.answers["resolve_hostname"] = refused()
        with pytest.raises(Exception, match="registry"):
            await node.resolver.resolve_hostname("nine")
    assert node.stored() == {}


async def test_a_client_that_resolves_name_after_name_costs_few_writes(
    autojump_clock: MockClock, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[float] = []

    async def save(path: Path, content: bytes) -> None:
        writes.append(trio.current_time())

    monkeypatch.setattr("pilot_trio.net.files.save", save)
    async with node.running():
        for number in range(100):
            await node.resolver.resolve_hostname(f"n{number}")
            await trio.sleep(1)
    assert len(writes) <= 100 / SAVE_GAP + 2


async def test_the_file_holds_a_bounded_number_of_names_the_latest_ones(
    autojump_clock: MockClock, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 2)
    async with node.running():
        for name in ("a", "b", "c"):
            await node.resolver.resolve_hostname(name)
        node.registry.answers["resolve_hostname"] = found(junk="x" * ANSWER_MAX)
        for _ in range(2):
            await node.resolver.resolve_hostname("large")
        assert [call.fields["hostname"] for call in node.registry.calls] == ["a", "b", "c", "large", "large"]
    assert list(node.stored()) == ["b", "c"]


async def test_names_too_old_to_serve_are_left_out_of_the_file(autojump_clock: MockClock, node: Node) -> None:
    async with node.running():
        await node.resolver.resolve_hostname("old")
        await trio.sleep(STALE)
        await node.resolver.resolve_hostname("new")
    assert list(node.stored()) == ["new"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"hostnames": 5}', b"\xff"])
async def test_a_file_of_anything_costs_a_warning(
    autojump_clock: MockClock, node: Node, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert node.path is not None
    node.path.write_bytes(content)
    async with node.running():
        assert await node.resolver.resolve_hostname("nine") == found()
    assert "cannot read hostname cache" in caplog.text
    assert list(node.stored()) == ["nine"]


async def test_without_a_home_nothing_is_kept(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(None)
    async with node.running():
        assert await node.resolver.resolve_hostname("nine") == found()
    assert not caplog.text
