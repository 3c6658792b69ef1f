"""Streams and datagrams between nodes: where packets go.

`TunnelCarrier` stands between the tunnel, which knows nodes and packets, and the connection table, which knows streams.
Packets arrive in batches: each connection touched is pumped once at the end of a batch, so that a batch costs one
acknowledgment and one wake-up per connection, and one write to the socket.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import trio

from pilot_trio.address import Address, Port, SocketAddress
from pilot_trio.config import StreamLimits
from pilot_trio.daemon.admission import Admission, CheckTrust, TrustGate
from pilot_trio.daemon.connection import Connection, ConnState, StateHook
from pilot_trio.daemon.datagram_sender import DatagramSender, DatagramTunnel
from pilot_trio.daemon.dialling import KEY_WAIT, Dial, Paths, Resolver
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.farewells import Farewells
from pilot_trio.daemon.given_up import GivenUp
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.remote_stream import RemoteConnection
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import Carrier, Opened, StreamTable
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import DialCancelled, DialError, DialTimeout
from pilot_trio.net.network import ROUTE_MTU_LEAST, Endpoint
from pilot_trio.net.timers import Timers
from pilot_trio.proto.ports import PortTable
from pilot_trio.proto.stream.budget import Budget, Budgets
from pilot_trio.proto.stream.connection import Connection as Machine
from pilot_trio.proto.stream.connection import State as MachineState
from pilot_trio.proto.stream.settings import SEGMENT, StreamSettings
from pilot_trio.proto.tunnel.errors import TunnelError
from pilot_trio.wire.packet import ACK, DATAGRAM, HEADER_SIZE, RST, STREAM, SYN, Packet
from pilot_trio.wire.tunnel import PILS_HEADER, TAG_SIZE

TIME_WAIT_STEP: Final = 0.02  # seconds; what is over by then is forgotten together
TIME_WAIT_BATCH: Final = 256  # streams forgotten at a time; more would be felt
HEADERS_MAX: Final = 40 + 8 + PILS_HEADER + TAG_SIZE + HEADER_SIZE  # bytes around a payload: IPv6, UDP, tunnel, packet

NOBODY: Final = -1  # no node's number
FEW: Final = 4  # streams, or packets; of so many, first what somebody waits for; of more, a batch costs less

_WAITED_FOR: Final = frozenset({MachineState.SYN_SENT, MachineState.ESTABLISHED})
_Key = tuple[int, Address, int]  # local port, remote address, remote port
_log = logging.getLogger("pilot_trio.streams")


class Tunnel(Paths, DatagramTunnel, Protocol):
    """What streams need of the tunnel, beside what dials and datagrams do."""

    def send(self, node: int, packet: Packet, /) -> None:
        """Send a packet, or keep it until there is a key; raise `TunnelError`."""
        ...

    @property
    def turn(self) -> AbstractContextManager[object]:
        """Inside, packets are collected; they leave together at the end of the outermost turn."""
        ...

    def flush(self) -> None:
        """Let what was collected leave now: what comes next in this turn is nothing that anybody waits for."""
        ...

    async def wait_for_session(self, node: int, /) -> None:
        """Return when they do."""
        ...

    def path(self, node: int, /) -> Endpoint | None:
        """Return where packets for a node go; None: by relay, or nowhere yet."""
        ...

    def set_in_use(self, node: int, in_use: bool, /) -> None:
        """Note whether connections to a node are open."""
        ...


Deliver = Callable[[Sequence[Packet]], None]
"""Takes datagrams of other nodes, in the order in which they arrived."""


class TunnelCarrier(Carrier):
    """Carries streams and datagrams over the tunnel. `attach` joins it to the table, which needs it first."""

    def __init__(
        self,
        *,
        state: NodeState,
        ports: PortTable,
        resolver: Resolver,
        tunnel: Tunnel,
        timers: Timers,
        trust: TrustGate,
        check_trust: CheckTrust,
        limits: StreamLimits,
        events: EventBus,
        syn_whitelist: frozenset[int] | None = frozenset(),
        route_mtu: Callable[[Endpoint], int] = lambda to: ROUTE_MTU_LEAST,
    ) -> None:
        self._state = state
        self._ports = ports
        self._resolver = resolver
        self._tunnel = tunnel
        self._timers = timers
        self._settings = StreamSettings(limits.idle_timeout, limits.keepalive, limits.time_wait)
        self._route_mtu = route_mtu
        self._budgets = Budgets()
        self._connections: dict[_Key, RemoteConnection] = {}
        self._given_up: GivenUp[_Key] = GivenUp()
        self._open_to: dict[int, int] = {}  # {node: connections that are not finished}
        self._over: deque[tuple[float, RemoteConnection]] = deque()  # in TIME_WAIT, and until when; one delay for all
        self._farewells: Final = Farewells(timers, self._send_packets)
        self._over_timer: Final = timers.timer(self._end_time_wait)
        self._touched: list[RemoteConnection] = []  # to be advanced when the turn ends; each knows that it is in here
        self._accepted: list[
            tuple[RemoteConnection, PortListener]
        ] = []  # in this turn; their listeners do not know yet
        self.turn: Final = Turn(self._settle)
        """Inside, connections are only noted; each is advanced once at the end, and what they send leaves together."""
        timers.around = self.turn  # many short streams end at one time
        self._on_input = self._pump  # bound once: every connection holds it
        self._clock: Callable[[], float] = trio.current_time
        self.admission: Final = Admission(
            state=state,
            trust=trust,
            check_trust=check_trust,
            limits=limits,
            whitelist=syn_whitelist,
            events=events,
            send=tunnel.send,
            turn=self.turn,
            accept=self._accept,
        )
        self.datagrams: Final = DatagramSender(tunnel, self.turn, self.admission.expect_reply)
        """Those of clients, on their way out; they leave in the same turns."""

    def attach(self, table: StreamTable, deliver: Deliver) -> None:
        """Take the table for incoming streams, and the function that gets admitted datagrams."""
        self._table = table
        self._on_state: StateHook = table.follow  # bound once: every connection holds it
        self._deliver = deliver
        self.admission.attach(table)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks that ask the registry about strangers, and those that make contact for datagrams, until cancelled."""
        async with trio.open_nursery() as nursery:
            self.datagrams.nursery = self.admission.nursery = nursery
            self._clock = trio.lowlevel.current_clock().current_time  # half the calls of Trio's function
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self.datagrams.nursery = self.admission.nursery = None
                self._farewells.send_all(trio.current_time())

    # --- out ---------------------------------------------------------------------------------------------------------

    async def open(self, address: Address, port: Port, owner: Hashable) -> Connection:
        tunnel, node = self._tunnel, address.node
        await tunnel.ensure(node)
        outcome: list[Connection | DialError] = []
        answered = trio.Event()

        def done(result: Connection | DialError) -> None:
            outcome.append(result)
            answered.set()

        dial = self._dial(address, port, owner, done, self._clock())
        try:
            if not tunnel.has_session(node):
                with trio.move_on_after(KEY_WAIT):
                    await tunnel.wait_for_session(node)
            dial.start_clock(self._clock())
            await answered.wait()
        except BaseException:
            dial.cancel()
            if isinstance(outcome[0], Connection):
                outcome[0].close()
            raise
        if isinstance(outcome[0], DialError):
            raise outcome[0]
        return outcome[0]

    def in_contact(self, node: int) -> bool:
        return self._tunnel.has_session(node)

    def begin(self, address: Address, port: Port, owner: Hashable, done: Opened) -> Dial:
        now = self._clock()
        dial = self._dial(address, port, owner, done, now)
        dial.start_clock(now)
        return dial

    def _dial(self, address: Address, port: Port, owner: Hashable, done: Opened, now: float) -> Dial:
        node = address.node
        self.admission.replies.note(node, now)
        source = self._ports.allocate()
        local = SocketAddress(self._state.address_in(address.network), source)
        remote = SocketAddress(address, port)
        machine = Machine.dialling(local, remote, now, self._settings, self._budget(node))
        connection = self._add(machine, owner, dialled=True)

        def count_and_tell(outcome: Connection | DialError) -> None:
            # Who reaches nobody at all may be deaf itself (§11.6 of the tunnel); a refusal is an answer, too.
            if isinstance(outcome, (DialTimeout, DialCancelled)):
                self._given_up.add(_key(connection), trio.current_time())
            if isinstance(outcome, DialTimeout):
                self._state.dials_unanswered += 1
            elif not isinstance(outcome, DialCancelled):
                self._state.dials_unanswered = 0
            done(outcome)

        return Dial(connection, self._tunnel, self._resolver, count_and_tell)

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive(self, batch: Sequence[tuple[int, Packet]]) -> None:
        """Work in the packets of one read of the socket, all of them authenticated."""
        with self.turn:
            now = self._clock()
            at, end = 0, len(batch)
            while at < end:
                node, packet = batch[at]
                first = at
                at += 1
                if packet.protocol == STREAM:
                    at = self._on_stream(batch, at, packet, now)
                    if packet.flags & SYN and at < end <= FEW:
                        self._settle()  # somebody waits for a handshake, and not for what came with it
                elif packet.protocol == DATAGRAM:
                    while at < end and batch[at][1].protocol == DATAGRAM and batch[at][0] == node:
                        at += 1
                    self._on_datagrams(node, [packet for _, packet in batch[first:at]])

    def _on_stream(self, batch: Sequence[tuple[int, Packet]], at: int, packet: Packet, now: float) -> int:
        """Work in the packet before `at`, with those from there on that go on with it; return where to go on."""
        key = (packet.destination_port, packet.source, packet.source_port)
        connection = self._connections.get(key)
        node = batch[at - 1][0]
        if packet.flags & (SYN | ACK) == SYN and (connection is None or _gives_way(connection)):
            self.admission.on_syn(node, packet, now)
        elif connection is not None:
            first, end = at - 1, len(batch)
            while at < end and _goes_on(packet, batch[at][1]):
                at += 1
            if not connection.touched:
                connection.touched = True
                self._touched.append(connection)
            if at == first + 1:
                connection.machine.receive_packet(packet, now)
            else:
                connection.machine.receive_packets([packet for _, packet in batch[first:at]], now)
        elif packet.flags == SYN | ACK and self._given_up.has(key, now):
            self._answer_late(node, packet)
        return at

    def _answer_late(self, node: int, packet: Packet) -> None:
        """Tell a peer that nobody waits for its answer to a dial any more; it would keep the stream for minutes."""
        reset = Packet(RST, STREAM, packet.destination, packet.source, packet.destination_port, packet.source_port)
        with contextlib.suppress(TunnelError):
            self._tunnel.send(node, reset)

    def _on_datagrams(self, node: int, datagrams: Sequence[Packet]) -> None:
        if self.admission.admits_datagrams(node):
            self._deliver(datagrams)
        else:
            # One of them is enough to ask, and to keep meanwhile: a stranger is not to cost more.
            first = datagrams[0]
            self.admission.on_strange_datagram(node, first, lambda: self._deliver((first,)))

    def has_open_streams(self, node: int) -> bool:
        """Say whether a stream with a node is open at both ends, as far as is known."""
        return any(
            connection.state is ConnState.ESTABLISHED and connection.remote.address.node == node
            for connection in self._connections.values()
        )

    def forget_streams(self, node: int) -> None:
        """End the streams to a node whose process is a new one: it knows nothing of them, and nothing will come of them.

        A dial under way goes on, as its SYN is repeated anyway. Nothing is sent: a reset could meet a stream of the new
        process, which begins with the same ports and numbers (§2).
        """
        over = [
            connection
            for connection in self._connections.values()
            if connection.remote.address.node == node and connection.state is not ConnState.SYN_SENT
        ]
        with self.turn:
            for connection in over:
                local, remote = connection.local, connection.remote
                reset = Packet(RST, STREAM, remote.address, local.address, remote.port, local.port)
                connection.machine.receive_packet(reset, trio.current_time())
                self._touch(connection)

    def repeat_now(self, node: int) -> None:
        """Let streams to a node go on at once: its path was dead, and they would wait for timeouts that have grown long."""
        for connection in list(self._connections.values()):
            if connection.remote.address.node == node:
                connection.repeat_now()

    def _accept(self, node: int, syn: Packet, listener: PortListener) -> None:
        machine = Machine.accepting(syn, self._clock(), self._settings, self._budget(node))
        connection = self._add(machine, listener.owner, dialled=False)
        connection.announce()
        self._touch(connection)
        self._accepted.append((connection, listener))
        listener.coming += 1

    def _budget(self, node: int) -> Budget:
        """Return what all streams to a node share."""
        budget = self._budgets.get(node)
        if budget is None:
            budget = Budget(self._segment_limit(self._tunnel.path(node)))
            self._budgets.add(node, budget)
        return budget

    def on_path(self, node: int, path: Endpoint | None) -> None:
        """Note that a node is reached in another way: at this endpoint, or None for by relay."""
        budget = self._budgets.get(node)
        if budget is not None:
            budget.on_path(self._segment_limit(path))

    def _segment_limit(self, path: Endpoint | None) -> int:
        """Return how much payload a segment may have, going by this machine's own link; relays take small ones."""
        return SEGMENT if path is None else max(SEGMENT, self._route_mtu(path) - HEADERS_MAX)

    # --- the pump ----------------------------------------------------------------------------------------------------

    def _add(self, machine: Machine, owner: Hashable, *, dialled: bool) -> RemoteConnection:
        connection = RemoteConnection(
            self._table.new_id(),
            machine,
            owner=owner,
            dialled=dialled,
            on_state=self._on_state,
            pump=self._on_input,
            clock=self._clock,
            timers=self._timers,
        )
        self._connections[_key(connection)] = connection
        node = connection.remote.address.node
        self._open_to[node] = self._open_to.get(node, 0) + 1
        if self._open_to[node] == 1:
            self._tunnel.set_in_use(node, True)
        self._table.add(connection)
        return connection

    def _settle(self) -> None:
        """End a turn: let the connections touched say what they have to say, then send what they have to send.

        In this order, because whoever listens may answer at once, and an answer carries the acknowledgment. What cannot
        lead to an answer waits until the packets have left: somebody waits for these.
        """
        if not (self._touched or self.datagrams.waiting or self._accepted):
            return
        with self._tunnel.turn:
            if self.datagrams.waiting:
                self.datagrams.flush()
            while self._touched or self._accepted:
                touched = self._touched
                for connection in touched:  # it may grow meanwhile
                    machine = connection.machine
                    if machine.events and machine.state is MachineState.ESTABLISHED:
                        self._tell(connection)
                self._touched = []
                for connection in touched:
                    connection.touched = False
                now = self._clock()
                self._send_all(touched, now)
                for connection in touched:
                    self._look_after(connection, now)
                if self._accepted:
                    self._hand_over()

    def _send_all(self, connections: Sequence[RemoteConnection], now: float) -> None:
        """Send what stream machines have to send; of a few, first what somebody waits for. Of many, one batch costs less."""
        if 1 < len(connections) <= FEW:
            ending = [c for c in connections if c.machine.state not in _WAITED_FOR]
            if 0 < len(ending) < len(connections):
                sent_to = self._send([c for c in connections if c.machine.state in _WAITED_FOR], now)
                self._send(ending, now, sent_to)
                return
        self._send(connections, now)

    def _send(self, connections: Sequence[RemoteConnection], now: float, sent_to: int = NOBODY) -> int:
        """Send what stream machines have to send; packets in a row to one node go to the tunnel together.

        Args:
          connections: whose machines.
          now: the time.
          sent_to: a node that was sent something just now; a mere FIN for it would wake it twice, and can wait.

        Returns: the node that was sent something last, or `NOBODY`.
        """
        to, out = NOBODY, list[bytes]()
        for connection in connections:
            machine = connection.machine
            packets = machine.packets_to_send(now)
            if packets:
                node = connection.remote.address.node
                if machine.ends_quietly or (node == sent_to and machine.has_said_all):
                    self._farewells.keep(node, packets, now)
                    continue
                if out and node != to:
                    self._send_packets(to, out, now)
                    out = []
                to = node
                out += packets
        if out:
            out += self._farewells.take(to)
            self._send_packets(to, out, now)
            self._tunnel.flush()
        return to

    def _send_packets(self, node: int, packets: Sequence[bytes], now: float) -> None:
        try:
            self._tunnel.send_packets(node, packets, now)
        except TunnelError as exc:
            # A segment has a number and is sent again; what ends a dial ends it by its own clock.
            _log.debug("packets not sent", extra={"kv": {"peer_node_id": node, "error": str(exc)}})

    def _look_after(self, connection: RemoteConnection, now: float) -> None:
        """Tell of a machine whose packets have left what nobody could answer, and arm its timer."""
        machine = connection.machine
        if machine.events or machine.state is not connection.followed:
            self._tell(connection)
        state = machine.state
        if state is MachineState.CLOSED:
            self._forget(connection)
        elif state is MachineState.TIME_WAIT:
            if not connection.over:
                connection.over = True
                connection.timer.cancel()  # nothing happens to it any more but its end
                self._over.append((now + self._settings.time_wait, connection))
                if len(self._over) == 1:
                    self._over_timer.arm(now + self._settings.time_wait)
        elif state is not MachineState.SYN_SENT:  # the dial's business
            connection.timer.arm(machine.next_deadline())

    def _end_time_wait(self, now: float) -> None:
        """Forget streams whose packets cannot come any more."""
        over = self._over
        for _ in range(min(len(over), TIME_WAIT_BATCH)):
            if over[0][0] > now:
                break
            self._forget(over.popleft()[1])
        if over:
            self._over_timer.arm(max(over[0][0], now + TIME_WAIT_STEP))

    def _hand_over(self) -> None:
        """Tell listeners of the streams that were accepted in this turn."""
        accepted, self._accepted = self._accepted, []
        for connection, listener in accepted:
            listener.coming -= 1
            self._table.announce(connection)
            listener.deliver(connection)

    def _touch(self, connection: RemoteConnection) -> None:
        """Have a connection advanced when the turn ends."""
        if not connection.touched:
            connection.touched = True
            self._touched.append(connection)

    def _tell(self, connection: RemoteConnection) -> None:
        try:
            connection.deliver_events()
        except Exception:
            # The border of one stream: a defect of whoever takes its data is no reason to hold up the others.
            _log.exception("stream reset", extra={"kv": {"conn_id": connection.conn_id}})
            connection.detach()
            connection.reset()

    def _pump(self, connection: RemoteConnection) -> None:
        """Advance a connection: now, or at the end of the turn that is under way."""
        if self.turn.depth:
            if not connection.touched:
                connection.touched = True
                self._touched.append(connection)
        else:
            with self.turn:
                self._touch(connection)

    def _forget(self, connection: RemoteConnection) -> None:
        connection.timer.cancel()
        key = _key(connection)
        if self._connections.get(key) is connection:
            del self._connections[key]
        if connection.forgotten:
            return
        connection.forgotten = True
        node = connection.remote.address.node
        left = self._open_to.get(node, 0) - 1
        if left > 0:
            self._open_to[node] = left
        elif self._open_to.pop(node, None) is not None:
            self._tunnel.set_in_use(node, False)


def _key(connection: Connection) -> _Key:
    return (connection.local.port, connection.remote.address, connection.remote.port)


def _goes_on(first: Packet, packet: Packet) -> bool:
    """Say whether a packet is of the same stream as another, and has no flag that may end or begin anything."""
    return (
        packet.source_port == first.source_port
        and packet.destination_port == first.destination_port
        and packet.flags == ACK
        and packet.protocol == STREAM
        and packet.source == first.source
    )


def _gives_way(connection: RemoteConnection) -> bool:
    """Say whether a SYN for the same ports starts a new stream: the old one is over, or its peer has restarted (§3.2)."""
    return not connection.state.active or connection.machine.holds_peer_fin
