from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pilot_trio.testing import MemoryTransportListener
from pilot_trio.testing.memory_transport import BACKLOG


async def test_clients_arrive_in_order_and_in_batches() -> None:
    listener = MemoryTransportListener()
    clients = [await listener.open_transport() for _ in range(100)]
    for number, client in enumerate(clients):
        client.send_nowait(bytes([number]))
    first = await listener.accept_some()
    second = await listener.accept_some()
    assert (len(first), len(second)) == (64, 36)
    assert [await server.receive_some(1) for server in first + second] == [bytes([n]) for n in range(100)]


async def test_accept_waits_for_a_client() -> None:
    listener = MemoryTransportListener()
    async with trio.open_nursery() as nursery:

        async def connect() -> None:
            await wait_all_tasks_blocked()
            await (await listener.open_stream()).send_all(b"hello")

        nursery.start_soon(connect)
        (server,) = await listener.accept_some()
        assert await server.receive_some(99) == b"hello"


async def test_the_backlog_is_bounded_and_connecting_waits_for_room() -> None:
    listener = MemoryTransportListener()
    for _ in range(BACKLOG):
        await listener.open_transport()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.open_transport)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await listener.accept_some()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_closing_refuses_new_clients_and_ends_waiting_ones() -> None:
    listener = MemoryTransportListener()
    waiting = await listener.open_transport()
    async with trio.open_nursery() as nursery:

        async def accept_twice() -> None:
            await listener.accept_some()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept_some()

        nursery.start_soon(accept_twice)
        await wait_all_tasks_blocked()
        late = await listener.open_transport()
        listener.close()
    with pytest.raises(ConnectionRefusedError):
        await listener.open_transport()
    assert await late.receive_some(1) == b""
    assert not waiting.closed
