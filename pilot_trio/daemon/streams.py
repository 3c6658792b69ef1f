"""The connection table: which streams there are, who listens, who may open one more, and who carries it.

The table does not move bytes; a `Connection` does (`connection`, `local_stream`). What leads to another node is left to a
`Carrier`, the seam for tunnels: it gets ids, ports and rows from the table and gives back a connection.

Nothing here needs a task: rows that have served their time in `TIME_WAIT` go when the table is next used.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple, Protocol

import trio

from pilot_trio.address import BACKBONE, Address, ConnId, NodeId, Port, SocketAddress
from pilot_trio.config import StreamLimits
from pilot_trio.daemon.connection import Connection as Connection
from pilot_trio.daemon.connection import ConnState as ConnState
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.local_stream import LocalConnection
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import DialError, DialRefused, NoRoute, PortNotAllowed
from pilot_trio.proto.ports import ConnectionCounts, ConnectionIds, PortTable
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT

FINISHED_LOCAL_ROWS_MAX: Final = 1024  # TIME_WAIT rows of local streams; they are for people, no late packet can come


class StreamStatistics(NamedTuple):
    """What `StreamTable.statistics` returns."""

    connections: int  # active ones: rows in TIME_WAIT are listed, not counted
    rows: int
    ports: int  # bound ones, those of the built-in services included
    ephemeral_ports: int  # in use
    accept_queue_drops: int  # refused because a backlog was full, since the start


class Attempt(Protocol):
    """A dial under way."""

    def cancel(self) -> None:
        """End it, leaving nothing; its outcome is `DialCancelled`. Too late is no error."""
        ...


Opened = Callable[["Connection | DialError"], None]
"""Gets the outcome of a dial, once."""


class Carrier(abc.ABC):
    """Opens streams to other nodes."""

    # A carrier takes ids from `StreamTable.new_id` and ports from the port table, gives its connections
    # `StreamTable.follow` as their `on_state`, puts them in with `add` as soon as a SYN is out or accepted, and hands
    # incoming ones to the listener that `admit` returns.

    @abc.abstractmethod
    async def open(self, address: Address, port: Port, owner: Hashable) -> Connection:
        """Return an established connection to another node; cancellable at once, leaving nothing behind.

        Raises:
          DialError: with the text that clients see (`spec/ipc.md` §5.2).
        """

    def in_contact(self, node: NodeId) -> bool:
        """Say whether a dial to a node needs nothing but its answer, so that `begin` will do."""
        return False

    def begin(self, address: Address, port: Port, owner: Hashable, done: Opened) -> Attempt:
        """Do as `open`, for a node that is in contact, without a task: `done` gets the outcome, after this has returned."""
        raise NoRoute(f"no tunnel to node {address.node}")


class RouteResolver(Protocol):
    """The part of the resolver that a dial needs."""

    async def resolve(self, node: NodeId, /) -> object:
        """Find out how to reach a node; raise `NoRoute` (`resolve node N: registry: …`) if the registry will not say."""


class NoTunnel(Carrier):
    """The carrier of a node without tunnels: finds the route, as any carrier must, and then has nothing to send on."""

    def __init__(self, resolver: RouteResolver) -> None:
        self._resolver = resolver

    async def open(self, address: Address, port: Port, owner: Hashable) -> Connection:
        await self._resolver.resolve(address.node)
        raise NoRoute(f"no tunnel to node {address.node}")


def _ignore(_: Connection) -> None:
    """Tell nobody."""


class StreamTable:
    """Every stream of a node, and the ports they use.

    Args:
      state: who we are, which networks we are in, and what their port policies admit.
      ports: bound and ephemeral ports, shared with the datagrams.
      carrier: opens streams to other nodes.
      limits: configured limits.
      events: where connection events are published (`spec/transport.md` §10).
    """

    def __init__(
        self,
        state: NodeState,
        ports: PortTable,
        carrier: Carrier,
        *,
        limits: StreamLimits | None = None,
        events: EventBus | None = None,
    ) -> None:
        limits = limits or StreamLimits()
        self._state = state
        self._ports = ports
        self._carrier = carrier
        self._events = events or EventBus()
        self._ids = ConnectionIds()
        self._counts = ConnectionCounts(limits.max_conns_per_port, limits.max_conns_total)
        self._time_wait = limits.time_wait
        self._rows: dict[ConnId, Connection] = {}
        self._held: dict[Hashable, dict[ConnId, Connection]] = {}  # the same rows, by owner
        self._live: dict[Hashable, int] = {}  # active connections by owner
        # TIME_WAIT rows and when they may go, recyclable ones apart; one delay for all, so each is sorted.
        self._waiting: dict[bool, deque[tuple[float, Connection]]] = {False: deque(), True: deque()}
        self._listeners: dict[Port, PortListener] = {}
        self.accept_queue_drops = 0  # connections refused because a backlog was full, since the start
        self._none_active = trio.Event()  # for `drain`; set when the last active connection is no longer

    # Ports

    def bind(self, port: int, owner: Hashable) -> PortListener:
        """Listen on a port for `owner`; raise `PortInUse`. Any number will do, 0 included (`spec/ipc.md` §5.1)."""
        listener = PortListener(Port(port), owner, self._forget_listener)
        self._ports.bind(listener.port, owner)
        self._listeners[listener.port] = listener
        return listener

    def unbind(self, port: int, owner: Hashable) -> bool:
        """Stop listening; False if `owner` does not listen on that port."""
        listener = self._listeners.get(Port(port))
        if listener is None or listener.owner != owner:
            return False
        listener.close()
        return True

    def _forget_listener(self, listener: PortListener) -> None:
        del self._listeners[listener.port]
        self._ports.unbind(listener.port)

    # Dialling

    def is_local(self, address: Address) -> bool:
        """Whether a dial to `address` stays inside the daemon, so that `dial_local` can answer at once."""
        return self._state.registered and address.node == self._state.node_id

    async def dial(self, address: Address, port: int, *, owner: Hashable) -> Connection:
        """Open a stream; not a checkpoint for the own address.

        Cancelling leaves neither port nor row behind.

        Raises:
          DialError: with the text that clients see.
        """
        if self.is_local(address):
            return self.dial_local(address, port, owner=owner)
        self._check_dial(address, port)
        return await self._carrier.open(address, Port(port), owner)

    def in_contact(self, address: Address) -> bool:
        """Whether a dial to a node needs nothing but its answer, so that `begin_dial` will do."""
        return self._carrier.in_contact(address.node)

    def begin_dial(self, address: Address, port: int, *, owner: Hashable, done: Opened) -> Attempt:
        """Do as `dial`, for a node that is in contact, without a task: `done` gets the outcome, after this has returned."""
        self._check_dial(address, port)
        return self._carrier.begin(address, Port(port), owner, done)

    def dial_local(
        self, address: Address, port: int, *, owner: Hashable, on_open: Callable[[Connection], None] = _ignore
    ) -> Connection:
        """Open a stream to one of our own ports and return the dialling end, established.

        The own id is not resolved: a private node whose registry will not resolve it reaches itself all the same.
        `on_open` is called with what will be returned before the listener hears of the other end.
        """
        self._check_dial(address, port)
        self._expire()
        listener = self.admit(Port(port), others=1)
        source = self._ports.allocate()
        here, there = SocketAddress(address, source), SocketAddress(address, Port(port))
        dialler = LocalConnection(self.new_id(), here, there, owner=owner, dialled=True, on_state=self.follow)
        self.add(dialler)
        acceptor = LocalConnection(
            self.new_id(), there, here, owner=listener.owner, dialled=False, on_state=self.follow
        )
        self.add(acceptor)
        dialler.connect(acceptor)
        on_open(dialler)
        self.announce(acceptor)
        listener.deliver(acceptor)
        return dialler

    def _check_dial(self, address: Address, port: int) -> None:
        state = self._state
        if not state.registered:
            raise NoRoute("this node is not registered yet: its registry has not answered")
        if not state.port_allowed(address.network, port):
            raise PortNotAllowed(port, address.network)
        if address.node == state.node_id and address.network not in (BACKBONE, *state.networks):
            raise NoRoute(f"node {address.node} is not a member of network {address.network}")

    def listens(self, port: int) -> bool:
        """Whether anybody listens on a port."""
        return Port(port) in self._listeners

    def admit(self, port: Port, others: int = 0) -> PortListener:
        """Return the listener that takes one more connection on `port`, beside `others` new ones elsewhere.

        Raises:
          DialRefused: nobody listens, or a limit of `spec/transport.md` §3.3 (1, 7 to 9) is reached: answer with RST.
        """
        listener = self._listeners.get(port)
        if listener is None or not self._counts.room(port, others):
            raise DialRefused
        if listener.full:
            self.accept_queue_drops += 1
            self._events.publish("conn.accept_queue_full", {"local_port": port})
            raise DialRefused
        return listener

    # Rows

    def new_id(self) -> ConnId:
        """Return an id that nothing refers to."""
        return self._ids.allocate(self._rows)

    def add(self, connection: Connection) -> None:
        """Put a connection, fresh and active, into the table."""
        self._rows[connection.conn_id] = connection
        self._held.setdefault(connection.owner, {})[connection.conn_id] = connection
        self._live[connection.owner] = self._live.get(connection.owner, 0) + 1
        self._counts.add(connection.local.port)

    def get(self, conn_id: int) -> Connection | None:
        """Return the connection with this id, finished or not."""
        return self._rows.get(ConnId(conn_id))

    def live(self, owner: Hashable) -> int:
        """How many active connections an owner has, dialled and accepted."""
        return self._live.get(owner, 0)

    def close_owned(self, owner: Hashable) -> None:
        """Unbind the owner's ports and close its connections gracefully; the other ends still get all data."""
        # Connections first: those that wait in a backlog are the owner's too, and a close is kinder than a reset.
        for connection in list(self._held.get(owner, {}).values()):
            connection.close()
        for listener in [listener for listener in self._listeners.values() if listener.owner == owner]:
            listener.close()
        self._expire()

    async def drain(self, patience: float) -> None:
        """Close every connection: the node stops, and its peers are to have what was written, and to know.

        Args:
          patience: seconds for what was written to be acknowledged; then the ends leave, whatever is missing before them.
        """
        for connection in list(self._rows.values()):
            connection.close()
        with trio.move_on_after(patience):
            while self._counts.total:
                self._none_active = trio.Event()
                await self._none_active.wait()
        for connection in list(self._rows.values()):
            connection.hurry()

    def rows(self) -> list[dict[str, Any]]:
        """Return the connection list, oldest first (`spec/ipc.md` §5.9)."""
        self._expire()
        return [connection.row() for connection in self._rows.values()]

    @property
    def active(self) -> int:
        """Connections that count: not those that are listed in TIME_WAIT."""
        return self._counts.total

    def statistics(self) -> StreamStatistics:
        """Return the counters that Info shows."""
        self._expire()
        return StreamStatistics(
            connections=self._counts.total,
            rows=len(self._rows),
            ports=self._ports.bound,
            ephemeral_ports=self._ports.allocated,
            accept_queue_drops=self.accept_queue_drops,
        )

    def follow(self, connection: Connection, old: ConnState) -> None:
        """Follow a connection's change of state: what every connection in the table has as its `on_state`."""
        new = connection.state
        if old.active and not new.active:
            self._counts.remove(connection.local.port)
            if not self._counts.total:
                self._none_active.set()
            live = self._live[connection.owner] - 1
            if live:
                self._live[connection.owner] = live
            else:
                del self._live[connection.owner]
        if new is ConnState.TIME_WAIT:
            self._wait(connection)
            if len(self._waiting[True]) > FINISHED_LOCAL_ROWS_MAX:
                self._recycle()
        elif new is ConnState.CLOSED:
            self._drop(connection)
        if old is ConnState.ESTABLISHED and new.ended:
            self._publish_end(connection)

    def _wait(self, connection: Connection) -> None:
        self._waiting[connection.recyclable].append((trio.current_time() + self._time_wait, connection))

    def _expire(self) -> None:
        """Drop the rows whose TIME_WAIT is over; one with unread bytes stays until its owner takes them or closes."""
        now = trio.current_time()
        for waiting in self._waiting.values():
            while waiting and waiting[0][0] <= now:
                self._drop_or_wait(waiting.popleft()[1])

    def _recycle(self) -> None:
        """Drop the oldest finished rows that protect nothing, lest short dials to oneself use up the ports."""
        recyclable = self._waiting[True]
        for _ in range(len(recyclable) - FINISHED_LOCAL_ROWS_MAX):
            self._drop_or_wait(recyclable.popleft()[1])

    def _drop_or_wait(self, connection: Connection) -> None:
        if connection.settled:
            self._drop(connection)
        else:
            self._wait(connection)

    def _drop(self, connection: Connection) -> None:
        if self._rows.pop(connection.conn_id, None) is None:
            return  # a reset row that was waiting in TIME_WAIT
        held = self._held[connection.owner]
        del held[connection.conn_id]
        if not held:
            del self._held[connection.owner]
        if connection.dialled:
            self._ports.release(connection.local.port)

    # Events

    def announce(self, connection: Connection) -> None:
        """Publish that a peer has opened a stream."""
        events = self._events
        if not events.hears_any(("conn.syn_received", "conn.established")):
            return
        data = {
            "conn_id": connection.conn_id,
            "dst_port": connection.local.port,
            "src_addr": str(connection.remote.address),
            "src_port": connection.remote.port,
        }
        events.publish("conn.syn_received", data)
        events.publish("conn.established", data)

    def _publish_end(self, connection: Connection) -> None:
        events = self._events
        topics = [connection.expiry] if connection.expiry else []
        topics.append("conn.rst" if connection.state is ConnState.CLOSED else "conn.fin")
        if connection.dialled and connection.remote.port == DATA_EXCHANGE_PORT and connection.bytes_received:
            topics.append("file.delivered")
        if not events.hears_any(topics):
            return
        data = {
            "conn_id": connection.conn_id,
            "local_port": connection.local.port,
            "remote_addr": str(connection.remote.address),
            "remote_port": connection.remote.port,
        }
        for topic in topics:
            if topic == "file.delivered":
                data = {key: data[key] for key in ("conn_id", "remote_addr", "remote_port")}
            events.publish(topic, data)
