from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DatagramSocket, Network, SystemNetwork
from pilot_trio.rendezvous import beacon_server
from pilot_trio.rendezvous.beacon_server import DISCOVER_RATE, BeaconServer, Drop
from pilot_trio.rendezvous.endpoint_table import ENTRY_TTL, MOVE_INTERVAL, NOTIFY_INTERVAL
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.wire.beacon import Discover, DiscoverReply, Notify, NotifyKind, PunchRequest, Relay, Sync, decode

ONE = NodeId(1)
POKE = Notify(NotifyKind.HANDSHAKE).encode()
ANY_PORT = Endpoint("127.0.0.1", 0)


@contextlib.asynccontextmanager
async def open_beacon(
    network: Network, *, known: frozenset[int] = frozenset({1, 2}), unlimited: bool = True
) -> AsyncGenerator[tuple[BeaconServer, Endpoint], None]:
    beacon = BeaconServer(known.__contains__, lambda _host: unlimited)
    socket = await network.open_udp(ANY_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beacon.serve, socket)
        yield beacon, socket.endpoint
        nursery.cancel_scope.cancel()


async def discover(node: DatagramSocket, beacon: Endpoint, message: Discover) -> DiscoverReply:
    assert node.send_nowait(message.encode(), beacon)
    reply = decode((await node.receive())[0])
    assert isinstance(reply, DiscoverReply)
    return reply


@pytest.mark.parametrize("network", [MemoryNetwork(), SystemNetwork()], ids=["memory", "system"])
async def test_discover_is_answered_with_the_source_and_remembered(network: Network) -> None:
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        for message in (Discover(ONE), Discover(ONE, multi=True), Discover(ONE, b"k" * 32)):
            assert await discover(node, at, message) == DiscoverReply(*node.endpoint)
        assert beacon.table.find(ONE, trio.current_time()) == node.endpoint
        assert beacon.statistics().discovers == 3
        node.close()


@pytest.mark.parametrize("node_id", [0, 77])
async def test_unregistered_nodes_are_answered_and_not_remembered(autojump_clock: object, node_id: int) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        assert await discover(node, at, Discover(NodeId(node_id))) == DiscoverReply(*node.endpoint)
        statistics = beacon.statistics()
        assert (statistics.endpoints, statistics.strangers) == (0, 0 if node_id == 0 else 1)


async def test_a_moving_node_is_always_answered_but_not_always_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        first, second = await network.open_udp(ANY_PORT), await network.open_udp(ANY_PORT)
        for node in (first, second, first):
            assert await discover(node, at, Discover(ONE)) == DiscoverReply(*node.endpoint)
        assert beacon.table.find(ONE, trio.current_time()) == second.endpoint
        assert beacon.statistics().moves_refused == 1
        await trio.sleep(MOVE_INTERVAL)
        await discover(first, at, Discover(ONE))
        assert beacon.table.find(ONE, trio.current_time()) == first.endpoint


async def test_a_node_is_believed_at_once_where_it_has_registered(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        # It restarts again and again; somebody else claims its number in between.
        for _ in range(4):
            node, stranger = await network.open_udp(ANY_PORT), await network.open_udp(ANY_PORT)
            beacon.endpoint_of = {ONE: str(node.endpoint)}.get  # type: ignore[assignment]
            await discover(stranger, at, Discover(ONE))
            await discover(node, at, Discover(ONE))
            await discover(stranger, at, Discover(ONE))
            assert beacon.table.find(ONE, trio.current_time()) == node.endpoint
            await trio.sleep(1)


async def test_silent_nodes_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        await discover(node, at, Discover(ONE))
        await trio.sleep(ENTRY_TTL)
        assert not beacon.notify(ONE)
        assert beacon.statistics().endpoints == 0


async def test_notifies_are_sent_at_once_and_then_at_intervals(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        assert not beacon.notify(ONE)
        await discover(node, at, Discover(ONE))
        started = trio.current_time()
        for _ in range(5):
            assert beacon.notify(ONE)
        times = []
        for _ in range(2):
            assert (await node.receive())[0] == POKE
            times.append(trio.current_time() - started)
        assert times == [0.0, pytest.approx(NOTIFY_INTERVAL)]
        with trio.move_on_after(10 * NOTIFY_INTERVAL) as scope:
            await node.receive()
        assert scope.cancelled_caught
        assert beacon.statistics().notifies == 2


async def test_a_postponed_notify_goes_to_where_the_node_is_by_then(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        before, after = await network.open_udp(ANY_PORT), await network.open_udp(ANY_PORT)
        await discover(before, at, Discover(ONE))
        beacon.notify(ONE)
        beacon.notify(ONE)
        await discover(after, at, Discover(ONE))
        assert (await after.receive())[0] == POKE


async def test_a_postponed_notify_to_a_node_that_vanished_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        await discover(node, at, Discover(ONE))
        await trio.sleep(ENTRY_TTL - 1)
        beacon.notify(ONE)
        beacon.notify(ONE)
        await trio.sleep(2 * NOTIFY_INTERVAL)
        assert beacon.statistics().notifies == 1


async def test_what_is_not_a_beacons_business_is_dropped_and_counted(autojump_clock: object) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        two = NodeId(2)
        for datagram, drop in (
            (b"", Drop.MALFORMED),
            (b"\x01\x00", Drop.MALFORMED),
            (b"\xff" * 1000, Drop.MALFORMED),
            (b"PILS" + bytes(60), Drop.MALFORMED),
            (DiscoverReply("127.0.0.1", 1).encode(), Drop.NOT_FOR_BEACONS),
            (POKE, Drop.NOT_FOR_BEACONS),
            (Relay(ONE, two, b"frame").encode()[:8], Drop.MALFORMED),
            (Relay(ONE, two, b"frame").encode(), Drop.UNKNOWN_TARGET),
            (PunchRequest(ONE, two).encode(), Drop.UNKNOWN_TARGET),
            (PunchRequest(NodeId(77), ONE).encode(), Drop.PUNCH_REFUSED),
            (Sync(1, (ONE,)).encode(), Drop.UNSUPPORTED),
        ):
            before = beacon.statistics().drops[drop]
            node.send_nowait(datagram, at)
            await discover(node, at, Discover(ONE))  # still served, and the drop has happened before it
            assert beacon.statistics().drops[drop] == before + 1
        assert sum(beacon.statistics().drops.values()) == 11


async def test_a_source_over_its_rate_is_not_answered(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_beacon(network, unlimited=False) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        for _ in range(int(DISCOVER_RATE)):
            await discover(node, at, Discover(ONE))
        node.send_nowait(Discover(ONE).encode(), at)
        await trio.testing.wait_all_tasks_blocked()
        assert beacon.statistics().drops[Drop.RATE_LIMITED] == 1
        await trio.sleep(1 / DISCOVER_RATE)
        await discover(node, at, Discover(ONE))


async def test_a_failing_message_is_logged_and_the_next_one_served(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    network = MemoryNetwork()

    def is_registered(node: NodeId) -> bool:
        if node == 666:
            raise RuntimeError("the table is on fire")
        return True

    beacon = BeaconServer(is_registered, lambda _host: True)
    socket = await network.open_udp(ANY_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beacon.serve, socket)
        node = await network.open_udp(ANY_PORT)
        with caplog.at_level(logging.ERROR, beacon_server.logger.name):
            node.send_nowait(Discover(NodeId(666)).encode(), socket.endpoint)
            await discover(node, socket.endpoint, Discover(ONE))
        assert "on fire" in caplog.text
        nursery.cancel_scope.cancel()


async def test_cancelling_closes_the_socket_and_answers_after_that_are_counted(autojump_clock: object) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (beacon, at):
        node = await network.open_udp(ANY_PORT)
        await discover(node, at, Discover(ONE))
    assert beacon.notify(ONE)
    assert beacon.statistics().drops[Drop.UNSENT] == 1
    again = await network.open_udp(at)  # the port is free
    again.close()


async def test_a_datagram_that_the_socket_refuses_is_counted(autojump_clock: object) -> None:
    class Deaf(DatagramSocket):
        def __init__(self, inner: DatagramSocket) -> None:
            self.inner = inner

        @property
        def endpoint(self) -> Endpoint:
            return self.inner.endpoint

        async def receive(self) -> tuple[bytes, Endpoint]:
            return await self.inner.receive()

        def send_nowait(self, data: bytes, to: Endpoint) -> bool:
            return False

        def close(self) -> None:
            self.inner.close()

    network = MemoryNetwork()
    beacon = BeaconServer(lambda _node: True, lambda _host: True)
    socket = Deaf(await network.open_udp(ANY_PORT))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(beacon.serve, socket)
        node = await network.open_udp(ANY_PORT)
        node.send_nowait(Discover(ONE).encode(), socket.endpoint)
        await trio.testing.wait_all_tasks_blocked()
        assert beacon.statistics().drops[Drop.UNSENT] == 1
        nursery.cancel_scope.cancel()
