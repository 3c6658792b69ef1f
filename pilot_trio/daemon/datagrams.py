"""Datagrams: one packet, no acknowledgement, no order (`spec/transport.md` §7, `spec/ipc.md` §5.3).

An incoming datagram is offered to every connected client, whatever it has bound; a client whose queue is full loses it.
"""

from __future__ import annotations

import contextlib
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
from pilot_trio.wire.packet import DATAGRAM, Packet, encode_datagrams

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

    def send_datagrams(self, node: int, datagrams: Sequence[bytes], /) -> bool:
        """Send encoded datagrams now; False if contact with the node has to be made first. Raises `TunnelError`."""
        ...

    async def send_datagrams_later(self, node: int, datagrams: Sequence[bytes], /) -> None:
        """Make contact, then send; raise `NoRoute` or `TunnelError`."""
        ...

    def is_crowded(self, node: int, /) -> bool:
        """Say whether senders should `let_catch_up` a node before they send more."""
        ...

    async def let_catch_up(self, node: int, /) -> None:
        """Wait a moment until a node has taken what was sent to it."""
        ...

    def send_datagrams_soon(self, node: int, datagrams: Sequence[bytes], /) -> int:
        """Make contact in the background, then send; return how many of them, as not too many may wait for that."""
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
          CommandError, PortNotAllowed, PortsExhausted, NoRoute, TunnelError: it may not or cannot be sent.
        """
        address, port, data = target
        self._check(address, port)
        self._check_size(address, len(data))
        if address.node == self._state.node_id:
            self._send_to_self(address, port, (data,))
        elif self._carrier is None or not self._carrier.send_datagrams(
            address.node, self._encode(address, port, (data,))
        ):
            return False
        else:
            self._sent += 1
        return True

    async def send(self, target: Target) -> None:
        """Send one datagram, finding the route first where that is necessary; raises as `send_nowait` does."""
        if self.send_nowait(target):
            return
        address, port, data = target
        if self._carrier is None:
            await self._resolver.resolve(address.node)
            raise NoRoute(f"no tunnel to node {address.node}")
        await self._carrier.send_datagrams_later(address.node, self._encode(address, port, (data,)))
        self._sent += 1

    def send_or_drop(self, address: Address, port: Port, data: Sequence[bytes]) -> bool:
        """Send datagrams whose sender does not want to know; what cannot be sent is dropped and counted.

        Never waits, so a sender is not held up by the registry: on first contact they wait in the background.

        Returns:
          True if it should `let_catch_up` the node before it sends more.
        """
        taken = 0
        with contextlib.suppress(PilotError):
            taken = self._send_run(address, port, data)
        self._dropped += len(data) - taken
        return self._carrier is not None and self._carrier.is_crowded(address.node)

    async def let_catch_up(self, node: int) -> None:
        """Wait a moment until a node that is near has taken the datagrams that were sent to it."""
        if self._carrier is not None:
            await self._carrier.let_catch_up(node)

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
                self.send_or_drop(Address(request.network, node), request.port, (request.data,))

    def receive(self, packets: Sequence[Packet]) -> None:
        """Offer datagrams that have arrived to every client, in this order; they have passed the trust gate.

        Empty ones are not delivered (`spec/transport.md` §7.2), nor what the port policy of their network forbids.
        """
        state, heard = self._state, self._events.hears("data.datagram")
        frames: list[bytes] = []
        to, allowed_port = None, -1  # what the policy allowed last
        for packet in packets:
            _, _, source, destination, source_port, port, _, _, _, data = packet
            if not data:
                continue
            if port != allowed_port or destination is not to:
                if not state.port_allowed(destination.network, port):
                    self._publish("datagram.port_rejected", packet)
                    continue
                to, allowed_port = destination, port
            if heard:
                self._publish("data.datagram", packet, size=len(data))
            frames.append(encode_recv_from(source, source_port, port, data))
        self._received += len(frames)
        self._offer(frames)

    def _publish(self, topic: str, packet: Packet, **more: int) -> None:
        where = {"dst_port": packet.destination_port, "src_addr": str(packet.source), "src_port": packet.source_port}
        self._events.publish(topic, {**where, **more})

    def _offer(self, frames: Sequence[bytes]) -> None:
        if not frames:
            return
        if self._turn is None or not self._turn.depth:
            self._deliver(frames)
            return
        if not self._arrived:
            self._turn.at_end(self._offer_arrived)
        self._arrived += frames

    def _offer_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._deliver(arrived)

    def _send_run(self, address: Address, port: Port, data: Sequence[bytes]) -> int:
        """Send what can be sent of datagrams to one destination; return how many that were. Raises as `send_nowait` does."""
        self._check(address, port)
        largest = self._largest(address)
        if max(map(len, data)) > largest:
            data = [each for each in data if len(each) <= largest]
            if not data:
                return 0
        if address.node == self._state.node_id:
            self._send_to_self(address, port, data)
            return len(data)
        if self._carrier is None:
            return 0
        datagrams = self._encode(address, port, data)
        if self._carrier.send_datagrams(address.node, datagrams):
            self._sent += len(data)
            return len(data)
        return self._carrier.send_datagrams_soon(address.node, datagrams)

    def _check(self, address: Address, port: Port) -> None:
        state, (network, node) = self._state, address
        if node == BROADCAST_NODE:
            raise CommandError("broadcast address requires admin token: use BroadcastDatagram")
        if not state.registered:
            raise NoRoute("this node is not registered yet: its registry has not answered")
        if not state.port_allowed(network, port):
            raise PortNotAllowed(port, network)
        if node == state.node_id and network != BACKBONE and network not in state.networks:
            raise NoRoute(f"node {node} is not a member of network {network}")

    def _largest(self, address: Address) -> int:
        return DATAGRAM_MAX if address.node == self._state.node_id else REMOTE_DATAGRAM_MAX

    def _check_size(self, address: Address, size: int) -> None:
        if size > DATAGRAM_MAX:
            raise CommandError(f"marshal: payload too large: {size} bytes (max {DATAGRAM_MAX})")
        if size > self._largest(address):
            raise CommandError(f"write udp: sendto: message too long ({size} > {REMOTE_DATAGRAM_MAX} bytes)")

    def _encode(self, address: Address, port: Port, data: Sequence[bytes]) -> list[bytes]:
        """Return datagrams to another node. Each has another source port, and none keeps it (`spec/transport.md` §7.1)."""
        own = self._state.address_in(address.network)
        return encode_datagrams(own, address, port, self._ports.next_free(len(data)), data)

    def _send_to_self(self, address: Address, port: Port, data: Sequence[bytes]) -> None:
        own = self._state.address_in(address.network)
        source_ports = self._ports.next_free(len(data))
        self._sent += len(data)
        self.receive(
            [
                Packet(0, DATAGRAM, own, address, source_port, port, payload=each)
                for source_port, each in zip(source_ports, data, strict=True)
            ]
        )
