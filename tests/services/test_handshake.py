"""Reading handshake messages from streams (`spec/services.md` §1.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from pilot_trio.errors import DecodeError
from pilot_trio.services.handshake import (
    LINGER,
    READ_TIMEOUT,
    STREAMS_MAX,
    STREAMS_PER_PEER_MAX,
    close_later,
    read_message,
    serve_handshakes,
)
from pilot_trio.wire.handshake import RECEIVED_MAX, HandshakeMessage

MESSAGE = HandshakeMessage("handshake_request", 7, "a2V5", 'hi "} <b>', "c2ln", "", 1795458586)
WIRE = MESSAGE.encode()

MemoryStream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[MemoryStream](1000)
        self.closed = False
        self.peers: dict[trio.abc.Stream, int] = {}

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    def connect(self, peer: int | None = None) -> MemoryStream:
        """Arrive; from a peer of its own if none is named."""
        here, there = trio.testing.memory_stream_pair()
        self.peers[there] = id(there) if peer is None else peer
        self._send.send_nowait(there)
        return here


class Service:
    def __init__(self) -> None:
        self.listener = Listener()
        self.received: list[HandshakeMessage] = []
        self.fail = False

    async def receive(self, message: HandshakeMessage, _stream: trio.abc.Stream) -> None:
        await trio.lowlevel.checkpoint()
        self.received.append(message)
        if self.fail:
            raise ValueError("a bug")


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    service = Service()
    async with trio.open_nursery() as nursery:
        peer_of = service.listener.peers.__getitem__
        await nursery.start(partial(serve_handshakes, service.listener, service.receive, peer_of=peer_of))
        yield service
        nursery.cancel_scope.cancel()
    assert service.listener.closed


@pytest.mark.parametrize("size", [1, 7, len(WIRE) - 1, len(WIRE)])
async def test_a_message_is_read_whatever_its_chunks(size: int, autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        stream = service.listener.connect()
        for start in range(0, len(WIRE), size):
            await stream.send_all(WIRE[start : start + size])
            await trio.sleep(0.01)
        assert service.received == [MESSAGE]  # the stream is still open
        before = trio.current_time()
        assert await stream.receive_some() == b""  # and is never answered on
        assert trio.current_time() - before <= LINGER


async def test_a_message_longer_than_a_segment_is_read(autojump_clock: trio.testing.MockClock) -> None:
    long = HandshakeMessage("handshake_request", 7, justification="x" * 60_000)
    async with serving() as service:
        await service.listener.connect().send_all(long.encode())
        await trio.sleep(0.1)
        assert service.received == [long]


@pytest.mark.parametrize("sent", [b"", b"{", b"not JSON}", b"[]", b'{"node_id":-1}', WIRE + b"x"])
async def test_what_is_no_message_is_dropped(sent: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        stream = service.listener.connect()
        await stream.send_all(sent)
        await stream.send_eof()
        assert await stream.receive_some() == b""
        assert service.received == []


@pytest.mark.parametrize(("pause", "read"), [(READ_TIMEOUT - 0.1, True), (READ_TIMEOUT + 0.1, False)])
async def test_a_slow_sender_has_ten_seconds(pause: float, read: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        stream = service.listener.connect()
        await stream.send_all(WIRE[:20])
        await trio.sleep(pause)
        try:
            await stream.send_all(WIRE[20:])
        except trio.BrokenResourceError:
            assert not read
        await trio.sleep(0.1)
        assert bool(service.received) is read


async def test_an_endless_message_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    send, receive = trio.testing.memory_stream_one_way_pair()
    stream = trio.StapledStream(send, receive)
    await send.send_all(b'{"justification":"' + b"x" * RECEIVED_MAX)
    with pytest.raises(DecodeError):
        await read_message(stream)


async def test_a_reset_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        stream = service.listener.connect()
        await stream.send_all(b"{")
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(stream)
        good = service.listener.connect()
        await good.send_all(WIRE)
        await trio.sleep(0.1)
        assert service.received == [MESSAGE]


async def test_a_bug_in_the_receiver_ends_one_stream_only(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as service:
        service.fail = True
        await service.listener.connect().send_all(WIRE)
        await trio.sleep(0.1)
        assert "handshake failed" in caplog.text
        service.fail = False
        await service.listener.connect().send_all(WIRE)
        await trio.sleep(0.1)
        assert len(service.received) == 2


async def test_silent_streams_are_few_and_go_away(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        for _ in range(STREAMS_MAX - 1):
            service.listener.connect()
        await service.listener.connect().send_all(WIRE)
        await trio.sleep(0.1)
        assert len(service.received) == 1  # there was room for one more
        service.listener.connect()  # takes the place that this left after its linger
        await trio.sleep(LINGER)
        await service.listener.connect().send_all(WIRE)
        await trio.sleep(0.1)
        assert len(service.received) == 1  # has to wait
        await trio.sleep(READ_TIMEOUT)
        assert len(service.received) == 2


async def test_one_peer_cannot_have_all_the_places(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as service:
        silent = [service.listener.connect(peer=1) for _ in range(2 * STREAMS_MAX)]
        await service.listener.connect(peer=2).send_all(WIRE)
        await trio.sleep(0.1)
        assert service.received == [MESSAGE]
        assert await silent[STREAMS_PER_PEER_MAX].receive_some() == b""  # closed at once
        await trio.sleep(READ_TIMEOUT)
        await service.listener.connect(peer=1).send_all(WIRE)
        await trio.sleep(0.1)
        assert len(service.received) == 2


async def test_a_sent_message_has_time_to_be_read(autojump_clock: trio.testing.MockClock) -> None:
    here, there = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_later, here)
        before = trio.current_time()
        assert await there.receive_some() == b""
        assert trio.current_time() - before == pytest.approx(LINGER)
