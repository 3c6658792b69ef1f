"""The transport in memory and the daemon's on a socket, held to the same contract."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pilot_trio.net.socket_transport import SocketTransport
from pilot_trio.net.transport import Transport
from pilot_trio.testing import memory_transport_pair

Pair = tuple[Transport, Transport]


def socket_pair() -> Pair:
    left, right = socket.socketpair()
    return SocketTransport(left), SocketTransport(right)


both = pytest.mark.parametrize("make_pair", [memory_transport_pair, socket_pair])


@both
async def test_bytes_arrive_in_order_and_then_the_end(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    await left.send_all(b"ab")
    assert left.send_nowait(b"cd") == 2
    assert await right.receive_some(3) == b"abc"
    left.close()
    assert await right.receive_some(3) == b"d"
    assert await right.receive_some(3) == b""
    right.close()


@both
async def test_a_full_buffer_takes_nothing_and_everything_once_it_is_read(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    filled = 0
    while sent := left.send_nowait(bytes(100_000)):
        filled += sent
    assert left.send_nowait(b"x") == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, b"the end")
        got = bytearray()
        while len(got) < filled + 7:
            got += await right.receive_some(65_536)
    assert got.endswith(b"\0the end")
    left.close()
    right.close()


@both
async def test_what_can_be_had_at_once_is_had_even_when_cancelled(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await left.send_all(b"x")
        assert await right.receive_some(9) == b"x"
    assert not scope.cancelled_caught
    left.close()
    right.close()


@both
async def test_sending_to_a_closed_end_is_broken(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    right.close()
    with pytest.raises(trio.BrokenResourceError):
        left.send_nowait(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await left.send_all(b"x")
    left.close()


@both
async def test_closing_with_a_little_unread_ends_properly(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    right.send_nowait(bytes(1000))
    left.close()
    assert await right.receive_some(9) == b""
    right.close()


@both
async def test_closing_wakes_who_waits_inside_and_forbids_the_rest(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    while left.send_nowait(bytes(100_000)):
        pass

    async def expect_closed(wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, lambda: left.receive_some(1))
        nursery.start_soon(expect_closed, lambda: left.send_all(b"y"))
        await wait_all_tasks_blocked()
        left.close()
        left.close()
    with pytest.raises(trio.ClosedResourceError):
        left.send_nowait(b"x")
    right.close()


@both
async def test_a_hang_up_is_told_from_a_living_peer(make_pair: Callable[[], Pair]) -> None:
    left, right = make_pair()
    assert not left.hung_up()
    right.close()
    assert left.hung_up()
    left.close()
