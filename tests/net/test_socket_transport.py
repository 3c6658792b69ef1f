"""The transport on real Unix sockets: what the kernel does at the edges that the server depends on."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from pilot_trio.net.socket_transport import SEND_CALL_MAX, SEND_RETRY_INTERVAL, SocketTransport

Pair = tuple[SocketTransport, socket.socket]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
async def ends(pair: tuple[socket.socket, socket.socket]) -> Pair:
    return SocketTransport(pair[0]), pair[1]


def fill(transport: SocketTransport) -> int:
    total = 0
    while sent := transport.send_nowait(bytes(SEND_CALL_MAX)):
        total += sent
    return total


def fill_plainly(sock: socket.socket) -> int:
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += sock.send(bytes(SEND_CALL_MAX))
    return total


async def test_receives_what_is_there_and_waits_otherwise(ends: Pair) -> None:
    transport, peer = ends
    peer.send(b"hello")
    assert await transport.receive_some(3) == b"hel"
    assert await transport.receive_some(3) == b"lo"
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await transport.receive_some(100) == b"later"
            assert await transport.receive_some(100) == b""

        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"later")
        await trio.testing.wait_all_tasks_blocked()
        peer.close()


async def test_send_nowait_never_hands_over_more_than_fits(ends: Pair) -> None:
    transport, peer = ends
    data = os.urandom(1 << 20)
    sent = transport.send_nowait(data)
    assert 0 < sent < len(data)
    assert sent % SEND_CALL_MAX == 0  # whole calls: the kernel took each of them or none of it
    assert transport.send_nowait(b"more") == 0
    received = b""
    while len(received) < sent:
        received += peer.recv(1 << 20)
    assert received == data[:sent]


async def test_a_client_that_does_not_run_just_now_gets_more_than_the_system_would_keep_for_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    usual = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    taken = fill(SocketTransport(ours))
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > usual
    theirs.setblocking(False)
    assert taken > fill_plainly(theirs)


async def test_send_all_finishes_as_the_peer_reads(ends: Pair) -> None:
    transport, peer = ends
    data = os.urandom(1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, data)
        received = b""
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(peer)
            received += peer.recv(10_000)
    assert received == data


async def test_room_that_poll_does_not_report_is_found_within_the_retry_interval(ends: Pair) -> None:
    transport, peer = ends
    fill(transport)
    started_at = trio.current_time()
    with trio.fail_after(3 * SEND_RETRY_INTERVAL):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, bytes(1000))
            await trio.testing.wait_all_tasks_blocked()
            peer.recv(2 * SEND_CALL_MAX)  # far less than the three quarters that make it "writable"
    assert trio.current_time() - started_at >= 0.5 * SEND_RETRY_INTERVAL  # it was not poll that told


async def test_no_buffer_in_the_kernel_is_larger_than_a_call(ends: Pair) -> None:
    # So the peer frees room for the next call by reading `SEND_CALL_MAX` bytes, not more.
    transport, peer = ends
    fill(transport)
    peer.recv(SEND_CALL_MAX)
    assert transport.send_nowait(bytes(SEND_CALL_MAX)) == SEND_CALL_MAX


async def test_half_close_and_hang_up_are_told_apart(ends: Pair) -> None:
    transport, peer = ends
    assert not transport.hung_up()
    peer.shutdown(socket.SHUT_WR)
    assert await transport.receive_some(1) == b""
    assert not transport.hung_up()
    assert transport.send_nowait(b"answer") == 6
    peer.close()
    assert transport.hung_up()
    transport.close()
    assert transport.hung_up()


async def test_sending_to_a_closed_peer_breaks(ends: Pair) -> None:
    transport, peer = ends
    peer.close()
    with pytest.raises(trio.BrokenResourceError):
        transport.send_nowait(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(b"x" * 100_000)


async def test_reset_breaks_the_reader(ends: Pair) -> None:
    transport, peer = ends
    transport.send_nowait(b"unread")
    peer.close()
    with pytest.raises(trio.BrokenResourceError):
        await transport.receive_some(10)


async def test_peer_that_closes_wakes_a_blocked_send_at_once(ends: Pair) -> None:
    transport, peer = ends
    fill(transport)
    with trio.fail_after(SEND_RETRY_INTERVAL / 2):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await transport.send_all(b"x")

            await trio.testing.wait_all_tasks_blocked()
            peer.close()


async def test_close_wakes_reader_and_writer(ends: Pair) -> None:
    transport, _peer = ends
    fill(transport)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive_some(10)

        @nursery.start_soon
        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send_all(b"x")

        await trio.testing.wait_all_tasks_blocked()
        transport.close()
    transport.close()  # idempotent
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some(10)
    with pytest.raises(trio.ClosedResourceError):
        transport.send_nowait(b"x")


async def test_close_with_unread_input_gives_the_peer_end_of_file_not_a_reset(ends: Pair) -> None:
    transport, peer = ends
    peer.send(b"request")
    transport.close()
    assert peer.recv(10) == b""


@pytest.mark.parametrize("operation", ["receive", "send"])
async def test_cancelling_leaves_the_transport_usable(ends: Pair, operation: str) -> None:
    transport, peer = ends
    if operation == "send":
        fill(transport)
    with trio.move_on_after(0.01) as scope:
        await (transport.receive_some(1) if operation == "receive" else transport.send_all(b"x"))
    assert scope.cancelled_caught
    peer.send(b"y")
    assert await transport.receive_some(1) == b"y"
