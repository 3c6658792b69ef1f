"""Streams and datagrams between our node and the real daemon, in both roles, and between two of ours.

The clients are the real pilotctl, our own tool and our driver; each daemon is a process, the path between them real UDP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator
from functools import partial
from typing import NamedTuple

import pytest
import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import DialRefused
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ECHO = 7
MIB = 1024 * 1024
TRANSFER_TIMEOUT = 30.0  # seconds; the transfers take one or two


class Pair(NamedTuple):
    overlay: Overlay
    near: OverlayNode
    far: OverlayNode


@pytest.fixture(params=[("ours", "go"), ("go", "ours"), ("ours", "ours")], ids="-to-".join)
async def pair(request: pytest.FixtureRequest, make_go_home: MakeHome) -> AsyncGenerator[Pair]:
    near, far = request.param
    async with open_pair(make_go_home, near, far) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_pair(make_home: MakeHome, near: Kind, far: Kind) -> AsyncGenerator[Pair]:
    async with open_overlay(make_home) as overlay:
        yield Pair(overlay, await overlay.start(near), await overlay.start(far))


async def test_diagnostics_of_either_tool(pair: Pair) -> None:
    near, far = pair.near, pair.far
    for tool in (near.ctl, near.our_ctl):
        pings = (await tool("ping", far.address, "--count", "3")).data
        assert [row["bytes"] for row in pings["results"]] == [6, 6, 6]
        assert pings["timeout"] is False
        trace = (await tool("traceroute", far.address)).data
        assert trace["setup_ms"] > 0
        assert len(trace["rtt_samples"]) == 3
        bench = (await tool("bench", far.address, "8")).data
        assert bench["complete"] is True
        assert bench["recv_bytes"] == bench["sent_bytes"] == 8 * MIB

    peers = (await near.ctl("peers")).data["peers"]
    (row,) = (row for row in peers if row["node_id"] == far.node_id)
    assert row["encrypted"] is True
    assert row["authenticated"] is True
    if near.kind == "ours":
        established = [line for line in near.log if 'msg="encrypted tunnel established"' in line]
        assert len(established) == 1, established


async def test_eight_megabytes_come_back_as_they_were_sent_both_ways_at_once(pair: Pair) -> None:
    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far, trio.open_nursery() as nursery:
            nursery.start_soon(echo, near, pair.far, 8 * MIB)
            nursery.start_soon(echo, far, pair.near, 8 * MIB)


async def test_sixty_four_parallel_dials(pair: Pair) -> None:
    done = 0

    async def one(driver: Driver, number: int) -> None:
        nonlocal done
        async with await driver.dial(pair.far.address, ECHO) as stream:
            message = b"dial %d" % number
            await stream.send_all(message)
            assert await receive_exactly(stream, len(message)) == message
            done += 1

    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as driver, trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(one, driver, number)
    assert done == 64


async def test_refused_at_once(pair: Pair) -> None:
    async with pair.near.driver() as driver:
        async with await driver.dial(pair.far.address, ECHO):
            pass  # there is a tunnel; a refusal costs one round trip
        with trio.fail_after(1), pytest.raises(DialRefused):
            await driver.dial(pair.far.address, 4999)


@pytest.mark.parametrize("accepting_side_sends", [False, True])
async def test_what_was_written_before_a_close_arrives(pair: Pair, accepting_side_sends: bool) -> None:
    sent = os.urandom(2 * MIB)

    async def send(stream: PilotStream) -> None:
        async with stream:
            await stream.send_all(sent)

    async def receive(stream: PilotStream) -> bytes:
        async with stream:
            return b"".join([chunk async for chunk in stream])

    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            listener = await far.listen(5000)
            dialled = await near.dial(pair.far.address, 5000)
            accepted = await listener.accept()
            sender, receiver = (accepted, dialled) if accepting_side_sends else (dialled, accepted)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, sender)
                received = await receive(receiver)
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


@pytest.mark.parametrize("accepting_side_sends", [False, True])
async def test_a_writer_learns_that_its_reader_has_closed(pair: Pair, accepting_side_sends: bool) -> None:
    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            listener = await far.listen(5000)
            dialled = await near.dial(pair.far.address, 5000)
            accepted = await listener.accept()
            sender, receiver = (accepted, dialled) if accepting_side_sends else (dialled, accepted)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_broken, sender)
                await receive_exactly(receiver, MIB)
                await receiver.aclose()


@pytest.mark.parametrize("pair", [("ours", "go"), ("ours", "ours")], ids="-to-".join, indirect=True)
async def test_a_reader_that_pauses_holds_nobody_else_up(pair: Pair) -> None:
    """Ten seconds in the middle of 4 MB, in both roles; the reference on its own comes to a stop for good."""
    sent = os.urandom(4 * MIB)

    async def send(stream: PilotStream) -> None:
        await stream.send_all(sent)

    async def receive_with_a_pause(stream: PilotStream) -> None:
        received = await receive_exactly(stream, 2 * MIB)
        await trio.sleep(10)
        received += await receive_exactly(stream, 2 * MIB)
        assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()

    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            listener = await far.listen(5000)
            dialled = await near.dial(pair.far.address, 5000)
            accepted = await listener.accept()
            second = await near.dial(pair.far.address, 5000)
            accepted_second = await listener.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, dialled)
                nursery.start_soon(receive_with_a_pause, accepted)
                nursery.start_soon(send, accepted_second)
                nursery.start_soon(receive_with_a_pause, second)
                await trio.sleep(2)
                for _ in range(6):
                    # A pair with the reference in it waits for the reference's loop, a second per probe at most.
                    await echo(near, pair.far, 64 * 1024)
                    await trio.sleep(1)


async def test_datagrams_both_ways(pair: Pair) -> None:
    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            for sender, target, receiver in ((near, pair.far, far), (far, pair.near, near)):
                async with receiver.datagrams(6000) as channel:
                    for size in (1, 1200, 8000):
                        data = os.urandom(size)
                        assert await sender.send_datagram(target.address, data, 6000) is True
                        got = await channel.receive()
                        assert got.data == data
                        assert got.destination_port == 6000


async def test_the_tools_send_and_receive(pair: Pair) -> None:
    near, far = pair.near, pair.far
    received = {}

    async def listen(name: str, *arguments: str) -> None:
        received[name] = (await far.ctl(*arguments, "--count", "1", "--timeout", "4s")).data["messages"]

    bound = (await far.info())["ports"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, "stream", "recv", "5001")
        nursery.start_soon(listen, "datagram", "listen", "5002")
        await wait_for_ports(far, bound + 1)
        await trio.sleep(0.3)  # a listener for datagrams binds nothing that could be seen
        assert (await near.ctl("dgram", far.address, "5002", "--data", "by datagram")).data["confirmed"] is True
        nursery.start_soon(partial(near.our_ctl, "send", far.address, "5001", "--data", "by stream", timeout=20))
    assert received["datagram"][0]["data"] == "by datagram"
    assert received["stream"][0]["data"] == "by stream"


async def test_disconnect_reaches_the_peer(pair: Pair) -> None:
    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            listener = await far.listen(5000)
            stream = await near.dial(pair.far.address, 5000)
            accepted = await listener.accept()
            await trio.sleep(0.25)  # daemons answer with rows up to 200 ms old
            rows = (await pair.near.ctl("connections")).data["connections"]
            (row,) = (row for row in rows if row["remote_port"] == 5000)
            assert row["state"] == "ESTABLISHED"
            assert (await pair.near.ctl("disconnect", str(row["id"]))).returncode == 0
            assert await accepted.receive_some() == b""
            assert await stream.receive_some() == b""


async def test_a_peer_sees_at_once_that_our_node_has_shut_down(make_go_home: MakeHome) -> None:
    async with open_pair(make_go_home, "ours", "go") as pair, pair.near.driver() as near, pair.far.driver() as far:
        listener = await far.listen(5000)
        async with await near.dial(pair.far.address, 5000):
            accepted = await listener.accept()
            await pair.near.stop()
            with trio.fail_after(2):
                assert await accepted.receive_some() == b""


async def test_both_advertise_the_same_features(make_go_home: MakeHome) -> None:
    async with open_pair(make_go_home, "ours", "go") as pair:
        ours, theirs = await pair.near.info(), await pair.far.info()
    assert set(ours["features"]) == set(theirs["features"])


async def echo(driver: Driver, target: OverlayNode, size: int) -> None:
    """Send random bytes to the echo service of a node and hold the answer against them."""
    data = os.urandom(size)
    async with await driver.dial(target.address, ECHO) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        received = await receive_exactly(stream, size)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def receive_exactly(stream: PilotStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = await stream.receive_some(size - len(received))
        assert chunk, f"the stream ended after {len(received)} of {size} bytes"
        received += chunk
    return bytes(received)


async def expect_broken(stream: PilotStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await write_for_ever(stream)


async def write_for_ever(stream: PilotStream) -> None:
    chunk = bytes(64 * 1024)
    while True:
        await stream.send_all(chunk)


async def wait_for_ports(node: OverlayNode, count: int) -> None:
    """Wait until so many ports are bound; no daemon announces it."""
    with trio.fail_after(5):
        async with node.driver() as driver:
            while (await driver.info()).ports < count:  # noqa: ASYNC110 - another process sets no event of ours
                await trio.sleep(0.05)
