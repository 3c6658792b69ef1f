"""What the in-memory tests of the driver show, once more on a Unix socket of the kernel."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from pilot_trio.driver import Driver, PilotStream, open_driver
from pilot_trio.driver.link import STREAM_BUFFER
from pilot_trio.errors import DaemonError, DialRefused, IPCClosedError, PortInUse
from tests.driver.daemon import OWN_ADDRESS, StandIn, open_daemon


@pytest.fixture
async def socket_path(daemon: StandIn, nursery: trio.Nursery) -> AsyncGenerator[Path]:
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as folder:
        path = Path(folder) / "s"
        await nursery.start(daemon.listen_at, path)
        yield path


@pytest.fixture
async def node(socket_path: Path) -> AsyncGenerator[Driver]:
    async with open_driver(socket_path) as node:
        yield node


async def make_pair(node: Driver) -> tuple[PilotStream, PilotStream]:
    listener = await node.listen(5000)
    return await node.dial(OWN_ADDRESS, 5000), await listener.accept()


async def wait_until_full(stream: PilotStream) -> None:
    while stream.unread < STREAM_BUFFER:
        await trio.lowlevel.checkpoint()


async def test_requests_streams_and_datagrams(node: Driver) -> None:
    assert (await node.info()).node_id == 1
    with pytest.raises(DaemonError):
        await node.deregister()
    with pytest.raises(DialRefused):
        await node.dial(OWN_ADDRESS, 9999)
    near, far = await make_pair(node)
    with pytest.raises(PortInUse):
        await node.listen(5000)
    data = random.Random(1).randbytes(5 << 20)
    received = bytearray()

    async def send() -> None:
        await near.send_all(data)
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while chunk := await far.receive_some():
            received += chunk
    assert received == data
    async with node.datagrams(7) as datagrams:
        await node.send_datagram(OWN_ADDRESS, b"x", 7)
        assert (await datagrams.receive()).data == b"x"


async def test_a_stream_may_be_closed_while_its_buffer_is_full(node: Driver) -> None:
    near, far = await make_pair(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(1 << 20))
        await wait_until_full(far)
        nursery.cancel_scope.cancel()
    await near.aclose()
    await far.aclose()
    assert (await node.health()).status == "ok"


async def test_leaving_while_a_buffer_is_full(socket_path: Path) -> None:
    async with open_daemon() as daemon, trio.open_nursery() as nursery:
        path = socket_path.with_name("other")
        await nursery.start(daemon.listen_at, path)
        async with open_driver(path) as node:
            near, far = await make_pair(node)
            nursery.start_soon(_send_until_broken, near)
            await wait_until_full(far)
        nursery.cancel_scope.cancel()


async def _send_until_broken(stream: PilotStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(bytes(1 << 26))


async def test_a_lost_daemon_is_noticed() -> None:
    with tempfile.TemporaryDirectory(prefix="pt", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = Path(folder) / "s"
        listening.bind(str(path))
        listening.listen()

        async def expect_closed() -> None:
            with pytest.raises(IPCClosedError, match="without a word"):
                await driver.health()

        async with open_driver(path) as driver, trio.open_nursery() as nursery:
            server, _ = listening.accept()
            nursery.start_soon(expect_closed)
            await trio.to_thread.run_sync(server.recv, 5)
            server.close()
