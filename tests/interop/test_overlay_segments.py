"""Segments grow between our own nodes on a path that carries them, and a reference node never gets a large one."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, open_overlay
from tests.interop.traffic import MIB, open_flow

pytestmark = pytest.mark.interop

PORT = 5000
PAIRS: list[tuple[Kind, Kind]] = [("ours", "ours"), ("ours", "go")]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("sender_kind", "receiver_kind"), PAIRS)
async def test_segments_are_as_large_as_the_peer_is_known_to_like(
    overlay: Overlay, sender_kind: Kind, receiver_kind: Kind
) -> None:
    sender, receiver = await overlay.start(sender_kind), await overlay.start(receiver_kind)
    async with sender.driver() as driver, receiver.driver() as other:
        flow = await open_flow(driver, other, receiver, PORT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.send)
            nursery.start_soon(flow.receive)
            with trio.fail_after(60):
                await flow.wait_for(8 * MIB)
            row = (await flow.sender.statistics()).raw
            flow.finish()
    usual = row["bytes_sent"] / row["segs_sent"]
    large = receiver_kind == "ours" and sys.platform == "linux"  # elsewhere the system does not tell a route's MTU
    assert (4096 < usual <= 8192) if large else usual <= 1152
