"""Tunnel machines joined by a tiny network with a beacon and a registry: no sockets, no clock but its own."""

from __future__ import annotations

import random
from collections.abc import Callable

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.events import Addr, ControlArrived, Event, KeyNeeded, RouteNeeded
from pilot_trio.proto.tunnel.machine import RouteAnswer, TunnelMachine
from pilot_trio.proto.tunnel.settings import TunnelSettings
from pilot_trio.proto.tunnel.upkeep_packets import pong
from pilot_trio.wire import beacon
from pilot_trio.wire.packet import DATAGRAM, Packet

BEACON: Addr = ("10.0.0.1", 9001)


def datagram(source: int, destination: int, payload: bytes = b"hello") -> Packet:
    one, two = (Address(NetworkId(0), NodeId(node)) for node in (source, destination))
    return Packet(DATAGRAM, DATAGRAM, one, two, 49152, 5000, payload=payload)._replace(flags=0)


class Node:
    """One machine and what came out of it."""

    def __init__(self, net: Net, node: int, settings: TunnelSettings | None = None) -> None:
        self.net = net
        self.node = node
        self.addr: Addr = (f"10.0.1.{node}", 4000)
        self.identity = Identity.from_seed(bytes([node]) * 32)
        self.settings = settings or TunnelSettings()
        self.received: list[tuple[int, Packet]] = []
        self.events: list[Event] = []
        self.restart()

    def restart(self, *, registered: bool = True) -> None:
        """Start anew: same identity, fresh X25519 key, no sessions."""
        source = random.Random(f"{self.node} {len(self.events)} {self.net.now}")
        self.machine = TunnelMachine(
            identity=self.identity,
            keypair=KeyPair.from_private(source.randbytes(32)),
            random_bytes=source.randbytes,
            settings=self.settings,
        )
        if registered:
            self.machine.on_registered(self.node, self.identity)
        if self.net.has_beacon:
            self.machine.set_beacon(BEACON)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


class Net:
    """Delivers datagrams at once, in order; answers questions as the registry would; relays as the beacon would."""

    def __init__(self, count: int = 2, *, beacon: bool = False, answers: bool = False) -> None:
        self.now = 100.0
        self.answers = answers  # nodes answer probes, as the daemon around a machine does
        self.has_beacon = beacon
        self.filter: Callable[[Addr, Addr, bytes], bool] = lambda source, to, data: True
        self.sent: list[tuple[Addr, Addr, bytes]] = []
        self.relay_only: set[int] = set()
        self.registered: dict[int, Addr] = {}  # where the registry believes nodes to be, if they are not there
        self.nodes = {node: Node(self, node) for node in range(1, count + 1)}

    def __getitem__(self, node: int) -> Node:
        return self.nodes[node]

    def pump(self) -> None:
        """Carry everything until nothing moves."""
        for _ in range(200):
            moved = False
            for node in list(self.nodes.values()):
                while (event := node.machine.next_event()) is not None:
                    moved = True
                    node.events.append(event)
                    self._answer(node, event)
                for data, to in node.machine.datagrams_to_send():
                    moved = True
                    self.carry(node.addr, to, data)
            if not moved:
                return
        raise AssertionError("the machines never come to rest")

    def _answer(self, node: Node, event: Event) -> None:
        if isinstance(event, KeyNeeded):
            peer = self.nodes.get(event.node)
            key = None if peer is None else peer.identity.public_key
            node.received += node.machine.on_key(event.node, key, self.now)
        elif isinstance(event, RouteNeeded):
            peer = self.nodes.get(event.node)
            hidden = event.node in self.relay_only
            known = None if peer is None else self.registered.get(peer.node, peer.addr)
            address = BEACON if hidden and known else known
            answer = None if address is None else RouteAnswer(address, relay_only=hidden)
            node.machine.on_route(event.node, answer, self.now)
        elif isinstance(event, ControlArrived) and self.answers:
            reply = pong(event.packet, node.node)
            if reply is not None:
                node.machine.send(event.node, reply, self.now)

    def carry(self, source: Addr, to: Addr, data: bytes) -> None:
        self.sent.append((source, to, data))
        if not self.filter(source, to, data):
            return
        if to == BEACON:
            self._beacon(data)
            return
        for node in self.nodes.values():
            if node.addr == to:
                node.received += node.machine.receive_datagrams([(data, source)], self.now)

    def _beacon(self, data: bytes) -> None:
        message = beacon.decode(data)
        if isinstance(message, beacon.Relay) and message.destination in self.nodes:
            delivery = beacon.RelayDelivery(message.sender, message.frame).encode()
            self.carry(BEACON, self.nodes[message.destination].addr, delivery)

    def advance(self, seconds: float) -> None:
        """Let time pass, with every timer run when it is due."""
        end = self.now + seconds
        self.pump()
        while (due := min(node.machine.next_deadline() for node in self.nodes.values())) <= end:
            self.now = max(self.now, due)
            for node in self.nodes.values():
                if node.machine.next_deadline() <= self.now:
                    node.machine.handle_timeout(self.now)
            self.pump()
        self.now = end

    def connect(self, one: int = 1, two: int = 2) -> None:
        """Make two nodes known to each other, sessions included."""
        self[one].machine.ensure(two, self.now)
        self.pump()
        assert self[one].machine.has_session(two)
        assert self[two].machine.has_session(one)

    def send(self, one: int, two: int, payload: bytes = b"hello") -> None:
        self[one].machine.send(two, datagram(one, two, payload), self.now)
        self.pump()

    def payloads(self, node: int) -> list[bytes]:
        return [packet.payload for _, packet in self[node].received]
