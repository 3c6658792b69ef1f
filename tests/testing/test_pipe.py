"""In-memory connections behave as the kernel's do; where it can be asked, the kernel is the judge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import assert_checkpoints, check_half_closeable_stream, wait_all_tasks_blocked

from pilot_trio.testing import MemoryStream, memory_stream_pair, memory_transport_pair

StreamPair = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]


async def memory_pair() -> StreamPair:
    return memory_stream_pair()


async def unix_pair() -> StreamPair:
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


both = pytest.mark.parametrize("make_pair", [memory_pair, unix_pair])


async def test_streams_keep_every_promise_of_trio() -> None:
    async def clogged() -> tuple[MemoryStream, MemoryStream]:
        left, right = memory_stream_pair(capacity=100)
        await left.send_all(bytes(100))
        await right.send_all(bytes(100))
        return left, right

    async def fresh() -> tuple[MemoryStream, MemoryStream]:
        return memory_stream_pair(capacity=100)

    await check_half_closeable_stream(fresh, clogged)


@both
async def test_sending_stops_when_nobody_reads_and_resumes_when_somebody_does(
    make_pair: Callable[[], Awaitable[StreamPair]], autojump_clock: trio.testing.MockClock
) -> None:
    left, right = await make_pair()
    total = 4 << 20
    with trio.move_on_after(1) as scope:
        await left.send_all(bytes(total))
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, bytes(total))
        received = 0
        while received < total:
            received += len(await right.receive_some(65536))
        nursery.cancel_scope.cancel()
    await left.aclose()
    await right.aclose()


@both
async def test_the_reader_gets_what_was_sent_before_the_end(make_pair: Callable[[], Awaitable[StreamPair]]) -> None:
    left, right = await make_pair()
    await left.send_all(b"last words")
    await left.aclose()
    assert await right.receive_some() == b"last words"
    assert await right.receive_some() == b""
    await right.aclose()


@both
async def test_closing_with_unread_bytes_resets_the_other_end(make_pair: Callable[[], Awaitable[StreamPair]]) -> None:
    left, right = await make_pair()
    await left.send_all(b"from left")
    await right.send_all(b"never read")
    await left.aclose()
    assert await right.receive_some() == b"from left"
    with pytest.raises(trio.BrokenResourceError):
        await right.receive_some()
    await right.aclose()


@both
async def test_sending_to_a_closed_end_is_broken(make_pair: Callable[[], Awaitable[StreamPair]]) -> None:
    left, right = await make_pair()
    await right.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await left.send_all(b"x")
    await left.aclose()


@pytest.mark.parametrize("size, taken", [(9, 9), (10, 10), (11, 10)])
def test_a_transport_takes_at_once_what_fits_and_no_more(size: int, taken: int) -> None:
    left, _right = memory_transport_pair(capacity=10)
    assert left.send_nowait(bytes(size)) == taken
    assert left.unsent == taken
    assert left.send_nowait(b"x") == (1 if taken < 10 else 0)


async def test_receiving_what_is_there_is_not_a_checkpoint() -> None:
    left, right = memory_transport_pair()
    left.send_nowait(b"ab")
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await right.receive_some(1) == b"a"
        assert await right.receive_some(9) == b"b"
    assert not scope.cancelled_caught


async def test_closing_wakes_tasks_inside_the_same_end() -> None:
    left, right = memory_transport_pair(capacity=1)
    left.send_nowait(b"x")

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
        left.send_nowait(b"z")
    assert await right.receive_some(9) == b"x"


async def test_hung_up_tells_a_gone_peer_from_one_that_only_stopped_writing() -> None:
    left, right = memory_transport_pair()
    assert not left.hung_up()
    right.send_eof()
    assert await left.receive_some(1) == b""
    assert not left.hung_up()
    assert left.send_nowait(b"reply") == 5
    right.close()
    assert left.hung_up()


async def test_a_broken_connection_fails_both_ends_and_drops_what_was_in_flight() -> None:
    left, right = memory_stream_pair()
    await left.send_all(b"lost")
    left.transport.break_connection()
    for stream in (left, right):
        with pytest.raises(trio.BrokenResourceError), assert_checkpoints():
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError), assert_checkpoints():
            await stream.send_all(b"x")
