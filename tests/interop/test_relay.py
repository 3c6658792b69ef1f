"""Nodes that hide their endpoints, of either kind, through our beacon: nobody sends to them but it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoHome
from tests.interop.overlay import Kind, Overlay, OverlayNode, open_overlay
from tests.interop.rendezvous import open_rendezvous

TIMEOUT = 60.0  # seconds for a test; daemons of both kinds need two to start, a first contact may take some more
RECOVERY_TIME = 5.0  # seconds for an exchange once the beacon is back; far less than until the next announcement
SIZE = 300_000  # bytes; hundreds of frames through the relay


async def ping(node: OverlayNode, to: OverlayNode) -> None:
    result = await node.ctl("ping", to.address, "--count", "2", "--timeout", "15s", timeout=40)
    assert result.returncode == 0, (result, *to.log[-20:])


async def echo(node: OverlayNode, to: OverlayNode, size: int = SIZE) -> None:
    """Send data to the echo service and get it back."""
    data = bytes(range(256)) * (size // 256)
    async with node.driver() as driver, await driver.dial(to.address, 7) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        got = bytearray()
        while len(got) < len(data):
            chunk = await stream.receive_some()
            assert chunk
            got += chunk
        assert got == data


async def is_relayed(node: OverlayNode, to: OverlayNode) -> bool:
    (row,) = (row for row in (await node.info())["peer_list"] if row["node_id"] == to.node_id)
    return bool(row["relay"])


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
    make_go_home: Callable[[Endpoint, Endpoint], GoHome], hidden: Kind, other: Kind, both: bool
) -> None:
    with trio.fail_after(TIMEOUT):
        async with open_overlay(make_go_home) as overlay:
            one = await overlay.start(hidden, "-relay-only")
            two = await overlay.start(other, *(["-relay-only"] if both else []))
            await ping(two, one)
            await ping(one, two)
            await echo(two, one)
            assert await is_relayed(two, one)
            beacon = overlay.rendezvous.handle.statistics().beacon
            assert beacon is not None
            assert beacon.relayed > 2 * SIZE / 65_536
            assert beacon.punches == 0  # it would have shown where the hidden one is


@pytest.mark.parametrize(("one", "two"), [("ours", "ours"), ("ours", "go"), ("go", "ours")])
async def test_relayed_streams_survive_the_restart_of_the_rendezvous(
    make_go_home: Callable[[Endpoint, Endpoint], GoHome], tmp_path: Path, one: Kind, two: Kind
) -> None:
    """Nodes tell the beacon where they are once a minute only, so it must have remembered."""
    with trio.fail_after(TIMEOUT):
        async with open_rendezvous(tmp_path / "store") as rendezvous:
            overlay = Overlay(rendezvous, make_go_home)
            try:
                hidden = await overlay.start(one, "-relay-only")
                dialler = await overlay.start(two)
                await ping(dialler, hidden)
                async with dialler.driver() as driver, await driver.dial(hidden.address, 7) as stream:
                    await exchange(stream, b"1" * 1000)
                    await rendezvous.stop()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(exchange, stream, b"2" * 1000)
                        await trio.sleep(0.5)  # the first frames meet nobody
                        await rendezvous.start()
                    with trio.fail_after(RECOVERY_TIME):
                        await exchange(stream, b"3" * 1000)
            finally:
                with trio.CancelScope(shield=True):
                    for node in overlay.nodes:
                        await node.stop(signal.SIGKILL)


async def exchange(stream: trio.abc.Stream, data: bytes) -> None:
    """Send data to the echo service and get it back."""
    await stream.send_all(data)
    got = b""
    while len(got) < len(data):
        chunk = await stream.receive_some()
        assert chunk, "the stream has ended"
        got += chunk
    assert got == data


@pytest.mark.parametrize(("one", "two"), [("ours", "ours"), ("ours", "go")])
async def test_direct_streams_do_not_notice_that_the_rendezvous_is_gone(
    make_go_home: Callable[[Endpoint, Endpoint], GoHome], one: Kind, two: Kind
) -> None:
    with trio.fail_after(TIMEOUT):
        async with open_overlay(make_go_home) as overlay:
            first, second = await overlay.start(one), await overlay.start(two)
            await ping(first, second)
            assert not await is_relayed(first, second)
            await overlay.rendezvous.stop()
            await echo(first, second)
