"""Datagrams: one packet, no acknowledgement, no order (`spec/transport.md` §7, `spec/ipc.md` §5.3).

An incoming datagram is offered to every connected client, whatever it has bound; a client whose queue is full loses it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

import attrs

from pilot_trio.address import BACKBONE, BROADCAST_NODE, Address, NetworkId, NodeId, Port
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import RouteResolver
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import CommandError, NoRoute, PilotError, PortNotAllowed
from pilot_trio.proto.ports import PortTable
from pilot_trio.wire.ipc import DATAGRAM_MAX, Broadcast, Target, encode_recv_from
from pilot_trio.wire.packet import DATAGRAM, Packet

REMOTE_DATAGRAM_MAX: Final = (
    65_428  # bytes to another node, by relay too: what UDP leaves; protocol, `spec/transport.md` §2.1
)

Members = Callable[[NetworkId], Awaitable[Iterable[NodeId]]]


@attrs.frozen
class DatagramStatistics:
    """What `Datagrams.statistics` returns."""

    sent: int  # handed on, empty ones included
    received: int  # offered to the clients
    dropped: int  # unconfirmed ones that could not be sent: no tunnel, policy, size


class DatagramCarrier(Protocol):
    """What takes datagrams to other nodes."""

    def send_datagram(self, packet: Packet, /) -> bool:
        """Send now; False if contact with the node has to be made first. Raises `TunnelError`."""
        ...

    async def send_datagram_later(self, packet: Packet, /) -> None:
        """Make contact, then send; raise `NoRoute` or `TunnelError`."""
        ...

    def send_datagram_soon(self, packet: Packet, /) -> bool:
        """Make contact in the background, then send; False if too many wait for that already."""
        ...


class Datagrams:
    """Sends, receives and broadcasts datagrams for the local clients.

    Args:
      state: who we are, and what the port policies admit.
      ports: where source ports come from, shared with the streams.
      resolver: finds the route to other nodes.
      deliver: offers `RECV_FROM` frames to every connected client; must neither wait nor fail.
      admin_token: what a broadcast has to show; empty: nobody may broadcast.
      members: asks the registry for the members of a network; raises `RegistryError`.
      events: where `data.datagram` is published.
      carrier: takes datagrams to other nodes; None: there is no way there.
      turn: what arrives inside is offered at its end, all at once.
    """

    def __init__(
        self,
        state: NodeState,
        ports: PortTable,
        resolver: RouteResolver,
        deliver: Callable[[Sequence[bytes]], object],
        *,
        members: Members,
        admin_token: str = "",
        events: EventBus | None = None,
        carrier: DatagramCarrier | None = None,
        turn: Turn | None = None,
    ) -> None:
        self._state = state
        self._carrier = carrier
        self._ports = ports
        self._resolver = resolver
        self._deliver = deliver
        self._turn = turn
        self._arrived: list[bytes] = []  # frames of this turn
        self._members = members
        self._admin_token = admin_token
        self._events = events or EventBus()
        self._sent = self._received = self._dropped = 0

    def statistics(self) -> DatagramStatistics:
        """Return the counters."""
        return DatagramStatistics(self._sent, self._received, self._dropped)

    def send_nowait(self, target: Target) -> bool:
        """Send one datagram if that needs no waiting; False if a route has to be found first (use `send`).

        Raises:
          CommandError, PortNotAllowed, PortsExhausted, NoRoute: it may not or cannot be sent.
        """
        self._check(target)
        if target.address.node == self._state.node_id:
            self._send_from(self._source_port(), target)
        elif self._carrier is None or not self._carrier.send_datagram(self._packet(target)):
            return False
        else:
            self._sent += 1
        return True

    async def send(self, target: Target) -> None:
        """Send one datagram, finding the route first where that is necessary; raises as `send_nowait` does."""
        if self.send_nowait(target):
            return
        if self._carrier is None:
            await self._resolver.resolve(target.address.node)
            raise NoRoute(f"no tunnel to node {target.address.node}")
        await self._carrier.send_datagram_later(self._packet(target))
        self._sent += 1

    def send_or_drop(self, target: Target) -> None:
        """Send one datagram whose sender does not want to know; what cannot be sent is dropped and counted.

        Never waits, so a sender is not held up by the registry: on first contact the datagram waits in the background.
        """
        try:
            if self.send_nowait(target) or (
                self._carrier is not None and self._carrier.send_datagram_soon(self._packet(target))
            ):
                return
        except PilotError:
            pass
        self._dropped += 1

    async def broadcast(self, request: Broadcast) -> None:
        """Send one datagram to every other member of a network; failures per member are skipped.

        The order of the checks is the protocol's, so that a wrong token learns nothing about networks.

        Raises:
          CommandError: not allowed; the text follows `broadcast: `.
        """
        if not self._admin_token:
            raise CommandError("broadcast denied: daemon has no admin token configured")
        if not hmac.compare_digest(self._admin_token.encode(), request.token):
            raise CommandError("broadcast denied: invalid admin token")
        if request.network == BACKBONE:
            raise CommandError("broadcast not permitted on backbone network")
        try:
            members = set(await self._members(request.network))
        except PilotError as exc:
            raise CommandError(f"list nodes for broadcast: {exc}") from exc
        own = self._state.node_id
        if own not in members:
            raise CommandError(f"broadcast denied: node {own} is not a member of network {request.network}")
        for node in sorted(members):
            if node != own:
                self.send_or_drop(Target(Address(request.network, node), request.port, request.data))

    def receive_packet(self, packet: Packet) -> None:
        """Take a datagram of another node, which has passed the trust gate."""
        source_port, port = Port(packet.source_port), Port(packet.destination_port)
        self.receive(packet.source, source_port, packet.destination.network, port, packet.payload)

    def receive(self, source: Address, source_port: Port, network: NetworkId, port: Port, data: bytes) -> None:
        """Offer one datagram that has arrived to every client; empty ones are not delivered (`spec/transport.md` §7.2)."""
        if not data:
            return
        if not self._state.port_allowed(network, port):
            where = {"dst_port": port, "src_addr": str(source), "src_port": source_port}
            self._events.publish("datagram.port_rejected", where)
            return
        self._received += 1
        if self._events.hears("data.datagram"):
            where = {"dst_port": port, "src_addr": str(source), "src_port": source_port}
            self._events.publish("data.datagram", {**where, "size": len(data)})
        self._offer(encode_recv_from(source, source_port, port, data))

    def _offer(self, frame: bytes) -> None:
        if self._turn is None or not self._turn.depth:
            self._deliver((frame,))
            return
        if not self._arrived:
            self._turn.at_end(self._offer_arrived)
        self._arrived.append(frame)

    def _offer_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._deliver(arrived)

    def _check(self, target: Target) -> None:
        state, (network, node) = self._state, target.address
        if node == BROADCAST_NODE:
            raise CommandError("broadcast address requires admin token: use BroadcastDatagram")
        if not state.registered:
            raise NoRoute("this node is not registered yet: its registry has not answered")
        if not state.port_allowed(network, target.port):
            raise PortNotAllowed(target.port, network)
        if len(target.data) > DATAGRAM_MAX:
            raise CommandError(f"marshal: payload too large: {len(target.data)} bytes (max {DATAGRAM_MAX})")
        if node == state.node_id and network != BACKBONE and network not in state.networks:
            raise NoRoute(f"node {node} is not a member of network {network}")

    def _packet(self, target: Target) -> Packet:
        if len(target.data) > REMOTE_DATAGRAM_MAX:
            raise CommandError(
                f"write udp: sendto: message too long ({len(target.data)} > {REMOTE_DATAGRAM_MAX} bytes)"
            )
        source = self._state.address_in(target.address.network)
        return Packet(0, DATAGRAM, source, target.address, self._source_port(), target.port, payload=target.data)

    def _source_port(self) -> Port:
        """Take a port and give it back: each datagram has another one, and none keeps it (`spec/transport.md` §7.1)."""
        port = self._ports.allocate()
        self._ports.release(port)
        return port

    def _send_from(self, source_port: Port, target: Target) -> None:
        self._sent += 1
        own = self._state.address_in(target.address.network)
        self.receive(own, source_port, target.address.network, target.port, target.data)
