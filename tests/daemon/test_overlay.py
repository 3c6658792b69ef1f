"""Overlay streams and listeners behave as Trio's own do."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, check_one_way_stream, check_two_way_stream, wait_all_tasks_blocked

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.daemon.local_stream import LOCAL_BUFFER_MAX
from pilot_trio.daemon.overlay import OverlayListener, OverlayStream, listen, open_stream
from pilot_trio.errors import DialRefused, PortInUse
from tests.daemon.stream_fakes import SELF, make_table


async def make_pair() -> tuple[OverlayStream, OverlayStream]:
    table = make_table()
    listener = listen(table, 5000, "server")
    near = await open_stream(table, SELF, 5000, "client")
    return near, await listener.accept()


async def make_clogged_pair() -> tuple[OverlayStream, OverlayStream]:
    near, far = await make_pair()
    await near.send_all(bytes(LOCAL_BUFFER_MAX))
    await far.send_all(bytes(LOCAL_BUFFER_MAX))
    return near, far


async def test_it_passes_trios_checks_of_a_stream(autojump_clock: MockClock) -> None:
    await check_two_way_stream(make_pair, make_clogged_pair)
    await check_one_way_stream(make_pair, make_clogged_pair)


def test_half_close_is_not_offered() -> None:
    assert not issubclass(OverlayStream, trio.abc.HalfCloseableStream)


async def test_both_ends_know_the_addresses() -> None:
    near, far = await make_pair()
    assert near.remote == far.local == (SELF, 5000)
    assert far.remote == near.local
    assert near.local.port >= 49152


async def test_a_waiting_sender_is_told_that_the_stream_ended(nursery: trio.Nursery) -> None:
    near, far = await make_clogged_pair()

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await near.wait_send_all_might_not_block()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    await far.aclose()


async def test_two_waiting_senders_are_one_too_many(nursery: trio.Nursery) -> None:
    near, _ = await make_clogged_pair()
    nursery.start_soon(near.wait_send_all_might_not_block)
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await near.wait_send_all_might_not_block()
    with pytest.raises(trio.BusyResourceError):
        await near.send_all(b"x")
    nursery.cancel_scope.cancel()


async def test_serve_listeners_works_on_a_listener(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = listen(table, 5000, "upper")

    async def upper(stream: OverlayStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk.upper())

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, upper, [listener])
        async with await open_stream(table, SELF, 5000, "client") as stream:
            await stream.send_all(b"shout")
            assert await stream.receive_some() == b"SHOUT"
        nursery.cancel_scope.cancel()
    with pytest.raises(DialRefused):
        await open_stream(table, SELF, 5000, "client")
    assert isinstance(listen(table, 5000, "next"), OverlayListener)


async def test_closing_a_listener_wakes_its_acceptor_and_frees_the_port(nursery: trio.Nursery) -> None:
    table = make_table()
    listener = listen(table, 5000, "server")
    assert listener.port == 5000
    with pytest.raises(PortInUse):
        listen(table, 5000, "server")

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    await listener.aclose()
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    table.bind(5000, "other")


async def test_a_failed_dial_raises_its_own_error() -> None:
    with pytest.raises(DialRefused):
        await open_stream(make_table(), Address(NetworkId(0), NodeId(1)), 9, "client")
