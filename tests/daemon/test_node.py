"""Whole nodes in memory, against registries that a test scripts. Virtual time."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.config import Config, RegistryConfig, ServicesConfig, TunnelConfig
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.node import IPC_OPEN_DELAY, Node, serve_node
from pilot_trio.driver import open_driver
from pilot_trio.errors import StartupError
from pilot_trio.net.network import Endpoint
from pilot_trio.services.eventstream import EventStream
from pilot_trio.testing import MemoryNetwork, MemoryStream, MemoryTransportListener
from pilot_trio.wire.beacon import Notify
from pilot_trio.wire.ipc import Code, encode_frame
from pilot_trio.wire.registry import Message
from pilot_trio.wire.tunnel import KeyExchange, encode_key_exchange, signed_bytes
from tests.registry.fake_registry import REGISTRY, Close, FakeRegistry, Hang, running

SHUTDOWN = 2.0  # seconds that a shutdown may take, whatever hangs


def directory(message: Message) -> Message:
    """Answer as a registry with one node and the backbone."""
    answers: dict[str, Message] = {
        "register": {"node_id": 7, "address": "0:0000.0000.0007"},
        "lookup": {"node_id": 7, "networks": [0], "public": False},
        "list_networks": {"networks": [{"id": 0, "name": "backbone"}]},
        "get_network_policy": {"allowed_ports": []},
        "poll_handshakes": {"requests": [], "responses": []},
    }
    kind = str(message["type"])
    return {"type": f"{kind}_ok", **answers.get(kind, {})}


def hang(_: Message) -> Message:
    raise Hang


def close(_: Message) -> Message:
    raise Close


def garbage(_: Message) -> bytes:
    return b"\xff" * 64


class World:
    def __init__(self, home: Path) -> None:
        self.network = MemoryNetwork()
        self.listener = MemoryTransportListener()
        self.registry = FakeRegistry(directory)
        self.home = home

    def config(self, **settings: Any) -> Config:
        settings.setdefault("registry", RegistryConfig(endpoint=REGISTRY))
        return Config(home=self.home, identity=None, beacon="127.0.0.1:9001", **settings)

    @asynccontextmanager
    async def node(self, **settings: Any) -> AsyncIterator[Node]:
        """Run a node; at the end of the block it is cancelled and must be gone within `SHUTDOWN`."""
        serve = partial(serve_node, self.config(**settings), network=self.network, listener=self.listener)
        async with trio.open_nursery() as nursery:
            node: Node = await nursery.start(serve)
            yield node
            nursery.cancel_scope.cancel()
            ended_at = trio.current_time()
        assert trio.current_time() - ended_at < SHUTDOWN

    async def ask(self, code: Code, payload: bytes = b"") -> bytes:
        async with open_driver(connect_with=self.listener.open_transport) as driver:
            return await driver.command(code, payload)

    async def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.ask(Code.HEALTH))
        return answer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


async def test_clients_are_served_as_soon_as_the_node_is_registered(autojump_clock: MockClock, world: World) -> None:
    async with running(world.network, world.registry):
        started = trio.current_time()
        async with world.node(hostname="node-x") as node:
            assert trio.current_time() == started
            info = json.loads(await world.ask(Code.INFO))
            assert (info["node_id"], info["address"]) == (7, "0:0000.0000.0007")
            assert info["hostname"] == "node-x"
            assert info["ports"] == 4
            assert (await world.health())["status"] == "ok"
            assert node.state.registry_reachable
            assert node.statistics().enrolment.registrations == 1


@pytest.mark.parametrize("behaviour", [None, hang, close, garbage])
async def test_clients_are_served_after_a_second_whatever_the_registry_does(
    autojump_clock: MockClock, world: World, behaviour: Any
) -> None:
    async with trio.open_nursery() as nursery:
        if behaviour is not None:
            world.registry.handler = behaviour
            nursery.start_soon(world.registry.serve, await world.network.listen_tcp(REGISTRY))
        started = trio.current_time()
        async with world.node() as node:
            assert trio.current_time() - started == pytest.approx(IPC_OPEN_DELAY)
            asked = trio.current_time()
            assert (await world.health())["status"] == "registering"
            info = json.loads(await world.ask(Code.INFO))
            assert (info["node_id"], info["address"]) == (0, "0:0000.0000.0000")
            assert trio.current_time() == asked
            await trio.sleep(600)
            assert not node.state.registered
            assert not node.state.registry_reachable
            if behaviour is None:
                nursery.start_soon(world.registry.serve, await world.network.listen_tcp(REGISTRY))
            world.registry.handler = directory
            await trio.sleep(120)
            assert (await world.health())["status"] == "ok"
        nursery.cancel_scope.cancel()


async def test_health_never_waits_while_the_registry_hangs(autojump_clock: MockClock, world: World) -> None:
    async with running(world.network, world.registry), world.node():
        await trio.sleep(5)
        world.registry.handler = hang
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(partial(self_contained_find, world, f"name-{number}"))
            await trio.sleep(3)
            asked = trio.current_time()
            assert (await world.health())["status"] == "ok"
            assert json.loads(await world.ask(Code.INFO))["node_id"] == 7
            assert trio.current_time() == asked


async def self_contained_find(world: World, name: str) -> None:
    started = trio.current_time()
    with pytest.raises(Exception, match="resolve_hostname: registry: "):
        await world.ask(Code.RESOLVE_HOSTNAME, name.encode())
    assert trio.current_time() - started <= 8.1


async def test_heartbeats_do_not_wait_behind_a_flood_of_questions(autojump_clock: MockClock, world: World) -> None:
    def slow_with_names(message: Message) -> Message:
        if message["type"] == "resolve_hostname":
            raise Hang
        return directory(message)

    async with running(world.network, world.registry), world.node(keepalive=10.0) as node:
        await trio.sleep(1)
        world.registry.handler = slow_with_names
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(flood, await world.listener.open_stream())
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert node.statistics().registry.calls > 500
        assert node.statistics().enrolment.failed_heartbeats == 0
        beats = [seen.at for seen in world.registry.of("heartbeat")]
        assert all(later - earlier == pytest.approx(10) for earlier, later in pairwise(beats))
        assert len(beats) >= 5


async def flood(client: MemoryStream) -> None:
    """Ask for names as fast as answers come, 500 at a time."""
    question = b"".join(encode_frame(Code.RESOLVE_HOSTNAME, b"n%d" % number) for number in range(500))
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            while True:
                await client.send_all(question)
                await trio.sleep(5)

        nursery.start_soon(ask)
        while await client.receive_some(65_536):
            pass


async def test_restart_of_the_registry_goes_unnoticed(autojump_clock: MockClock, world: World) -> None:
    async with world.node() as node:
        async with running(world.network, world.registry):
            await trio.sleep(100)
            assert node.state.registered
        await trio.sleep(300)
        assert (await world.health())["status"] == "ok"
        second = FakeRegistry(directory)
        async with running(world.network, second):
            await trio.sleep(35)
            assert second.of("heartbeat")
            assert not second.of("register")
            assert node.state.registry_reachable


async def test_registry_that_lost_everything_gets_it_back(autojump_clock: MockClock, world: World) -> None:
    async with running(world.network, world.registry), world.node(hostname="node-x", public=True) as node:
        await trio.sleep(10)

        def forgetful(message: Message) -> Message:
            if message["type"] == "heartbeat" and len(world.registry.of("register")) < 2:
                return {"type": "error", "error": "node 7: node not found"}
            return directory(message)

        world.registry.handler = forgetful
        world.registry.seen.clear()
        await trio.sleep(200)
        registered_at = world.registry.types.index("register")
        assert world.registry.types[registered_at : registered_at + 3] == ["register", "set_visibility", "set_hostname"]
        assert node.state.node_id == 7


async def test_notice_from_the_beacon_fetches_handshakes(autojump_clock: MockClock, world: World) -> None:
    beacon = await world.network.open_udp(Endpoint("127.0.0.1", 9001))
    async with running(world.network, world.registry), world.node():
        _, node_at = await beacon.receive()
        await trio.sleep(10)
        polls = len(world.registry.of("poll_handshakes"))
        beacon.send_nowait(Notify(1).encode(), node_at)
        await trio.sleep(0.1)
        assert len(world.registry.of("poll_handshakes")) == polls + 1


async def test_node_answers_its_own_echo(autojump_clock: MockClock, world: World) -> None:
    async with (
        running(world.network, world.registry),
        world.node(),
        open_driver(connect_with=world.listener.open_transport) as driver,
        await driver.dial("0:0000.0000.0007", 7) as stream,
    ):
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize(
    ("services", "ports"), [({}, 4), ({"echo": False}, 3), ({"dataexchange": False, "eventstream": False}, 2)]
)
async def test_services_can_be_left_out(
    autojump_clock: MockClock, world: World, services: dict[str, bool], ports: int
) -> None:
    async with running(world.network, world.registry), world.node(services=ServicesConfig(**services)) as node:
        assert node.statistics().streams.ports == ports


async def test_service_that_crashes_costs_one_stream(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(_self: EventStream, _stream: trio.abc.Stream) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(EventStream, "handle", crash)
    async with (
        running(world.network, world.registry),
        world.node(),
        open_driver(connect_with=world.listener.open_transport) as driver,
    ):
        for _ in range(2):
            async with await driver.dial("0:0000.0000.0007", 1002) as stream:
                assert await stream.receive_some() == b""
        assert "eventstream failed" in caplog.text


# Endings


async def test_end_is_announced_and_leaves_nothing_open(autojump_clock: MockClock, world: World) -> None:
    async with running(world.network, world.registry):
        async with world.node() as node:
            topics: list[str] = []
            node.events.subscribe(lambda event: topics.append(event.topic))
            client = await world.listener.open_stream()
            await client.send_all(encode_frame(Code.HEALTH))
            assert await client.receive_some(65_536)
        assert await client.receive_some(65_536) == b""
        assert topics == ["daemon.shutting_down"]
        await trio.testing.wait_all_tasks_blocked()
        assert world.registry.accepted == world.registry.closed
        with pytest.raises(ConnectionRefusedError):
            await world.listener.open_transport()
        sock = await world.network.open_udp(Endpoint("127.0.0.1", 9001))
        sock.close()


async def test_end_waits_for_nobody_that_hangs(autojump_clock: MockClock, world: World) -> None:
    async with running(world.network, world.registry):
        clients = []
        async with world.node():
            await trio.sleep(5)
            world.registry.handler = hang
            requests = [
                encode_frame(Code.RESOLVE_HOSTNAME, b"somebody"),
                encode_frame(Code.ROTATE_KEY),
                encode_frame(Code.HANDSHAKE, b"\x01\0\0\0\x09please"),
                encode_frame(Code.HANDSHAKE, b"\x04"),
            ]
            for request in requests:
                client = await world.listener.open_stream()
                clients.append(client)
                await client.send_all(request)
            stalled = await world.listener.open_stream()
            clients.append(stalled)
            with trio.move_on_after(5):
                while True:
                    await stalled.send_all(encode_frame(Code.INFO) * 1000)  # and never reads
            await trio.sleep(0.5)


async def test_end_may_come_at_any_moment_of_the_start(autojump_clock: MockClock, world: World) -> None:
    world.registry.delay = 0.2
    async with running(world.network, world.registry):
        for moment in range(12):
            world.listener = MemoryTransportListener()
            serve = partial(
                serve_node,
                world.config(hostname="x", public=True),
                network=world.network,
                listener=world.listener,
            )
            with trio.move_on_after(moment * 0.1) as scope:
                await serve()
            assert scope.cancelled_caught
            assert trio.current_time() - scope.deadline < SHUTDOWN


async def test_fail_fast_ends_the_start(autojump_clock: MockClock, world: World) -> None:
    config = world.config(registry=RegistryConfig(endpoint=REGISTRY, fail_fast=True))
    with pytest.raises(BaseExceptionGroup) as caught:
        await serve_node(config, network=world.network, listener=world.listener)
    assert caught.group_contains(StartupError, match=r"registry dial \(after 10 attempts\): registry: dial tcp")


async def test_fail_fast_reports_the_start_only_once_registered(autojump_clock: MockClock, world: World) -> None:
    world.registry.delay = 3
    registry = RegistryConfig(endpoint=REGISTRY, fail_fast=True)
    async with running(world.network, world.registry), world.node(registry=registry) as node:
        assert node.state.registered
        assert trio.current_time() >= 3


# Starts that fail


async def test_udp_port_in_use_ends_the_start(autojump_clock: MockClock, world: World) -> None:
    await world.network.open_udp(Endpoint("127.0.0.1", 4000))
    with pytest.raises(StartupError, match=r"tunnel listen on 127.0.0.1:4000: .*in use; choose another port, or 0"):
        await serve_node(world.config(listen="127.0.0.1:4000"), network=world.network, listener=world.listener)


async def test_node_alone_needs_a_registry(autojump_clock: MockClock, world: World) -> None:
    with pytest.raises(StartupError, match="no registry"):
        await serve_node(Config(home=world.home, identity=None), network=world.network, listener=world.listener)


@pytest.mark.parametrize("stored", [b"ftp://nowhere", b"\xff\xff"])
async def test_unusable_webhook_is_no_reason_not_to_start(
    autojump_clock: MockClock, world: World, stored: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    world.home.mkdir()
    (world.home / "webhook_url").write_bytes(stored)
    async with running(world.network, world.registry), world.node() as node:
        assert node.webhook.url == ""
        assert "webhook not used" in caplog.text


# Tunnels


@pytest.mark.parametrize(
    ("public", "trusted", "admitted"), [(True, False, True), (False, True, True), (False, False, False)]
)
async def test_strict_trust_concerns_strangers_of_private_nodes(
    autojump_clock: MockClock,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    public: bool,
    trusted: bool,
    admitted: bool,
) -> None:
    keys = {9: Identity.from_seed(b"9" * 32)}

    def with_peers(message: Message) -> Message:
        if message["type"] == "lookup" and message["node_id"] in keys:
            return {"type": "lookup_ok", "node_id": 9, "public_key": keys[9].public_key_b64}
        return directory(message)

    world.registry.handler = with_peers
    settings: dict[str, Any] = {"public": public, "tunnel": TunnelConfig(strict_trust=True)}
    async with running(world.network, world.registry), world.node(**settings) as node:
        monkeypatch.setattr(node.trust, "is_trusted", lambda number: trusted and number == 9)
        x25519 = bytes(range(32))
        frame = KeyExchange(9, x25519, keys[9].public_key, keys[9].sign(signed_bytes(9, x25519)))
        peer = await world.network.open_udp(Endpoint("127.0.0.1", 0))
        to = Endpoint("127.0.0.1", node.tunnel.endpoint.port)
        peer.send_nowait(encode_key_exchange(frame), to)
        await trio.sleep(1)
        assert node.tunnel.has_session(9) == admitted


@pytest.mark.parametrize(
    ("encrypt", "text"),
    [
        (True, "tunnel encryption enabled"),
        (False, "tunnel encryption is disabled — all connections will send plaintext"),
    ],
)
async def test_start_says_whether_tunnels_are_encrypted(
    autojump_clock: MockClock, world: World, caplog: pytest.LogCaptureFixture, encrypt: bool, text: str
) -> None:
    caplog.set_level(logging.INFO, "pilot_trio.tunnel")
    async with running(world.network, world.registry), world.node(encrypt=encrypt):
        assert [record.getMessage() for record in caplog.records if "tunnel encryption" in record.getMessage()] == [
            text
        ]
