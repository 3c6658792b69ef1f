"""Streams through the real IPC server and stream table, in memory."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock, check_two_way_stream, wait_all_tasks_blocked

from pilot_trio.driver import Driver, PilotStream, open_driver
from pilot_trio.driver.link import READ_SIZE, STREAM_BUFFER, STREAM_BUFFER_MAX
from pilot_trio.driver.stream import CLOSE_TIMEOUT
from pilot_trio.errors import IPCClosedError
from tests.driver.daemon import OWN_ADDRESS, StandIn, open_both


async def make_pair(node: Driver, port: int = 5000) -> tuple[PilotStream, PilotStream]:
    listener = await node.listen(port)
    near = await node.dial(OWN_ADDRESS, port)
    far = await listener.accept()
    await listener.aclose()
    return near, far


@pytest.mark.parametrize("capacity", [500, 65_536])
async def test_streams_keep_every_promise_of_trio(autojump_clock: MockClock, capacity: int) -> None:
    async with open_both(capacity) as (_daemon, node):

        async def fresh() -> tuple[PilotStream, PilotStream]:
            return await make_pair(node)

        async def clogged() -> tuple[PilotStream, PilotStream]:
            near, far = await make_pair(node)
            for stream in (near, far):
                while True:
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(stream.send_all, bytes(65_536))
                            await wait_all_tasks_blocked()
                            blocked = bool(nursery.child_tasks)
                            scope.cancel()
                    if blocked:
                        break
            return near, far

        await check_two_way_stream(fresh, clogged)


async def test_a_stream_knows_where_it_leads(node: Driver) -> None:
    listener = await node.listen(5000)
    near = await node.dial(OWN_ADDRESS, 5000)
    far = await listener.accept()
    assert near.remote == (OWN_ADDRESS, 5000)
    assert near.remote_address == far.remote_address == OWN_ADDRESS
    assert far.local_port == 5000
    assert far.remote.port >= 49_152
    assert near.conn_id != far.conn_id


async def test_bulk_arrives_whole_and_in_order_with_a_slow_reader(node: Driver) -> None:
    near, far = await make_pair(node)
    data = random.Random(1).randbytes(3 << 20)
    received = bytearray()

    async def send() -> None:
        await near.send_all(data)
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while chunk := await far.receive_some(10_000):
            received += chunk
    assert received == data


async def test_what_was_sent_before_closing_arrives_even_if_the_program_leaves(daemon: StandIn, node: Driver) -> None:
    listener = await node.listen(5000)
    async with open_driver(connect_with=daemon.connect) as other:
        stream = await other.dial(OWN_ADDRESS, 5000)
        await stream.send_all(bytes(50_000))
        await stream.aclose()
    far = await listener.accept()
    received = 0
    while chunk := await far.receive_some():
        received += len(chunk)
    assert received == 50_000


async def test_a_cancelled_send_leaves_the_stream_usable(node: Driver, autojump_clock: MockClock) -> None:
    near, far = await make_pair(node)
    with trio.move_on_after(1) as scope:
        await near.send_all(b"a" * (4 << 20))
    assert scope.cancelled_caught
    received = bytearray()

    async def receive() -> None:
        while chunk := await far.receive_some():
            received.extend(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await near.send_all(b"the end")
        await near.aclose()
    assert received.endswith(b"athe end")
    assert set(received[:-7]) == {ord("a")}


async def test_a_cancelled_receive_loses_nothing(node: Driver, autojump_clock: MockClock) -> None:
    near, far = await make_pair(node)
    with trio.move_on_after(1) as scope:
        await far.receive_some()
    assert scope.cancelled_caught
    await near.send_all(b"data")
    await wait_all_tasks_blocked()
    with trio.CancelScope() as scope:
        scope.cancel()
        await far.receive_some()
    assert scope.cancelled_caught
    assert await far.receive_some() == b"data"


async def test_an_unread_stream_is_slowed_down_without_being_cut(node: Driver, autojump_clock: MockClock) -> None:
    """The daemon cuts a client that takes nothing for ten seconds; a program may well think for longer than that."""
    near, far = await make_pair(node)
    data = random.Random(2).randbytes(4 << 20)

    async def send() -> None:
        await near.send_all(data)
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(60)
        assert STREAM_BUFFER <= far.unread < 3 << 20
        received = bytearray()
        while chunk := await far.receive_some():
            received += chunk
    assert received == data


async def test_a_stream_that_nobody_ever_reads_is_given_up_and_its_siblings_live(
    node: Driver, autojump_clock: MockClock
) -> None:
    listener = await node.listen(5000)
    flood, quiet = await node.dial(OWN_ADDRESS, 5000), await node.dial(OWN_ADDRESS, 5000)
    unread, sibling = await listener.accept(), await listener.accept()

    async def send_for_ever() -> None:
        with pytest.raises(trio.BrokenResourceError, match="other end has closed"):
            await flood.send_all(bytes(STREAM_BUFFER_MAX * 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever)
        latencies = []
        while nursery.child_tasks:
            sent_at = trio.current_time()
            await quiet.send_all(b"still there?")
            await sibling.receive_some()
            latencies.append(trio.current_time() - sent_at)
            await trio.sleep(10)
    assert max(latencies) <= 4  # seconds: it waits behind what is queued of the flood, never for good
    assert STREAM_BUFFER_MAX <= unread.unread < STREAM_BUFFER_MAX + READ_SIZE
    await unread.receive_some(unread.unread)
    with pytest.raises(trio.BrokenResourceError, match="received and not read; the connection was given up"):
        await unread.receive_some()
    await quiet.send_all(b"yes")
    assert await sibling.receive_some() == b"yes"


async def test_an_unread_dialled_stream_does_not_slow_down_another(node: Driver, autojump_clock: MockClock) -> None:
    listener = await node.listen(5000)
    unread, busy = await node.dial(OWN_ADDRESS, 5000), await node.dial(OWN_ADDRESS, 5000)
    flooding, echoing = await listener.accept(), await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flooding.send_all, bytes(1 << 20))
        await trio.sleep(5)
        assert unread.unread >= STREAM_BUFFER
        started_at = trio.current_time()
        for _ in range(100):
            await busy.send_all(b"ping")
            assert await echoing.receive_some() == b"ping"
        assert trio.current_time() == started_at
        nursery.cancel_scope.cancel()


async def test_a_lost_daemon_breaks_streams_after_what_had_arrived() -> None:
    async with open_both() as (daemon, node):
        near, far = await make_pair(node)
        await near.send_all(b"before")
        await wait_all_tasks_blocked()

        async def expect_broken() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await near.receive_some()
            assert isinstance(caught.value.__cause__, IPCClosedError)
            assert str(caught.value) == "daemon disconnected"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken)
            await wait_all_tasks_blocked()
            await drop_all_clients(daemon)
        assert await far.receive_some() == b"before"
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")
        await far.aclose()
        await near.aclose()


async def drop_all_clients(daemon: StandIn) -> None:
    for client in list(daemon.server._clients.values()):
        client._transport.close()
    await wait_all_tasks_blocked()


async def test_closing_waits_for_a_daemon_that_hangs_only_so_long(autojump_clock: MockClock) -> None:
    """The other program does not read, so the daemon parks our reader: our Close cannot be heard."""
    async with open_both() as (_daemon, node):
        near, _far = await make_pair(node)
        with trio.move_on_after(1):
            await near.send_all(bytes(8 << 20))
        started_at = trio.current_time()
        await near.aclose()
        assert trio.current_time() - started_at <= CLOSE_TIMEOUT


async def test_nothing_is_left_of_closed_streams(node: Driver, daemon: StandIn) -> None:
    for _ in range(20):
        near, far = await make_pair(node)
        await near.send_all(b"x")
        await near.aclose()
        await far.aclose()
    await wait_all_tasks_blocked()
    statistics = node.statistics()
    assert (statistics.streams, statistics.unread) == (0, 0)
    assert statistics.links <= 3
    assert daemon.server.client_count == statistics.links
