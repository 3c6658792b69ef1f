"""The echo service, on the streams of a node with itself."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.daemon.connection import Connection
from pilot_trio.daemon.overlay import OverlayStream, open_stream
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.services.echo import ECHO_WRITE_TIMEOUT, answer, serve_echo
from pilot_trio.wire.service_ports import ECHO_PORT
from tests.daemon.stream_fakes import SELF, make_table

NOW = 1_700_000_000_123_456_789


class Peers:
    """Dials the service."""

    def __init__(self, table: StreamTable) -> None:
        self.table = table

    async def connect(self) -> OverlayStream:
        return await open_stream(self.table, SELF, ECHO_PORT, "test")


@asynccontextmanager
async def serving(admit: Callable[[Connection], bool] | None = None) -> AsyncIterator[Peers]:
    table = make_table()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_echo, admit=admit, clock_ns=lambda: NOW), table.bind(ECHO_PORT, "echo"))
        yield Peers(table)
        nursery.cancel_scope.cancel()


async def test_what_was_sent_comes_back(autojump_clock: MockClock) -> None:
    async with serving() as peers, await peers.connect() as stream, await peers.connect() as other:
        for text in (b"ping-0", b"TRCE", b"x"):
            await stream.send_all(text)
            assert await stream.receive_some() == text
        await other.send_all(b"neighbour")
        assert await other.receive_some() == b"neighbour"


async def test_a_trace_request_is_answered_with_both_clocks(autojump_clock: MockClock) -> None:
    sent = 1_699_999_999_000_000_001
    async with serving() as peers, await peers.connect() as stream:
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
    ],
)
def test_only_twelve_bytes_with_the_magic_are_a_trace_request(chunk: bytes, expected: bytes) -> None:
    assert answer(chunk, lambda: NOW) == expected


@given(st.binary(max_size=40).filter(lambda chunk: not chunk.startswith(b"TRCE")))
def test_everything_else_is_echoed(chunk: bytes) -> None:
    assert answer(chunk, lambda: NOW) == chunk


async def test_a_peer_that_is_not_admitted_is_closed_at_once(autojump_clock: MockClock) -> None:
    async with serving(admit=lambda connection: False) as peers, await peers.connect() as stream:
        assert await stream.receive_some() == b""


async def test_a_crash_with_one_peer_is_logged_and_leaves_the_others_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = iter([0, 1])

    def admit(connection: Connection) -> bool:
        return 1 / next(verdicts) > 0

    async with serving(admit=admit) as peers, await peers.connect() as bad, await peers.connect() as good:
        assert await bad.receive_some() == b""
        await good.send_all(b"x")
        assert await good.receive_some() == b"x"
    assert "echo failed" in caplog.text


async def test_an_echo_waits_for_nothing(autojump_clock: MockClock) -> None:
    async with serving() as peers:
        connection = await peers.table.dial(SELF, ECHO_PORT, owner="test")
        assert connection.write_nowait(b"here and now") == 12
        assert connection.receive_nowait(100) == b"here and now"


async def test_an_echo_left_unread_ends_the_connection_after_thirty_seconds(autojump_clock: MockClock) -> None:
    async with serving() as peers, await peers.connect() as stream:
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(1_000_000))
        assert trio.current_time() - started == ECHO_WRITE_TIMEOUT == 30


async def test_a_peer_that_reads_in_time_gets_everything(autojump_clock: MockClock) -> None:
    async with serving() as peers, await peers.connect() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(1_000_000))
        got = 0
        while got < 1_000_000:
            await trio.sleep(ECHO_WRITE_TIMEOUT - 1)
            got += len(await stream.receive_some())


@pytest.mark.parametrize("unread", [b"x", bytes(1_000_000)])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_every_end_of_the_peer_is_a_normal_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, how: str, unread: bytes
) -> None:
    async with serving() as peers:
        connection = await peers.table.dial(SELF, ECHO_PORT, owner="test")
        connection.write_nowait(unread)
        await wait_all_tasks_blocked()
        getattr(connection, how)()
        await wait_all_tasks_blocked()
        assert peers.table.statistics().connections == 0
    assert "echo" not in caplog.text


async def test_who_came_before_the_service_is_served(autojump_clock: MockClock) -> None:
    table = make_table()
    listener = table.bind(ECHO_PORT, "echo")
    async with await open_stream(table, SELF, ECHO_PORT, "test") as early, trio.open_nursery() as nursery:
        await early.send_all(b"early")
        await nursery.start(serve_echo, listener)
        assert await early.receive_some() == b"early"
        nursery.cancel_scope.cancel()


async def test_cancelling_unbinds_the_port() -> None:
    table = make_table()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_echo, table.bind(ECHO_PORT, "echo"))
        nursery.cancel_scope.cancel()
    assert not table.listens(ECHO_PORT)
