"""Tunnels on a network in memory, with a registry that is a dictionary; and a peer that speaks frames by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.resolver import Route
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.tunnel import Tunnel
from pilot_trio.errors import NoRoute, RegistryError
from pilot_trio.net.network import DatagramSocket, Endpoint, Network
from pilot_trio.proto.tunnel.machine import Received
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import TunnelSettings
from pilot_trio.testing import MemoryNetwork
from pilot_trio.wire import packet as packets
from pilot_trio.wire import tunnel as wire
from pilot_trio.wire.packet import DATAGRAM, Packet

HOST = "127.0.0.1"


def identity(node: int) -> Identity:
    return Identity.from_seed(bytes([node]) * 32)


def datagram(source: int, destination: int, payload: bytes = b"hello") -> Packet:
    one, two = (Address(NetworkId(0), NodeId(node)) for node in (source, destination))
    return Packet(0, DATAGRAM, one, two, 49152, 5000, payload=payload)


@attrs.define(eq=False)
class Directory:
    """What the registry knows; each answer takes `delay` seconds."""

    keys: dict[int, bytes] = attrs.field(factory=dict)
    routes: dict[int, Route] = attrs.field(factory=dict)
    delay: float = 0.0
    asked: list[tuple[str, int]] = attrs.field(factory=list)
    forgotten: list[int] = attrs.field(factory=list)
    busy: int = 0
    busiest: int = 0

    async def resolve(self, node: int) -> Route:
        await self._answer("route", node)
        if node not in self.routes:
            raise NoRoute(f"resolve node {node}: registry: request failed")
        return self.routes[node]

    async def public_key(self, node: int) -> bytes:
        await self._answer("key", node)
        if node not in self.keys:
            raise RegistryError("request failed")
        return self.keys[node]

    def forget(self, node: int) -> None:
        self.forgotten.append(node)

    async def _answer(self, what: str, node: int) -> None:
        self.asked.append((what, node))
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await trio.sleep(self.delay)
        finally:
            self.busy -= 1


@attrs.define(eq=False)
class TunnelNode:
    """One tunnel and what came out of it."""

    tunnel: Tunnel
    state: NodeState
    sock: DatagramSocket
    events: list[Event]
    bus: EventBus
    delivered: list[list[Received]] = attrs.field(factory=list)
    hooked: list[int] = attrs.field(factory=list)

    @property
    def node(self) -> int:
        return self.state.node_id

    @property
    def payloads(self) -> list[bytes]:
        return [packet.payload for batch in self.delivered for _, packet in batch]

    def topics(self) -> list[str]:
        return [event.topic for event in self.events]

    def send(self, to: int, payload: bytes = b"hello") -> None:
        self.tunnel.send(to, datagram(self.node, to, payload))


@attrs.define(eq=False)
class World:
    """Tunnels that share a network and a directory."""

    nursery: trio.Nursery
    network: Network = attrs.field(factory=MemoryNetwork)
    directory: Directory = attrs.field(factory=Directory)
    sockets: list[DatagramSocket] = attrs.field(factory=list)

    async def start(
        self, node: int, settings: TunnelSettings | None = None, *, sock: DatagramSocket | None = None
    ) -> TunnelNode:
        """Run one more tunnel, registered under `node`."""
        sock = sock or await self.network.open_udp(Endpoint(HOST, 0))
        self.sockets.append(sock)
        bus = EventBus()
        seen: list[Event] = []
        bus.subscribe(seen.append)
        state = NodeState(identity(node), 0.0, node_id=NodeId(node))
        tunnel = Tunnel(
            sock=sock, state=state, resolver=self.directory, network=self.network, bus=bus, settings=settings
        )
        self.directory.keys[node] = state.identity.public_key
        self.directory.routes[node] = Route(sock.endpoint)
        made = TunnelNode(tunnel, state, sock, seen, bus)
        tunnel.deliver = made.delivered.append
        tunnel.on_session = made.hooked.append
        await self.nursery.start(tunnel.run)
        return made

    async def pair(self) -> tuple[TunnelNode, TunnelNode]:
        """Run nodes 1 and 2 with a session between them."""
        one, two = await self.start(1), await self.start(2)
        await one.tunnel.ensure(2)
        await one.tunnel.wait_for_session(2)
        await trio.testing.wait_all_tasks_blocked()
        return one, two


@asynccontextmanager
async def open_world(network: Network | None = None) -> AsyncIterator[World]:
    sockets: list[DatagramSocket] = []
    try:
        async with trio.open_nursery() as nursery:
            yield World(nursery, MemoryNetwork() if network is None else network, sockets=sockets)
            nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()


class HandPeer:
    """A peer that sends exactly what a test says."""

    def __init__(self, world: World, node: int, sock: DatagramSocket, keypair: KeyPair) -> None:
        self.node = node
        self.sock = sock
        self.keypair = keypair
        self.identity = identity(node)
        world.directory.keys[node] = self.identity.public_key
        world.directory.routes[node] = Route(sock.endpoint)
        self.session: Session | None = None

    @classmethod
    async def open(cls, world: World, node: int) -> HandPeer:
        sock = await world.network.open_udp(Endpoint(HOST, 0))
        return cls(world, node, sock, KeyPair.from_private(bytes([node]) * 32))

    def key_frame(self) -> bytes:
        x25519 = self.keypair.public
        signature = self.identity.sign(wire.signed_bytes(self.node, x25519))
        return wire.encode_key_exchange(wire.KeyExchange(self.node, x25519, self.identity.public_key, signature))

    def say(self, data: bytes, to: TunnelNode) -> None:
        self.sock.send_nowait(data, to.sock.endpoint)

    async def hear(self) -> bytes:
        with trio.fail_after(30):
            return (await self.sock.receive())[0]

    async def hear_all(self, seconds: float) -> list[bytes]:
        heard: list[bytes] = []
        with trio.move_on_after(seconds):
            while True:
                heard.append((await self.sock.receive())[0])
        return heard

    async def connect(self, to: TunnelNode) -> None:
        """Agree on a key."""
        self.say(self.key_frame(), to)
        answer = wire.decode_key_exchange(await self.hear())
        key = self.keypair.derive(answer.x25519)
        self.session = Session(key, self.node, answer.x25519, lambda size: b"\x07" * size, trio.current_time())

    def seal(self, packet: Packet) -> bytes:
        assert self.session is not None
        return self.session.seal(packet.encode())

    def open_frame(self, frame: bytes) -> Packet:
        assert self.session is not None
        return packets.decode(self.session.open(frame)[0])
