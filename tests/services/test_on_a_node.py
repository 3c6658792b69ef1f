"""The services of a whole node, reached through its socket by real drivers. Virtual time."""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.config import ServicesConfig
from pilot_trio.driver import Driver, open_driver
from pilot_trio.services import dataexchange, eventstream
from pilot_trio.testing import RunningNode, open_node
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire import eventstream as events
from pilot_trio.wire import ipc
from pilot_trio.wire.dataexchange import FrameType
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import Code

DATA_EXCHANGE = 1001
EVENT_STREAM = 1002


@asynccontextmanager
async def another_driver(node: RunningNode) -> AsyncGenerator[Driver, None]:
    async with open_driver(connect_with=node.connect) as driver:
        yield driver


async def exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, "the stream ended"
        data += piece
    return data


async def answer(stream: trio.abc.ReceiveStream) -> bytes:
    _, length = struct.unpack("!II", await exactly(stream, 8))
    return await exactly(stream, length)


def _said_by(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger]


async def test_a_subscriber_whose_client_stops_reading_is_removed_and_delays_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pilot_trio.services.eventstream")
    frame = events.encode("t", bytes(64 << 10))
    async with open_node() as node, another_driver(node) as other:
        stalled = await node.connect()  # a client that asks, and never reads what it gets
        await stalled.send_all(ipc.encode_target(Code.DIAL, node.address, EVENT_STREAM))
        replies = FrameDecoder(IPC_FRAME_MAX)
        while (reply := replies.next_frame()) is None:
            replies.feed(await stalled.receive_some(4096))
        assert reply[0] == Code.DIAL_OK
        conn_id, _ = ipc.decode_conn(reply[1:])
        await stalled.send_all(ipc.encode_conn(Code.SEND, conn_id, events.encode("t")))
        living = await other.dial(node.address, EVENT_STREAM)
        await living.send_all(events.encode("t"))
        publisher = await other.dial(node.address, EVENT_STREAM)
        await publisher.send_all(events.encode("other"))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            await publisher.send_all(frame)
            with trio.fail_after(0.1):  # nobody waits for the one that does not read
                assert await exactly(living, len(frame)) == frame
            await trio.sleep(0.02)  # below the publisher's rate
        assert _said_by(caplog, "pilot_trio.services.eventstream") == []
        await trio.sleep(eventstream.WRITE_TIMEOUT + 1)
        assert _said_by(caplog, "pilot_trio.services.eventstream") == ["eventstream subscriber removed"]
        await publisher.send_all(frame)
        assert await exactly(living, len(frame)) == frame
        stalled.close()


async def test_a_message_sent_twice_is_kept_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_node(home=tmp_path) as node, another_driver(node) as other:
        frame = wire.encode_tagged(FrameType.TEXT, b"hi", message_id="m1")
        answers = []
        for driver in (node.driver, other, other):  # whichever client it is: the sender is the node
            async with await driver.dial(node.address, DATA_EXCHANGE) as stream:
                await stream.send_all(frame)
                answers.append(await answer(stream))
        assert answers == [b"ACK TEXT 2 bytes"] + [b"ACK TEXT 2 bytes (duplicate)"] * 2
        assert len(list((tmp_path / "inbox").glob("*.json"))) == 1
        async with await other.dial(node.address, DATA_EXCHANGE) as stream:
            await trio.sleep(dataexchange.DEDUPLICATION_TIME + 1)
        async with await other.dial(node.address, DATA_EXCHANGE) as stream:
            await stream.send_all(frame)
            assert await answer(stream) == b"ACK TEXT 2 bytes"


@pytest.mark.parametrize(("size", "passes"), [(65_535, True), (65_536, True), (65_537, False)])
async def test_the_configured_frame_limit_holds(
    autojump_clock: MockClock, tmp_path: Path, size: int, passes: bool
) -> None:
    services = ServicesConfig(dataexchange_frame_max=65_536)
    async with open_node(home=tmp_path, services=services) as node:
        async with await node.driver.dial(node.address, DATA_EXCHANGE) as stream:
            await stream.send_all(wire.encode_frame(FrameType.BINARY, bytes(size)))
            if passes:
                assert await answer(stream) == f"ACK BINARY {size} bytes".encode()
            else:
                assert await stream.receive_some() == b""
        async with await node.driver.dial(node.address, DATA_EXCHANGE) as stream:
            await stream.send_all(wire.encode_frame(FrameType.TEXT, b"still here"))
            assert await answer(stream) == b"ACK TEXT 10 bytes"


async def test_a_sender_that_goes_silent_inside_a_frame_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with open_node() as node, await node.driver.dial(node.address, DATA_EXCHANGE) as stream:
        began = trio.current_time()
        await stream.send_all(struct.pack("!II", FrameType.TEXT, 10) + b"half")
        assert await stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(dataexchange.IDLE_TIMEOUT, abs=2)
