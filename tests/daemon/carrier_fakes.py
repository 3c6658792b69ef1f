"""Two nodes' carriers joined by a tunnel that has keys already: packets cross after a delay, in batches."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import StreamLimits
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.carrier import TunnelCarrier
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import NoRoute
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.timers import Timers
from pilot_trio.proto.ports import PortTable
from pilot_trio.proto.tunnel.errors import NoTunnel
from pilot_trio.wire.packet import Packet, decode


class Wire:
    """What is between the nodes."""

    def __init__(self, delay: float = 0.001, loss: float = 0.0, seed: int = 0) -> None:
        self.delay = delay
        self.loss = loss
        self.random = random.Random(seed)
        self.nodes: dict[int, FakeNode] = {}
        self.filter: Callable[[int, Packet], bool] = lambda node, packet: True
        self.sent: list[tuple[int, Packet]] = []
        self.nursery: trio.Nursery | None = None

    def carry(self, source: int, batch: list[tuple[int, Packet]]) -> None:
        assert self.nursery is not None
        self.sent += [(source, packet) for _, packet in batch]
        for node, other in self.nodes.items():
            arriving = [
                (source, packet)
                for to, packet in batch
                if to == node and self.filter(source, packet) and self.random.random() >= self.loss
            ]
            if arriving:
                self.nursery.start_soon(self._deliver, other, arriving)

    async def _deliver(self, node: FakeNode, batch: list[tuple[int, Packet]]) -> None:
        await trio.sleep(self.delay)
        node.carrier.receive(batch)


class FakeTunnel:
    """Has a session with every node on the wire, unless told otherwise."""

    def __init__(self, wire: Wire, node: int) -> None:
        self.wire = wire
        self.node = node
        self.has_keys = trio.Event()
        self.has_keys.set()
        self.relayed: set[int] = set()
        self.in_use: dict[int, bool] = {}
        self.undone: list[int] = []
        self.doubted: list[int] = []
        self.pinged: list[int] = []
        self.answers = trio.Event()  # to all pings
        self.turn = Turn(self.flush)
        self._out: list[tuple[int, Packet]] = []

    def send(self, node: int, packet: Packet, /) -> None:
        if node not in self.wire.nodes:
            raise NoTunnel(node)
        if self.has_keys.is_set():
            self._out.append((node, packet))
        if not self.turn.depth:
            self.flush()

    def send_packets(self, node: int, packets: Sequence[bytes], now: float, /, *, salvage: bool = False) -> None:
        with self.turn:
            for packet in packets:
                self.send(node, decode(packet))

    def flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self.wire.carry(self.node, out)

    async def ensure(self, node: int, /) -> None:
        await trio.lowlevel.checkpoint()
        if node not in self.wire.nodes:
            raise NoRoute(f"resolve node {node}: registry: request failed")

    def has_session(self, node: int, /) -> bool:
        return self.has_keys.is_set() and node in self.wire.nodes

    async def ping(self, node: int, /) -> float:
        self.pinged.append(node)
        await self.answers.wait()
        return 0.0

    async def wait_for_session(self, node: int, /) -> None:
        await self.has_keys.wait()

    def key_came_by_relay(self, node: int, /) -> bool:
        return False

    def is_relayed(self, node: int, /) -> bool:
        return node in self.relayed

    def use_relay(self, node: int, /) -> bool:
        new = node not in self.relayed
        self.relayed.add(node)
        return new

    def doubt(self, node: int, /) -> None:
        self.doubted.append(node)

    def undo_relay(self, node: int, /) -> None:
        self.undone.append(node)
        self.relayed.discard(node)

    def path(self, node: int, /) -> Endpoint | None:
        return None

    def set_in_use(self, node: int, in_use: bool, /) -> None:
        self.in_use[node] = in_use


@attrs.define(eq=False)
class Trust:
    """Who is trusted here, and whom the registry would vouch for."""

    local: set[int] = attrs.field(factory=set)
    registry: set[int] = attrs.field(factory=set)
    asked: list[int] = attrs.field(factory=list)

    def admits(self, node: int, /) -> bool:
        return node in self.local

    async def check(self, node: int) -> bool:
        self.asked.append(node)
        await trio.sleep(0.01)
        return node in self.registry


class FakeNode:
    """A node's streams over the fake tunnel."""

    def __init__(self, wire: Wire, node: int, limits: StreamLimits, *, public: bool = True) -> None:
        self.state = NodeState(Identity.from_seed(bytes([node]) * 32), 0.0, node_id=NodeId(node), public=public)
        self.events = EventBus()
        self.published: list[Event] = []
        self.events.subscribe(self.published.append)
        self.ports = PortTable(node)
        self.tunnel = FakeTunnel(wire, node)
        self.trust = Trust()
        self.forgotten: list[int] = []
        self.timers = Timers()
        self.carrier = TunnelCarrier(
            state=self.state,
            ports=self.ports,
            resolver=self,
            tunnel=self.tunnel,
            timers=self.timers,
            trust=self.trust,
            check_trust=self.trust.check,
            limits=limits,
            events=self.events,
        )
        self.streams = StreamTable(self.state, self.ports, self.carrier, limits=limits, events=self.events)
        self.datagrams: list[Packet] = []
        self.carrier.attach(self.streams, self.datagrams.extend)

    def forget(self, node: int, /) -> None:
        self.forgotten.append(node)

    @property
    def address(self) -> Address:
        return Address(NetworkId(0), self.state.node_id)

    def topics(self) -> list[str]:
        return [event.topic for event in self.published]


@asynccontextmanager
async def joined(
    *, delay: float = 0.001, loss: float = 0.0, seed: int = 0, public: bool = True, limits: StreamLimits | None = None
) -> AsyncIterator[tuple[FakeNode, FakeNode, Wire]]:
    """Give two nodes, 1 and 2, and the wire between them."""
    wire = Wire(delay, loss, seed)
    async with trio.open_nursery() as nursery:
        wire.nursery = nursery
        for node in (1, 2):
            made = wire.nodes[node] = FakeNode(wire, node, limits or StreamLimits(), public=public)
            nursery.start_soon(made.timers.run)
            await nursery.start(made.carrier.run)
        yield wire.nodes[1], wire.nodes[2], wire
        nursery.cancel_scope.cancel()
