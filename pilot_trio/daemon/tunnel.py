"""The tunnels of a node, as its other parts see them (`spec/tunnel.md`).

The rules are in `proto.tunnel`, and `tunnel_loop` drives them. Here is what the node wants of tunnels: contact with a peer,
packets on their way, other paths, figures; and what is to be done about what the machine says.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import trio

from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.state import NodeState, TunnelStatistics
from pilot_trio.daemon.tunnel_log import TunnelLog
from pilot_trio.daemon.tunnel_lookups import KeyAndRouteResolver, Lookups, NameResolver
from pilot_trio.daemon.tunnel_loop import TunnelLoop
from pilot_trio.daemon.tunnel_pings import Pings
from pilot_trio.errors import NoRoute
from pilot_trio.net.network import DatagramSocket, Endpoint
from pilot_trio.net.udp import UDPStatistics
from pilot_trio.proto.tunnel import events
from pilot_trio.proto.tunnel.errors import TunnelError
from pilot_trio.proto.tunnel.machine import Received, TunnelMachine
from pilot_trio.proto.tunnel.settings import TunnelSettings
from pilot_trio.proto.tunnel.upkeep_packets import ping, pong
from pilot_trio.wire.packet import Packet

_log = logging.getLogger("pilot_trio.tunnel")


@attrs.frozen
class TunnelReport:
    """Everything that is counted about tunnels."""

    traffic: TunnelStatistics
    drops: dict[str, int]  # by reason
    defects: int  # datagram batches, answers of the registry and rounds of upkeep that a defect of ours cost
    socket: UDPStatistics | None


class Tunnel:
    """All tunnels of one node. No method waits but `ensure`, `wait_for_session`, `ping` and `run`.

    Args:
      sock: the node's UDP socket; closed by its owner.
      state: who we are; its tunnel counters come from here.
      resolver: asks the registry for keys and routes.
      network: resolves host names of endpoints.
      bus: where events go.
      settings: policy.
      keypair: the X25519 pair of this run; None: a new one.
      random_bytes: entropy for nonces.
    """

    def __init__(
        self,
        *,
        sock: DatagramSocket,
        state: NodeState,
        resolver: KeyAndRouteResolver,
        network: NameResolver,
        bus: EventBus,
        settings: TunnelSettings | None = None,
        keypair: KeyPair | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        settings = settings or TunnelSettings()
        self._encrypt = settings.encrypt
        self._socket = sock
        self._state = state
        self._resolver = resolver
        self._machine = TunnelMachine(
            identity=state.identity,
            keypair=keypair or KeyPair.generate(),
            random_bytes=random_bytes,
            settings=settings,
        )
        self._report = TunnelLog(bus, settings.is_trusted)
        self._loop = TunnelLoop(sock, self._machine, state, act=self._act, deliver=_ignore)
        self.turn: Final = self._loop.turn
        """A context manager: what is sent inside leaves in one batch when the outermost one ends."""
        self.flush: Final = self._loop.flush
        """Sends what has been sealed so far, without waiting for the end of the turn."""
        self.has_session: Final = self._machine.has_session
        """Says whether packets to a node leave at once."""
        self._lookups = Lookups(
            state,
            resolver,
            network,
            bound=lambda: sock.endpoint,
            on_key=self._loop.on_key,
            on_route=self._loop.on_route,
        )
        self._waiting: dict[int, trio.lowlevel.ParkingLot] = {}  # for a session, by node
        self._pings = Pings(self.send)
        self._counted = TunnelStatistics()
        self._counted_at = -1  # the turn after which they were counted
        self.timers: Final = self._loop.timers
        """Run by `run`; one task for everything on this node that has deadlines."""
        self.on_session: Callable[[int], None] = _ignore
        """Called for every established session, and again when the peer shows its key anew."""
        self.on_restart: Callable[[int], None] = _ignore
        """Called when a peer has proven to be a new process: nothing that was open to it is known there any more."""
        self.on_answer: Callable[[int], None] = _ignore
        """Called when a peer answers again whose path was in doubt: what waits to be repeated can be repeated now."""
        self.on_path: Callable[[int, Endpoint | None], None] = _ignore_path
        """Called when a peer is reached in another way than before: at this endpoint, or None for by relay."""
        self.on_beacon: Callable[[bytes, Endpoint], None] = _ignore_beacon
        """Gets what beacons say to the node itself; the caller of it must check the source."""
        state.tunnel_source = self.count
        bus.subscribe(self._on_bus, "trust.changed")

    # --- running -----------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive, ask, repeat and keep alive until cancelled."""
        if self._encrypt:
            _log.info("tunnel encryption enabled", extra={"kv": {"scheme": "X25519+AES-256-GCM"}})
        else:
            _log.warning("tunnel encryption is disabled — all connections will send plaintext", extra={"kv": {}})
        async with trio.open_nursery() as nursery:
            await nursery.start(self._lookups.run)
            nursery.start_soon(self._loop.run)
            task_status.started()

    # --- turns -------------------------------------------------------------------------------------------------------

    @property
    def deliver(self) -> Callable[[list[Received]], None]:
        """Gets the packets of one receive batch but control packets, with the nodes that sealed them."""
        return self._loop.deliver

    @deliver.setter
    def deliver(self, deliver: Callable[[list[Received]], None]) -> None:
        self._loop.deliver = deliver

    def _act(self, event: events.Event) -> None:
        if isinstance(event, events.ControlArrived):
            self._on_control(event.node, event.packet)
        elif isinstance(event, events.BeaconSaid):
            self.on_beacon(event.data, Endpoint(*event.source))
        elif isinstance(event, events.KeyNeeded):
            self._lookups.key(event.node, known=self._machine.knows(event.node))
        elif isinstance(event, events.RouteNeeded):
            if event.fresh:
                self._resolver.forget(event.node)
            self._lookups.route(event.node)
        elif not self._tell_users(event):
            self._report.report(event)
            if isinstance(event, events.Established | events.SameSession):
                self._wake(event.node)
                self.on_session(event.node)
            if isinstance(event, events.Established) and event.rekeyed:
                self._ask_for_proof(event.node)

    def _tell_users(self, event: events.Event) -> bool:
        """Tell who uses tunnels what is news to them; False if this is not."""
        if isinstance(event, events.Restarted):
            _log.info("peer has restarted", extra={"kv": {"peer_node_id": event.node}})
            self.on_restart(event.node)
        elif isinstance(event, events.Answered):
            self.on_answer(event.node)
        elif isinstance(event, events.PathChanged):
            self.on_path(event.node, None if event.path is None else Endpoint(*event.path))
        else:
            return False
        return True

    def _ask_for_proof(self, node: int) -> None:
        """Have the new key used: a peer that has restarted knows nothing of our streams and would not say a word."""
        with contextlib.suppress(TunnelError):
            self._machine.send(node, ping(self._state.node_id, node, 0, 0, b"restart"), trio.current_time())

    def _wake(self, node: int) -> None:
        waiting = self._waiting.get(node)
        if waiting is not None:
            waiting.unpark_all()

    def _on_bus(self, event: Event) -> None:
        """Trust that ends takes the tunnel with it; if it was ended here, not before the peer was told (`forget`)."""
        data = event.data or {}
        if data.get("state") == "revoked" and data.get("reason") != "local":
            self.forget(data["peer_node_id"])

    # --- contact -----------------------------------------------------------------------------------------------------

    async def ensure(self, node: int) -> None:
        """Make contact: find the node unless it is known where it is, and begin to agree on a key unless there is one.

        Does not wait for the key; from then on `send` takes packets, which leave when it is there.

        Raises:
          NoRoute: `resolve node N: …`.
        """
        if not self._machine.has_route(node):
            pending = self._lookups.route(node)
            await pending.done.wait()
            if pending.error:
                raise NoRoute(pending.error)
        self.ensure_soon(node)

    def ensure_soon(self, node: int) -> None:
        """Make contact in the background; what fails is logged at debug level only."""
        with self.turn:
            self._loop.take_on_identity()
            self._machine.ensure(node, trio.current_time())

    async def wait_for_session(self, node: int) -> None:
        """Wait until packets to a node leave at once. No deadline of its own; not a checkpoint if they do already."""
        while not self._machine.has_session(node):
            waiting = self._waiting.setdefault(node, trio.lowlevel.ParkingLot())
            try:
                await waiting.park()
            finally:
                if not waiting and self._waiting.get(node) is waiting:
                    del self._waiting[node]

    def send(self, node: int, packet: Packet) -> None:
        """Seal a packet and send it, at once or at the end of the turn; without a session it waits for one, bounded.

        Raises:
          TunnelError: it was not taken; the text is for clients.
        """
        if self.turn.depth:
            self._machine.send(node, packet, trio.current_time())
        else:
            with self.turn:
                self._machine.send(node, packet, trio.current_time())

    def send_packets(self, node: int, packets: Sequence[bytes], now: float, *, salvage: bool = False) -> None:
        """Send encoded packets as `send` does, in this order; a run of them costs far less than as many calls.

        Args:
          node: where they go.
          packets: as they are on the wire.
          now: the time, by Trio's clock.
          salvage: send the last of them again if the node turns out to have lost the key. Not for streams, which repeat.

        Raises:
          TunnelError: not all of them were taken; the text is for clients.
        """
        if self.turn.depth:
            self._machine.send_packets(node, packets, now, salvage=salvage)
        else:
            with self.turn:
                self._machine.send_packets(node, packets, now, salvage=salvage)

    async def ping(self, node: int, payload: bytes = b"ping") -> float:
        """Ask a node for a sign of life; return the seconds that it took. No deadline of its own.

        Raises:
          NoRoute: the registry will not say where it is.
          TunnelError: it could not be asked.
        """
        self._pings.check()
        await self.ensure(node)
        return await self._pings.ask(self._state.node_id, node, payload)

    def _on_control(self, node: int, packet: Packet) -> None:
        answer = pong(packet, self._state.node_id)
        if answer is not None:
            with contextlib.suppress(TunnelError):  # then the answer is lost, as answers may be
                self._machine.send(node, answer, trio.current_time())
        else:
            self._pings.on_control(node, packet)

    # --- paths -------------------------------------------------------------------------------------------------------

    def path(self, node: int) -> Endpoint | None:
        """Return where packets for a node go; None: by relay, or nowhere yet."""
        path = self._machine.path(node)
        return None if path is None else Endpoint(*path)

    def knows(self, node: int) -> bool:
        """Say whether there is any state of a node."""
        return self._machine.knows(node)

    def is_relayed(self, node: int) -> bool:
        """Say whether a node is reached by relay."""
        return self._machine.is_relayed(node)

    def key_came_by_relay(self, node: int) -> bool:
        """Say whether a node is known by relay only: a direct dial would be in vain."""
        return self._machine.is_heard_by_relay_only(node)

    def use_relay(self, node: int) -> bool:
        """Turn a peer to the relay for a dial that got no answer; True if it was not on it."""
        with self.turn:
            return self._machine.use_relay(node)

    def doubt(self, node: int) -> None:
        """Look for a node on every path, and where the registry says that it is: it does not answer as it should."""
        with self.turn:
            self._machine.doubt(node, trio.current_time())

    def moved(self) -> int:
        """Show peers where this node is now, until they answer; return how many that concerns."""
        with self.turn:
            return self._machine.moved(trio.current_time())

    def undo_relay(self, node: int) -> None:
        """Take `use_relay` back after a dial that failed by relay too."""
        with self.turn:
            self._machine.undo_relay(node)

    def set_in_use(self, node: int, in_use: bool) -> None:
        """Note whether connections to a node are open: one in use is kept warm."""
        with self.turn:
            self._machine.set_in_use(node, in_use, trio.current_time())

    def forget(self, node: int) -> None:
        """Drop all state of a node."""
        with self.turn:
            self._machine.forget(node)

    def set_beacon(self, beacon: Endpoint | None) -> None:
        """Relay and punch through this beacon, given by address."""
        self._machine.set_beacon(beacon)

    def send_beacon(self, message: bytes, beacon: Endpoint) -> bool:
        """Send a message of the node itself to a beacon; False if it was lost."""
        self.flush()
        return self._socket.send_nowait(message, beacon)

    async def reset_path(self, node: int) -> dict[str, Any]:
        """Forget how a node is reached, find it anew and make contact (`spec/ipc.md` §5.4, PreferDirect).

        Returns what there was, whether a key frame went out, and the resolution's error. Connections survive.
        """
        self._resolver.forget(node)
        with self.turn:
            self._loop.take_on_identity()
            report = self._machine.reset_path(node, trio.current_time())
        pending = self._lookups.route(node)
        await pending.done.wait()
        return {
            **report,
            "resolve_error": pending.error,
            "pila_pushed": not pending.error and self._state.registered and self._machine.knows(node),
        }

    # --- figures -----------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> Endpoint:
        """Where the socket is bound."""
        return self._socket.endpoint

    @property
    def receive_buffer(self) -> int:
        """Bytes that can wait in the socket; what exceeds them is lost."""
        return self._socket.receive_buffer

    def peer_rows(self) -> list[dict[str, Any]]:
        """Return the peers as clients see them."""
        return self._machine.peer_rows()

    def count(self) -> TunnelStatistics:
        """Return what Info and Health show; the same object as long as nothing has passed."""
        if self._counted_at != self._loop.turns:
            machine, traffic = self._machine, self._machine.traffic
            encrypted = machine.encrypted_peers
            self._counted = TunnelStatistics(
                peers=machine.peers,
                encrypted_peers=encrypted,
                authenticated_peers=encrypted,  # only signed key frames make sessions
                relay_peers=machine.relayed_peers,
                bytes_sent=traffic.bytes_sent,
                bytes_received=traffic.bytes_received,
                packets_sent=traffic.packets_sent,
                packets_received=traffic.packets_received,
                encryption_successes=traffic.sealed,
                encryption_failures=traffic.failed_to_open,
                list_peers=self.peer_rows,
            )
            self._counted_at = self._loop.turns
        return self._counted

    def statistics(self) -> TunnelReport:
        """Return all counters."""
        drops = {reason.value: number for reason, number in self._machine.drops.items()}
        return TunnelReport(self.count(), drops, self._loop.defects, self._socket.statistics())


def _ignore(_: object) -> None:
    """Stand in for a part that is not there."""


def _ignore_path(_node: int, _path: Endpoint | None) -> None:
    """Stand in for the carrier."""


def _ignore_beacon(_data: bytes, _source: Endpoint) -> None:
    """Stand in for the beacon client."""
