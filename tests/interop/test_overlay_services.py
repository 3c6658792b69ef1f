"""Messages, files and events between our node and the real daemon, both ways, with pilotctl and our tool."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PATIENCE = 60.0  # seconds for what takes one or two
PAIRS: list[tuple[Kind, Kind]] = [("ours", "go"), ("go", "ours"), ("ours", "ours")]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_messages_and_files_by_tool(overlay: Overlay, near_kind: Kind, far_kind: Kind, tmp_path: Path) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    for kind, text in (("text", "hello"), ("json", '{"a":1}'), ("binary", "raw")):
        assert (await near.ctl("send-message", far.address, "--data", text, "--type", kind)).returncode == 0
    messages = inbox(far)
    assert sorted(message["type"] for message in messages) == ["BINARY", "JSON", "TEXT"]
    assert {message["from"] for message in messages} == {near.address}
    assert len((await far.ctl("inbox")).data["messages"]) == 3

    content = os.urandom(3_000_000)
    path = tmp_path / "cargo.bin"
    path.write_bytes(content)
    for extra in ((), ("--no-stream",)):
        assert (await near.ctl("send-file", far.address, str(path), *extra)).returncode == 0
    stored = [item.read_bytes() for item in (far.home.root / ".pilot" / "received").iterdir() if item.is_file()]
    assert stored == [content] * len(stored)
    assert stored


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_events_by_tool(overlay: Overlay, near_kind: Kind, far_kind: Kind) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    found: list[Any] = []

    async def subscribe(node: OverlayNode) -> None:
        found.append((await node.ctl("subscribe", far.address, "news", "--count", "1", "--timeout", "60s")).data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe, near)
        with trio.fail_after(PATIENCE):
            while not found:  # who subscribes is told nothing; so repeat until it was early enough
                await far.ctl("publish", far.address, "news", "--data", "it is raining")
                await trio.sleep(0.2)
    assert found[0]["events"][0]["data"] == "it is raining"
    assert found[0]["events"][0]["topic"] == "news"


def inbox(node: OverlayNode) -> list[dict[str, Any]]:
    """What a node's clients find: one file per message, which is what the real tool reads."""
    return [json.loads(path.read_bytes()) for path in (node.home.root / ".pilot" / "inbox").glob("*.json")]
