"""What nodes of both kinds live through together: a rendezvous that restarts, or that stays away."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from pilot_trio.errors import DialError
from tests.interop.overlay import Kind, MakeHome, Overlay, open_overlay
from tests.interop.traffic import KIB, MIB, echo, open_flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

THERE, BACK = 5000, 5001  # ports
PATIENCE = 60.0  # seconds for what takes one or two
PAIRS: list[tuple[Kind, Kind]] = [("ours", "go"), ("go", "ours"), ("ours", "ours")]


@pytest.fixture
async def overlay(make_go_home: MakeHome, tmp_path: Path) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home, tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize(("near_kind", "far_kind"), [("ours", "go"), ("ours", "ours")])
async def test_transfers_do_not_notice_that_the_rendezvous_restarts(
    overlay: Overlay, near_kind: Kind, far_kind: Kind
) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    async with near.driver() as driver, far.driver() as other:
        flows = [await open_flow(driver, other, far, THERE), await open_flow(other, driver, near, BACK)]
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for flow in flows:
                    nursery.start_soon(flow.send)
                    nursery.start_soon(flow.receive)
                for flow in flows:
                    await flow.wait_for_more(MIB)
                await overlay.rendezvous.stop()
                for flow in flows:
                    await flow.wait_for_more(MIB)
                await overlay.rendezvous.start()
                for flow in flows:
                    await flow.wait_for_more(MIB)
                    flow.finish()
        for flow in flows:
            assert flow.received == flow.sent

        newcomer = await overlay.start("ours")  # the new rendezvous knows the old nodes, and serves them
        with trio.fail_after(PATIENCE):
            async with newcomer.driver() as third:
                await echo(third, near, 64 * KIB)
                await echo(driver, newcomer, 64 * KIB)
                await echo(other, newcomer, 64 * KIB)


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_known_peers_are_dialled_while_the_registry_is_away(
    overlay: Overlay, near_kind: Kind, far_kind: Kind
) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    stranger = await overlay.start("ours")
    async with near.driver() as driver, far.driver() as other:
        await echo(driver, far, 1000)
        await overlay.rendezvous.stop()
        with trio.fail_after(PATIENCE):
            for _ in range(3):
                await echo(driver, far, 64 * KIB)
                await echo(other, near, 64 * KIB)
            with pytest.raises(DialError, match="resolve"):
                await driver.dial(stranger.address, 7)
