"""Streams and datagrams between our node and the real daemon, in both roles, and between two of ours.

The clients are the real pilotctl, our own tool and our driver; each daemon is a process, the path between them real UDP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple

import attrs
import pytest
import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import DialRefused
from tests.interop.go import CtlResult
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import ECHO, MIB, echo, receive_exactly

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

TRANSFER_TIMEOUT = 120.0  # seconds; the transfers take one or two
AT_ONCE = 8.0  # seconds for what takes one round trip; what waits for a timer of the protocol takes longer


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
        with trio.fail_after(AT_ONCE), pytest.raises(DialRefused):
            await driver.dial(pair.far.address, 4999)


@pytest.mark.parametrize("accepting_side_sends", [False, True])
async def test_what_was_written_before_a_close_arrives(pair: Pair, accepting_side_sends: bool) -> None:
    sent = os.urandom(2 * MIB)
    received = bytearray()

    async def send(stream: PilotStream) -> None:
        async with stream:
            await stream.send_all(sent)
            assert len(received) < len(sent), "some of it is still under way"

    async def receive(stream: PilotStream) -> None:
        async with stream:
            async for chunk in stream:
                received.extend(chunk)

    with trio.fail_after(TRANSFER_TIMEOUT):
        async with pair.near.driver() as near, pair.far.driver() as far:
            listener = await far.listen(5000)
            dialled = await near.dial(pair.far.address, 5000)
            accepted = await listener.accept()
            sender, receiver = (accepted, dialled) if accepting_side_sends else (dialled, accepted)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, sender)
                await receive(receiver)
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
            for sender, source, target, receiver in (
                (near, pair.near, pair.far, far),
                (far, pair.far, pair.near, near),
            ):
                async with receiver.datagrams(6000) as channel:
                    for size in (1, 1200, 8000, 60_000):
                        data = os.urandom(size)
                        assert await sender.send_datagram(target.address, data, 6000) is True
                        got = await channel.receive()
                        assert got.data == data
                        assert got.destination_port == 6000
                        assert str(got.source) == source.address


@pytest.mark.parametrize("sends", ["pilotctl", "ours"])
async def test_the_tools_send_and_receive(pair: Pair, sends: str) -> None:
    """Each tool sends what the other one receives; again, until both were there at the same time."""
    near, far = pair.near, pair.far
    send, receive = (near.ctl, far.our_ctl) if sends == "pilotctl" else (near.our_ctl, far.ctl)
    messages: list[dict[str, Any]] = []
    with trio.fail_after(TRANSFER_TIMEOUT):
        while not messages:
            async with trio.open_nursery() as nursery:
                # `recv` and `send` wait for each other's end, so that both last until this timeout.
                recv = Receiving()
                nursery.start_soon(recv.run, receive, "recv", "5001", "--timeout", "5s")
                sent = False
                while not (recv.done or sent):
                    sent = (await send("send", far.address, "5001", "--data", "a stream")).returncode == 0
            messages = recv.messages
        assert [message["data"] for message in messages] == ["a stream"]

        async with trio.open_nursery() as nursery:
            listen = Receiving()
            nursery.start_soon(listen.run, receive, "listen", "5002", "--timeout", "40s")
            while not listen.done:  # who listens for datagrams binds nothing that could be waited for
                assert (await send("dgram", far.address, "5002", "--data", "a datagram")).data["confirmed"] is True
                await trio.sleep(0.1)
        assert [message["data"] for message in listen.messages] == ["a datagram"]


@attrs.define(eq=False)
class Receiving:
    """A tool that receives, in a task, and what it has received once it is done."""

    done: bool = False
    messages: list[dict[str, Any]] = attrs.field(factory=list)

    async def run(self, tool: Callable[..., Awaitable[CtlResult]], *arguments: str) -> None:
        self.messages = (await tool(*arguments, "--count", "1", timeout=TRANSFER_TIMEOUT)).data["messages"] or []
        self.done = True


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
            with trio.fail_after(AT_ONCE):
                assert await accepted.receive_some() == b""


async def test_both_advertise_the_same_features(make_go_home: MakeHome) -> None:
    async with open_pair(make_go_home, "ours", "go") as pair:
        ours, theirs = await pair.near.info(), await pair.far.info()
    assert set(ours["features"]) == set(theirs["features"])


async def expect_broken(stream: PilotStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await write_for_ever(stream)


async def write_for_ever(stream: PilotStream) -> None:
    chunk = bytes(64 * 1024)
    while True:
        await stream.send_all(chunk)
