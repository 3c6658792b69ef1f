"""Three nodes of both kinds talk to each other for two minutes, in every way and direction, over paths that lose."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator
from itertools import permutations

import attrs
import pytest
import trio

from pilot_trio.driver import Driver
from tests.interop.lossy import LossyPath, open_lossy_path, start_behind
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import KIB, echo, pattern

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

KINDS: list[Kind] = ["ours", "go", "ours"]
LOSS = 0.02
DURATION = 120.0  # seconds
PATIENCE = 30.0  # seconds for one exchange of a size that takes less than one
SIZE = 128 * KIB  # bytes that a stream carries each way before it is closed
PAUSE = 0.5  # seconds between streams: other tests want the processors too
DATAGRAM_PAUSE = 0.1  # seconds
PING_PAUSE = 5.0  # seconds
PORT = 6000
# What two minutes bring at least, in each direction; on an idle machine it is four times as much.
LEAST_STREAMS, LEAST_PINGS, LEAST_DATAGRAMS, LEAST_PACKETS = 30, 5, 200, 20_000
DELIVERED = 0.9  # of the datagrams: one in fifty is lost on the path, and some more where a buffer is full


@attrs.define(eq=False)
class Member:
    node: OverlayNode
    driver: Driver
    path: LossyPath
    echoed: Counter[int] = attrs.field(factory=Counter)  # streams, by the node that echoed
    pinged: Counter[int] = attrs.field(factory=Counter)
    sent: Counter[int] = attrs.field(factory=Counter)  # datagrams, by the node they went to
    received: dict[int, set[int]] = attrs.field(factory=dict)  # numbers of datagrams, by the node they came from


@contextlib.asynccontextmanager
async def open_network(overlay: Overlay) -> AsyncGenerator[list[Member]]:
    async with contextlib.AsyncExitStack() as stack:
        members = []
        for seed, kind in enumerate(KINDS):
            path = await stack.enter_async_context(open_lossy_path(loss=LOSS, seed=seed))
            node = await start_behind(path, overlay, kind)
            members.append(Member(node, await stack.enter_async_context(node.driver()), path))
        yield members


async def test_three_nodes_of_both_kinds_over_paths_that_lose(make_go_home: MakeHome) -> None:
    async with open_overlay(make_go_home) as overlay, open_network(overlay) as members:
        end = time.monotonic() + DURATION  # real ones: the clock of tests goes slower where this process gets no turn
        async with trio.open_nursery() as listening:
            for member in members:
                listening.start_soon(receive_datagrams, member)
            async with trio.open_nursery() as talking:
                for one, other in permutations(members, 2):
                    talking.start_soon(stream, one, other.node, end)
                    talking.start_soon(send_datagrams, one, other.node, end)
                    talking.start_soon(ping, one, other.node, end)
            await trio.sleep(1)  # what was sent last is still under way
            listening.cancel_scope.cancel()

        for one, other in permutations(members, 2):
            there = other.node.node_id
            assert one.echoed[there] >= LEAST_STREAMS
            assert one.pinged[there] >= LEAST_PINGS
            assert one.sent[there] >= LEAST_DATAGRAMS
            arrived = len(other.received[one.node.node_id])
            assert arrived >= DELIVERED * one.sent[there], f"{arrived} of {one.sent[there]} datagrams arrived"
        assert sum(len(numbers) for member in members for numbers in member.received.values()) < sum(
            member.sent.total() for member in members
        ), "nothing was lost of what nobody repeats"
        await check_paths(members)


async def check_paths(members: list[Member]) -> None:
    """All that the nodes sent has met a proxy, and the proxies have lost of it what they should."""
    lost = sum(member.path.lost for member in members)
    passed = sum(member.path.passed for member in members)
    assert lost + passed >= LEAST_PACKETS
    assert lost / (lost + passed) == pytest.approx(LOSS, abs=0.005)
    await trio.sleep(0.25)  # daemons answer with counters up to 200 ms old
    for member in members:
        info = await member.node.info()
        seen = sum(other.path.seen[member.path.target] for other in members)
        assert seen >= 0.98 * info["pkts_sent"] > LEAST_PACKETS / 10, "some of its packets went around the proxies"
        assert [row["relay"] for row in info["peer_list"]] == [False, False]


async def stream(one: Member, other: OverlayNode, end: float) -> None:
    """Echo one stream after the other; each is held against what was sent."""
    while time.monotonic() < end:
        with trio.fail_after(PATIENCE):
            await echo(one.driver, other, SIZE)
        one.echoed[other.node_id] += 1
        await trio.sleep(PAUSE)


async def ping(one: Member, other: OverlayNode, end: float) -> None:
    while time.monotonic() < end:
        rows = (await one.node.ctl("ping", other.address, "--count", "2", timeout=PATIENCE)).data["results"]
        assert [row["bytes"] for row in rows] == [6, 6], rows
        one.pinged[other.node_id] += 1
        await trio.sleep(PING_PAUSE)


async def send_datagrams(one: Member, other: OverlayNode, end: float) -> None:
    while time.monotonic() < end:
        number = one.sent[other.node_id]
        assert await one.driver.send_datagram(other.address, numbered(number), PORT)
        one.sent[other.node_id] += 1
        await trio.sleep(DATAGRAM_PAUSE)


async def receive_datagrams(one: Member) -> None:
    """Check and note what arrives, from whomever."""
    async with one.driver.datagrams(PORT) as channel:
        async for datagram in channel:
            number = int.from_bytes(datagram.data[:4], "big")
            assert datagram.data == numbered(number)
            seen = one.received.setdefault(datagram.source.node, set())
            assert number not in seen, "a datagram arrived twice"
            seen.add(number)


def numbered(number: int) -> bytes:
    return number.to_bytes(4, "big") + pattern(number, 1 + number % 1100)
