"""Nodes that hide their endpoints, of either kind, through our beacon: nobody sends to them but it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import KIB, MIB, echo, open_flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

THERE, BACK = 5000, 5001  # ports
PATIENCE = 60.0  # seconds for what takes a few
SIZE = 300 * KIB  # hundreds of frames through the relay
SEGMENT = 1152  # bytes of a stream in one frame


@pytest.fixture
async def overlay(make_go_home: MakeHome, tmp_path: Path) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home, tmp_path / "store") as opened:
        yield opened


async def ping(node: OverlayNode, to: OverlayNode) -> None:
    result = await node.ctl("ping", to.address, "--count", "2", "--timeout", "15s", timeout=40)
    assert result.returncode == 0, (result, *to.log[-20:])


async def check_echo(node: OverlayNode, to: OverlayNode) -> None:
    async with node.driver() as driver:
        await echo(driver, to, SIZE)


async def is_relayed(node: OverlayNode, to: OverlayNode) -> bool:
    await trio.sleep(0.25)  # daemons answer with rows up to 200 ms old
    (row,) = (row for row in (await node.info())["peer_list"] if row["node_id"] == to.node_id)
    return bool(row["relay"])


def relayed(overlay: Overlay) -> int:
    """How many frames the beacon has relayed since its start."""
    beacon = overlay.rendezvous.handle.statistics().beacon
    assert beacon is not None
    return beacon.relayed


@pytest.mark.parametrize(
    ("hidden", "other", "both"),
    [
        ("ours", "ours", True),
        ("ours", "ours", False),
        ("ours", "go", False),
        ("go", "ours", False),
        ("go", "ours", True),
    ],
)
async def test_a_hidden_node_is_reached_and_reaches_others(
    overlay: Overlay, hidden: Kind, other: Kind, both: bool
) -> None:
    with trio.fail_after(PATIENCE):
        one = await overlay.start(hidden, "-relay-only")
        two = await overlay.start(other, *(["-relay-only"] if both else []))
        await ping(two, one)
        await ping(one, two)
        before = relayed(overlay)
        await check_echo(two, one)
        assert await is_relayed(two, one)
        # Each byte went there and back. Nothing did in another way, unless the real daemon shows where it is itself.
        assert relayed(overlay) - before >= (2 if hidden == "ours" or both else 1) * SIZE / SEGMENT
        await check_echo(one, two)
        beacon = overlay.rendezvous.handle.statistics().beacon
        assert beacon is not None
        assert beacon.punches == 0  # it would have shown where the hidden one is


@pytest.mark.parametrize(("hidden_kind", "other_kind"), [("ours", "ours"), ("ours", "go"), ("go", "ours")])
async def test_relayed_transfers_survive_a_restart_of_the_rendezvous(
    overlay: Overlay, hidden_kind: Kind, other_kind: Kind
) -> None:
    """Nodes tell the beacon where they are once a minute only, so it must have remembered."""
    hidden, other = await overlay.start(hidden_kind, "-relay-only"), await overlay.start(other_kind, "-relay-only")
    async with hidden.driver() as driver, other.driver() as second:
        with trio.fail_after(PATIENCE):
            flows = [await open_flow(second, driver, hidden, THERE), await open_flow(driver, second, other, BACK)]
            async with trio.open_nursery() as nursery:
                for flow in flows:
                    nursery.start_soon(flow.send)
                    nursery.start_soon(flow.receive)
                for flow in flows:
                    await flow.wait_for_more(MIB)
                await overlay.rendezvous.stop()
                before: list[int] = []
                while (now := [flow.received for flow in flows]) != before:
                    before = now  # what the daemons have received already goes on to their clients, then no more comes
                    await trio.sleep(0.5)
                await overlay.rendezvous.start()
                for flow in flows:
                    await flow.wait_for_more(MIB)
                    flow.finish()
            for flow in flows:
                assert flow.received == flow.sent
            assert relayed(overlay) >= 2 * MIB / SEGMENT


@pytest.mark.parametrize(("one", "two"), [("ours", "ours"), ("ours", "go"), ("go", "ours")])
async def test_direct_streams_do_not_notice_that_the_rendezvous_is_gone(overlay: Overlay, one: Kind, two: Kind) -> None:
    with trio.fail_after(PATIENCE):
        first, second = await overlay.start(one), await overlay.start(two)
        await ping(first, second)
        assert not await is_relayed(first, second)
        await overlay.rendezvous.stop()
        await check_echo(first, second)
        await check_echo(second, first)
