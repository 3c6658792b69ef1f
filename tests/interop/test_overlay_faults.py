"""What breaks between nodes of both kinds: a daemon killed in mid-transfer, a rendezvous that restarts or stays away, loss."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncGenerator

import pytest
import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import DialError, PilotError
from tests.interop.lossy import open_lossy_path
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ECHO = 7
KIB = 1024
MIB = 1024 * KIB
RECOVERY = 30.0  # seconds in which a restarted peer has to be reachable again
PAIRS: list[tuple[Kind, Kind]] = [("ours", "go"), ("go", "ours"), ("ours", "ours")]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("near_kind", "far_kind"), PAIRS)
async def test_a_peer_killed_in_mid_transfer_comes_back(overlay: Overlay, near_kind: Kind, far_kind: Kind) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    node_id = far.node_id
    async with near.driver() as driver, await driver.dial(far.address, ECHO) as stream:
        await pump_back_and_forth(stream, MIB)
        await far.stop(signal.SIGKILL)
        await far.start()
        assert far.node_id == node_id, "it has kept its identity"
        with trio.fail_after(RECOVERY):
            await dial_until_answered(driver, far)
        await echo(driver, far, MIB)
        async with far.driver() as back:
            await echo(back, near, MIB)
        if near_kind == "ours":
            with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
                await read_to_the_end(stream)  # clients of the reference wait minutes for that


@pytest.mark.parametrize("kind", ["ours", "go"])
async def test_clients_of_a_killed_daemon_get_a_clear_error(overlay: Overlay, kind: Kind) -> None:
    near, far = await overlay.start(kind), await overlay.start("ours")
    with trio.fail_after(RECOVERY):
        async with near.driver() as driver, await driver.dial(far.address, ECHO) as stream:
            await pump_back_and_forth(stream, 64 * KIB)
            await near.stop(signal.SIGKILL)
            with pytest.raises(trio.BrokenResourceError):
                await read_to_the_end(stream)
            with pytest.raises(PilotError):
                await driver.info()
        await near.start()
        async with near.driver() as driver:
            await dial_until_answered(driver, far)


@pytest.mark.parametrize(("near_kind", "far_kind"), [("ours", "go"), ("go", "ours")])
async def test_a_transfer_does_not_notice_that_the_rendezvous_restarts(
    overlay: Overlay, near_kind: Kind, far_kind: Kind
) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    async with near.driver() as driver, trio.open_nursery() as nursery:
        async with await driver.dial(far.address, ECHO) as stream:
            for turn in range(6):
                await pump_back_and_forth(stream, 256 * KIB)
                if turn == 1:
                    await overlay.rendezvous.stop()
                if turn == 3:
                    nursery.start_soon(overlay.rendezvous.start)
        await echo(driver, far, 64 * KIB)


@pytest.mark.parametrize(("near_kind", "far_kind"), [("ours", "go"), ("go", "ours")])
async def test_known_peers_are_dialled_while_the_registry_is_away(
    overlay: Overlay, near_kind: Kind, far_kind: Kind
) -> None:
    near, far = await overlay.start(near_kind), await overlay.start(far_kind)
    async with near.driver() as driver, far.driver() as other:
        await echo(driver, far, 1000)
        await overlay.rendezvous.stop()
        with trio.fail_after(10):
            await echo(driver, far, 64 * KIB)
            await echo(other, near, 64 * KIB)


async def test_three_nodes_of_both_kinds_over_paths_that_lose(overlay: Overlay) -> None:
    """Every node talks to both others over paths that lose two datagrams in a hundred, for a while; all of it arrives."""
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        nodes = []
        kinds: list[Kind] = ["ours", "go", "ours"]
        for seed, kind in enumerate(kinds):
            path = await stack.enter_async_context(open_lossy_path(loss=0.02, seed=seed))
            node = await overlay.start(kind, "-listen", str(path.target), "-endpoint", str(path.endpoint))
            nodes.append(node)
        drivers = [await stack.enter_async_context(node.driver()) for node in nodes]
        with trio.fail_after(60):
            async with trio.open_nursery() as talks:
                for driver, own in zip(drivers, nodes, strict=True):
                    for other in nodes:
                        if other is not own:
                            talks.start_soon(talk, driver, other, 12.0)
        nursery.cancel_scope.cancel()


async def talk(driver: Driver, target: OverlayNode, seconds: float) -> None:
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        await echo(driver, target, 200 * KIB)


async def echo(driver: Driver, target: OverlayNode, size: int) -> None:
    async with await driver.dial(target.address, ECHO) as stream:
        await pump_back_and_forth(stream, size)


async def pump_back_and_forth(stream: PilotStream, size: int) -> None:
    """Send random bytes to an echo and hold the answer against them."""
    data = os.urandom(size)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        while len(received) < size:
            chunk = await stream.receive_some(size - len(received))
            assert chunk, f"the stream ended after {len(received)} of {size} bytes"
            received += chunk
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def read_to_the_end(stream: PilotStream) -> None:
    while await stream.receive_some():
        pass


async def dial_until_answered(driver: Driver, target: OverlayNode) -> None:
    """Dial again and again, as a client does that knows its peer to be restarting."""
    while True:
        try:
            await echo(driver, target, 1000)
        except (DialError, trio.BrokenResourceError, AssertionError):
            await trio.sleep(0.1)
        else:
            return
