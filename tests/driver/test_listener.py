from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from pilot_trio.driver import Driver, listener, open_driver
from pilot_trio.errors import DialRefused, PortInUse
from tests.driver.daemon import OWN_ADDRESS, StandIn


async def test_serve_listeners_works_unchanged(node: Driver) -> None:
    async def shout(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.send_all((await stream.receive_some()).upper())

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, shout, [await node.listen(5000), await node.listen(5001)])
        for port in (5000, 5001):
            async with await node.dial(OWN_ADDRESS, port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"HELLO"
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_a_taken_port_is_refused_by_class(node: Driver, daemon: StandIn) -> None:
    await node.listen(5000)
    with pytest.raises(PortInUse, match="port 5000 already bound"):
        await node.listen(5000)
    async with open_driver(connect_with=daemon.connect) as other:
        with pytest.raises(PortInUse):
            await other.listen(5000)
    await wait_all_tasks_blocked()
    assert node.statistics().links == 2


async def test_a_closed_port_is_free_at_once_and_accepted_streams_live_on(node: Driver) -> None:
    first = await node.listen(5000)
    near = await node.dial(OWN_ADDRESS, 5000)
    far = await first.accept()
    with assert_checkpoints():
        await first.aclose()
    with assert_checkpoints():
        await first.aclose()
    with pytest.raises(DialRefused):
        await node.dial(OWN_ADDRESS, 5000)
    second = await node.listen(5000)
    await near.send_all(b"alive")
    assert await far.receive_some() == b"alive"
    assert node.statistics().links == 4
    await far.aclose()
    await near.aclose()
    await wait_all_tasks_blocked()
    assert node.statistics().links == 2  # the connection of the closed listener went with its last stream
    await second.aclose()


async def test_streams_that_nobody_accepted_are_closed_with_the_listener(node: Driver) -> None:
    port = await node.listen(5000)
    near = await node.dial(OWN_ADDRESS, 5000)
    await wait_all_tasks_blocked()
    await port.aclose()
    assert await near.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await port.accept()
    await near.aclose()
    await wait_all_tasks_blocked()
    assert node.statistics().links == 1


async def test_closing_wakes_every_acceptor(node: Driver) -> None:
    port = await node.listen(5000)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await port.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        await port.aclose()


async def test_a_cancelled_accept_loses_no_stream(node: Driver, autojump_clock: MockClock) -> None:
    port = await node.listen(5000)
    with trio.move_on_after(1) as scope:
        await port.accept()
    assert scope.cancelled_caught
    await node.dial(OWN_ADDRESS, 5000)
    await wait_all_tasks_blocked()
    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        await port.accept()
    assert cancelled.cancelled_caught
    await port.accept()


async def test_a_cancelled_listen_leaves_the_port_free(node: Driver, daemon: StandIn) -> None:
    for turns in range(8):
        bound = False

        async def listen() -> None:
            nonlocal bound
            port = await node.listen(5000)
            bound = True
            await port.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert daemon.streams.statistics().ports == 0
        assert node.statistics().links == 1


async def test_closing_forcefully_frees_the_port_too(node: Driver, daemon: StandIn) -> None:
    port = await node.listen(5000)
    await trio.aclose_forcefully(port)
    await wait_all_tasks_blocked()
    assert daemon.streams.statistics().ports == 0
    assert node.statistics().links == 1


@pytest.mark.parametrize("extra, refused", [(-1, 0), (0, 0), (1, 1)])
async def test_streams_that_nobody_accepts_are_bounded(
    node: Driver, monkeypatch: pytest.MonkeyPatch, extra: int, refused: int
) -> None:
    monkeypatch.setattr(listener, "ACCEPT_QUEUE", 10)
    port = await node.listen(5000)
    streams = [await node.dial(OWN_ADDRESS, 5000) for _ in range(10 + extra)]
    await wait_all_tasks_blocked()
    assert port.refused == refused
    assert len(port._waiting) == 10 + min(extra, 0)
    if refused:
        assert await streams[-1].receive_some() == b""
    await streams[0].send_all(b"first")
    assert await (await port.accept()).receive_some() == b"first"


async def test_a_lost_daemon_breaks_accept_after_what_had_arrived(daemon: StandIn, nursery: trio.Nursery) -> None:
    async with open_driver(connect_with=daemon.connect) as node:
        port = await node.listen(5000)
        await node.dial(OWN_ADDRESS, 5000)
        await wait_all_tasks_blocked()
    await port.accept()
    with pytest.raises(trio.BrokenResourceError, match="connection to the daemon was closed"):
        await port.accept()
    await port.aclose()
