from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import NodeId
from pilot_trio.daemon.beacon_client import (
    DISCOVER_TIMEOUT,
    NAT_INTERVAL,
    RELAY_INTERVAL,
    RETURN_INTERVAL,
    BeaconClient,
)
from pilot_trio.daemon.beacon_list import BeaconList
from pilot_trio.daemon.state import TunnelStatistics
from pilot_trio.net.addresses import is_public
from pilot_trio.net.network import DatagramSocket, Endpoint
from pilot_trio.proto.beacon_choice import RETURN_ROUNDS, fnv1a_32
from pilot_trio.testing import MemoryNetwork
from pilot_trio.wire.beacon import Discover, DiscoverReply, Notify, PunchCommand, decode
from tests.daemon.fakes import FakeClient, Link, ShortestWaits, make_state, unavailable

LOCAL = Endpoint("127.0.0.1", 9001)
PUBLIC = Endpoint("203.0.113.1", 9001)  # a documentation address, which counts as private; see `as_if_public`
OTHER = Endpoint("203.0.113.2", 9001)
PERIOD = 60.0


@pytest.fixture
def as_if_public(monkeypatch: pytest.MonkeyPatch) -> None:
    def documentation_or_public(host: str) -> bool:
        return host.startswith("203.0.113.") or is_public(host)

    monkeypatch.setattr("pilot_trio.daemon.beacon_client.is_public", documentation_or_public)


class Setup:
    def __init__(self, *beacons: Endpoint) -> None:
        self.network = MemoryNetwork(names={"beacon.test": PUBLIC.host})
        self.state = make_state(0)
        self.registry = FakeClient({"beacon_list": {"type": "beacon_list_ok", "beacons": []}})
        self.beacons = beacons
        self.relay_only = False
        self.notified = 0
        self.client: BeaconClient
        self.link: Link

    def notify(self) -> None:
        self.notified += 1

    async def read(self, sock: DatagramSocket) -> None:
        while True:
            self.client.receive(*await sock.receive())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DatagramSocket]:
        sock = await self.network.open_udp(Endpoint("", 0))
        self.link = Link(sock)
        self.client = BeaconClient(
            network=self.network,
            link=self.link,
            state=self.state,
            configured=self.beacons,
            listed=BeaconList(self.registry, None, time.time),
            on_notify=self.notify,
            keepalive=PERIOD,
            relay_only=self.relay_only,
            rng=ShortestWaits(),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self.client.run)
            nursery.start_soon(self.read, sock)
            await wait_all_tasks_blocked()  # the beacon is resolved
            yield sock
            nursery.cancel_scope.cancel()


async def received(beacon: DatagramSocket, within: float) -> list[tuple[float, int]]:
    """Return when each discover arrived and for which node."""
    seen = []
    with trio.move_on_after(within):
        while True:
            data, source = await beacon.receive()
            message = decode(data)
            assert isinstance(message, Discover)
            beacon.send_nowait(DiscoverReply(source.host, source.port).encode(), source)
            seen.append((trio.current_time(), int(message.node)))
    return seen


@pytest.mark.usefixtures("as_if_public")
async def test_discover_returns_where_the_beacon_sees_the_socket(autojump_clock: MockClock) -> None:
    setup = Setup(PUBLIC)
    beacon = await setup.network.open_udp(PUBLIC)
    async with setup.running(), trio.open_nursery() as nursery:

        async def answer() -> None:
            data, source = await beacon.receive()
            assert decode(data) == Discover(NodeId(0))
            beacon.send_nowait(DiscoverReply("203.0.113.77", 4001).encode(), source)

        nursery.start_soon(answer)
        assert await setup.client.discover() == Endpoint("203.0.113.77", 4001)
        assert setup.client.statistics().replies == 1


@pytest.mark.usefixtures("as_if_public")
async def test_silent_beacon_costs_five_seconds(autojump_clock: MockClock) -> None:
    setup = Setup(PUBLIC)
    async with setup.running():
        started = trio.current_time()
        assert await setup.client.discover() is None
        assert trio.current_time() - started == pytest.approx(DISCOVER_TIMEOUT)


@pytest.mark.usefixtures("as_if_public")
async def test_private_answer_is_discarded(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(PUBLIC)
    beacon = await setup.network.open_udp(PUBLIC)
    async with setup.running() as sock, trio.open_nursery() as nursery:

        async def answer() -> None:
            await beacon.receive()
            beacon.send_nowait(DiscoverReply("10.0.0.7", 4001).encode(), Endpoint("127.0.0.1", sock.endpoint.port))

        nursery.start_soon(answer)
        assert await setup.client.discover() is None
        assert "STUN returned private/unusable IP, discarding" in caplog.text


async def test_local_beacon_is_asked_but_not_waited_for(autojump_clock: MockClock) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        started = trio.current_time()
        assert await setup.client.discover() is None
        assert trio.current_time() == started
        assert await received(beacon, 1) == [(started, 0)]


@pytest.mark.parametrize(("delay", "believed"), [(1.9, ["203.0.113.77"]), (2.1, [])])
async def test_where_the_beacon_saw_us_is_believed_for_two_seconds_and_once(
    autojump_clock: MockClock, delay: float, believed: list[str]
) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    seen: list[str] = []
    async with setup.running():
        setup.client.on_observed = lambda endpoint: seen.append(endpoint.host)
        assert await setup.client.discover() is None  # a local one is not waited for
        _, source = await beacon.receive()
        await trio.sleep(delay)
        for host in ("203.0.113.77", "203.0.113.88"):
            beacon.send_nowait(DiscoverReply(host, 4001).encode(), source)
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)
        assert seen == believed


async def test_without_a_beacon_nothing_is_sent(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.running():
        assert await setup.client.discover() is None
        setup.client.announce()
        await trio.sleep(200)
        assert setup.client.statistics().sent == 0
        assert setup.state.beacon_addr == ""


async def test_node_announces_itself_at_once_a_second_later_and_every_period(autojump_clock: MockClock) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        setup.state.node_id = NodeId(7)
        started = trio.current_time()
        setup.client.announce()
        seen = await received(beacon, 2 * PERIOD + 5)
        assert [(at - started, node) for at, node in seen] == [(0, 7), (1, 7), (1 + PERIOD, 7), (1 + 2 * PERIOD, 7)]
        assert setup.state.beacon_addr == "127.0.0.1:9001"


async def test_only_the_beacon_may_notify(autojump_clock: MockClock) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    stranger = await setup.network.open_udp(Endpoint("127.0.0.1", 0))
    async with setup.running() as sock:
        node = Endpoint("127.0.0.1", sock.endpoint.port)
        stranger.send_nowait(Notify(1).encode(), node)
        await wait_all_tasks_blocked()
        assert setup.notified == 0
        beacon.send_nowait(Notify(1).encode() + b"trailing", node)
        await wait_all_tasks_blocked()
        assert setup.notified == 1


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x0a",
        b"\x0a\x02",
        b"\x0b",
        b"PILS" + bytes(40),
        PunchCommand("10.0.0.1", 1).encode(),
        b"\x02\x05",
        bytes(9),
    ],
)
async def test_other_datagrams_are_ignored_and_counted(autojump_clock: MockClock, datagram: bytes) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running() as sock:
        beacon.send_nowait(datagram, Endpoint("127.0.0.1", sock.endpoint.port))
        await wait_all_tasks_blocked()
        assert setup.client.statistics().ignored == 1
        assert setup.notified == 0


async def test_beacon_that_is_a_name_is_resolved(autojump_clock: MockClock) -> None:
    setup = Setup(Endpoint("beacon.test", 9001))
    beacon = await setup.network.open_udp(PUBLIC)
    async with setup.running():
        setup.client.announce()
        assert len(await received(beacon, 0.5)) == 1
        assert setup.state.beacon_addr == "beacon.test:9001"
        assert setup.link.beacon == PUBLIC


async def test_an_announcement_that_got_lost_is_repeated(autojump_clock: MockClock) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        setup.client.announce()
        started = trio.current_time()
        for _ in range(3):
            await beacon.receive()  # and say nothing, as if nothing had come
        assert trio.current_time() - started <= 3
        await received(beacon, 2)
        assert len(await received(beacon, PERIOD + 1)) == 1


@pytest.mark.usefixtures("as_if_public")
async def test_a_discover_that_got_lost_is_repeated(autojump_clock: MockClock) -> None:
    setup = Setup(PUBLIC)
    beacon = await setup.network.open_udp(PUBLIC)
    async with setup.running(), trio.open_nursery() as nursery:

        async def lose_one_and_answer() -> None:
            await beacon.receive()
            _, source = await beacon.receive()
            beacon.send_nowait(DiscoverReply("203.0.113.77", 4001).encode(), source)

        nursery.start_soon(lose_one_and_answer)
        assert await setup.client.discover() == Endpoint("203.0.113.77", 4001)


async def test_name_that_cannot_be_resolved_is_tried_again(autojump_clock: MockClock) -> None:
    setup = Setup(Endpoint("later.test", 9001))
    setup.registry.answers["beacon_list"] = unavailable()
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        setup.client.announce()
        setup.network.names = {"later.test": "127.0.0.1"}
        assert len(await received(beacon, 10)) == 0
        assert len(await received(beacon, PERIOD)) == 1


async def test_listed_beacons_join_the_configured_ones(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.registry.answers["beacon_list"] = {"beacons": [{"id": 1, "addr": "beacon.test:9001"}]}
    beacon = await setup.network.open_udp(PUBLIC)
    async with setup.running():
        setup.state.node_id = NodeId(7)
        setup.client.announce()
        assert {node for _, node in await received(beacon, 5)} == {7}
        setup.registry.answers["beacon_list"] = unavailable()
        await trio.sleep(300)
        assert setup.state.beacon_addr == "beacon.test:9001"
        assert [call.at for call in setup.registry.calls][:3] == pytest.approx([0, 60, 120], abs=0.1)


async def test_what_can_be_no_host_is_no_beacon(autojump_clock: MockClock) -> None:
    setup = Setup()
    addrs = ["\ud800:9001", "\udc00:9001", "beacon.test:9001"]
    setup.registry.answers["beacon_list"] = {"beacons": [{"id": 1, "addr": addr} for addr in addrs]}
    async with setup.running():
        setup.state.node_id = NodeId(7)
        setup.client.announce()
        await trio.sleep(100)
        assert setup.state.beacon_addr == "beacon.test:9001"


@pytest.mark.parametrize(
    ("seen", "interval"),
    [(Endpoint("203.0.113.77", 9), NAT_INTERVAL), (Endpoint("127.0.0.1", 9), NAT_INTERVAL), (None, PERIOD)],
    ids=["another address", "another port", "where it is"],
)
async def test_behind_a_nat_the_beacon_is_asked_more_often(
    autojump_clock: MockClock, seen: Endpoint | None, interval: float
) -> None:
    setup = Setup(LOCAL)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        setup.state.node_id = NodeId(7)
        setup.client.announce()
        asked: list[float] = []
        with trio.move_on_after(3 * PERIOD):
            while True:
                _, source = await beacon.receive()
                beacon.send_nowait(DiscoverReply(*(seen or source)).encode(), source)
                asked.append(trio.current_time())
        assert [later - earlier for earlier, later in itertools.pairwise(asked[1:])] == pytest.approx(
            [interval] * (len(asked) - 2)
        )
        assert len(asked) > 3


@pytest.mark.parametrize("who", ["this node hides", "a peer is relayed"])
async def test_while_the_beacon_relays_to_us_it_is_told_more_often_where_we_are(
    autojump_clock: MockClock, who: str
) -> None:
    setup = Setup(LOCAL)
    setup.relay_only = who == "this node hides"
    if not setup.relay_only:
        setup.state.tunnel_source = lambda: TunnelStatistics(relay_peers=1)
    beacon = await setup.network.open_udp(LOCAL)
    async with setup.running():
        setup.state.node_id = NodeId(7)
        setup.client.announce()
        asked: list[float] = []
        with trio.move_on_after(3 * PERIOD):
            while True:
                _, source = await beacon.receive()
                beacon.send_nowait(DiscoverReply(*source).encode(), source)
                asked.append(trio.current_time())
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked[1:])]
        assert gaps == pytest.approx([RELAY_INTERVAL] * len(gaps))
        assert len(gaps) > 9


# Beacons that fall silent


class Beacons:
    """Two beacons, told apart by who is to prefer, which can be silenced."""

    def __init__(self, setup: Setup) -> None:
        pick = fnv1a_32(setup.state.identity.public_key) % 2
        self.setup = setup
        self.first, self.second = setup.beacons[pick], setup.beacons[1 - pick]
        self.silent: set[Endpoint] = set()
        self.asked: dict[Endpoint, list[tuple[float, int]]] = {self.first: [], self.second: []}

    async def serve(self, at: Endpoint, nursery: trio.Nursery) -> None:
        sock = await self.setup.network.open_udp(at)
        nursery.start_soon(self._answer, at, sock)

    async def _answer(self, at: Endpoint, sock: DatagramSocket) -> None:
        while True:
            data, source = await sock.receive()
            message = decode(data)
            assert isinstance(message, Discover)
            self.asked[at].append((trio.current_time(), int(message.node)))
            if at not in self.silent:
                sock.send_nowait(DiscoverReply(source.host, source.port).encode(), source)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await self.serve(self.first, nursery)
            await self.serve(self.second, nursery)
            async with self.setup.running():
                self.setup.state.node_id = NodeId(7)
                self.setup.client.announce()
                yield
            nursery.cancel_scope.cancel()

    @property
    def in_use(self) -> Endpoint | None:
        assert self.setup.link.beacon == self.setup.client.address
        assert self.setup.state.beacon_addr == str(self.setup.client.address)
        return self.setup.client.address


@pytest.fixture
def two() -> Beacons:
    return Beacons(Setup(LOCAL, Endpoint("127.0.0.1", 9002)))


async def test_a_silent_beacon_is_left_for_another_within_two_minutes(autojump_clock: MockClock, two: Beacons) -> None:
    switches: list[None] = []
    async with two.running():
        two.setup.client.on_switched = lambda: switches.append(None)
        await trio.sleep(10)
        assert two.in_use == two.first
        two.silent.add(two.first)
        await trio.sleep(120)
        assert two.in_use == two.second
        assert {node for _, node in two.asked[two.second]} == {7}
        assert switches == []  # else the watch of the own address would forget where this node was


async def test_a_beacon_that_restarts_is_kept(autojump_clock: MockClock, two: Beacons) -> None:
    async with two.running():
        for _ in range(20):
            two.silent.add(two.first)
            await trio.sleep(20)
            two.silent.clear()
            await trio.sleep(40)
        assert two.in_use == two.first
        assert two.asked[two.second] == []


async def test_the_beacon_to_prefer_is_returned_to_when_it_has_answered_for_a_while(
    autojump_clock: MockClock, two: Beacons
) -> None:
    async with two.running():
        two.silent.add(two.first)
        await trio.sleep(600)
        assert two.in_use == two.second
        registered = [node for _, node in two.asked[two.first]].count(7)
        two.silent.clear()
        await trio.sleep((RETURN_ROUNDS - 1) * RETURN_INTERVAL)
        assert two.in_use == two.second
        # Until then it is asked as nobody: it must not take itself for the one that relays to this node.
        assert [node for _, node in two.asked[two.first]].count(7) == registered
        await trio.sleep(RETURN_INTERVAL + 5)
        assert two.in_use == two.first
        assert [node for _, node in two.asked[two.first]].count(7) > registered
        await trio.sleep(3600)
        assert two.in_use == two.first


async def test_a_beacon_that_comes_and_goes_is_not_returned_to(autojump_clock: MockClock, two: Beacons) -> None:
    async with two.running():
        two.silent.add(two.first)
        await trio.sleep(300)
        for _ in range(10):
            two.silent.discard(two.first)
            await trio.sleep(1.5 * RETURN_INTERVAL)
            two.silent.add(two.first)
            await trio.sleep(1.5 * RETURN_INTERVAL)
            assert two.in_use == two.second


async def test_while_all_are_silent_each_is_tried(autojump_clock: MockClock, two: Beacons) -> None:
    async with two.running():
        two.silent |= {two.first, two.second}
        await trio.sleep(600)
        two.asked[two.first].clear()
        two.asked[two.second].clear()
        await trio.sleep(300)
        assert two.asked[two.first]
        assert two.asked[two.second]
        two.silent.remove(two.second)
        await trio.sleep(300)
        assert two.in_use == two.second


@pytest.mark.usefixtures("as_if_public")
async def test_a_start_does_not_depend_on_the_first_beacon(autojump_clock: MockClock) -> None:
    two = Beacons(Setup(PUBLIC, OTHER))
    two.silent.add(two.first)
    two.setup.network.names = {}
    async with trio.open_nursery() as nursery:
        await two.serve(two.first, nursery)
        await two.serve(two.second, nursery)
        async with two.setup.running():
            started = trio.current_time()
            assert await two.setup.client.discover() is None  # documentation addresses only here: nobody is public
            assert trio.current_time() - started == pytest.approx(DISCOVER_TIMEOUT)
            assert two.in_use == two.second
            assert two.asked[two.second]
        nursery.cancel_scope.cancel()
