"""The echo service, on streams in memory."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from pilot_trio.services.echo import ECHO_WRITE_TIMEOUT, answer, echo, serve_echo

NOW = 1_700_000_000_123_456_789


class QueueListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[trio.abc.Stream](8)

    def connect(self) -> trio.abc.Stream:
        near, far = memory_stream_pair()
        self._put.send_nowait(far)
        return near

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._get.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(admit: Callable[[object], bool] | None = None) -> AsyncIterator[QueueListener]:
    listener = QueueListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_echo, admit=admit, clock_ns=lambda: NOW), listener)
        yield listener
        nursery.cancel_scope.cancel()


async def test_what_was_sent_comes_back(autojump_clock: MockClock) -> None:
    async with serving() as listener, listener.connect() as stream, listener.connect() as other:
        for text in (b"ping-0", b"TRCE", b"x"):
            await stream.send_all(text)
            assert await stream.receive_some() == text
        await other.send_all(b"neighbour")
        assert await other.receive_some() == b"neighbour"


async def test_a_trace_request_is_answered_with_both_clocks(autojump_clock: MockClock) -> None:
    sent = 1_699_999_999_000_000_001
    async with serving() as listener, listener.connect() as stream:
        await stream.send_all(b"TRCE" + struct.pack("!Q", sent) + b"anything else")
        assert await stream.receive_some() == b"TRCE" + struct.pack("!QQ", sent, NOW)


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (b"TRCE1234567", b"TRCE1234567"),
        (b"TRCE12345678", b"TRCE12345678" + struct.pack("!Q", NOW)),
        (b"TRCE12345678x", b"TRCE12345678" + struct.pack("!Q", NOW)),
        (b"TRCF12345678", b"TRCF12345678"),
        (b" TRCE12345678", b" TRCE12345678"),
        (bytearray(b"TRCE12345678"), b"TRCE12345678" + struct.pack("!Q", NOW)),
    ],
)
def test_only_twelve_bytes_with_the_magic_are_a_trace_request(chunk: bytes, expected: bytes) -> None:
    assert answer(chunk, lambda: NOW) == expected


@given(st.binary(max_size=40).filter(lambda chunk: not chunk.startswith(b"TRCE")))
def test_everything_else_is_echoed(chunk: bytes) -> None:
    assert answer(chunk, lambda: NOW) == chunk


async def test_a_peer_that_is_not_admitted_is_closed_at_once(autojump_clock: MockClock) -> None:
    async with serving(admit=lambda stream: False) as listener, listener.connect() as stream:
        assert await stream.receive_some() == b""


async def test_a_crash_with_one_peer_is_logged_and_leaves_the_others_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = iter([1, 0])

    def admit(stream: object) -> bool:
        return 1 / next(verdicts) > 0

    async with serving(admit=admit) as listener, listener.connect() as good, listener.connect() as bad:
        assert {await end_or_echo(good), await end_or_echo(bad)} == {b"", b"x"}
    assert "echo failed" in caplog.text


async def end_or_echo(stream: trio.abc.Stream) -> bytes:
    try:
        await stream.send_all(b"x")
    except trio.BrokenResourceError:
        return b""
    return bytes(await stream.receive_some())


async def test_an_echo_left_unread_ends_the_connection_after_thirty_seconds(autojump_clock: MockClock) -> None:
    incoming, received = trio.testing.memory_stream_one_way_pair()
    stream = trio.StapledStream(trio.testing.MemorySendStream(send_all_hook=trio.sleep_forever), received)
    await incoming.send_all(b"hello")
    started = trio.current_time()
    await echo(stream)
    assert trio.current_time() - started == ECHO_WRITE_TIMEOUT == 30


@pytest.mark.parametrize("how", ["end", "reset", "closed under it"])
async def test_every_end_of_the_peer_is_a_normal_end(nursery: trio.Nursery, how: str) -> None:
    near, far = memory_stream_pair()
    nursery.start_soon(echo, far)
    await wait_all_tasks_blocked()
    if how == "end":
        await near.send_eof()
    elif how == "reset":
        await near.send_all(b"x")
        await near.aclose()
    else:
        await far.aclose()


async def test_cancelling_closes_the_listener() -> None:
    listener = QueueListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_echo, listener)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
