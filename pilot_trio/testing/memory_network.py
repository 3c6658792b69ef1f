"""A network in memory: TCP and UDP between the parts of one test, deterministic and under virtual time.

`MemoryNetwork` implements `pilot_trio.net.network.Network`, so whole nodes and rendezvous servers run on it unchanged. It
is one loopback machine: every address is local, and who binds an endpoint owns it. Two networks share nothing.

Faults are methods: `refuse` and `black_hole` for what cannot be reached, `break_connections` for what was, `udp_filter` for
datagrams.
"""

from __future__ import annotations

import errno
import ipaddress
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import attrs
import trio

from pilot_trio.address import PORT_MAX
from pilot_trio.net.network import Addr, DatagramSocket, Endpoint, Network, StreamListener
from pilot_trio.testing.pipe import PIPE_CAPACITY, MemoryStream, memory_stream_pair

TCP_BACKLOG: Final = 128  # connections that wait to be accepted; further ones wait to be connected, as with a kernel
UDP_QUEUE: Final = 512  # datagrams that wait to be received; further ones are dropped and counted, as with a kernel
MTU: Final = 65_536  # bytes; a loopback interface's
UDP_PAYLOAD_MAX: Final = 65_507  # bytes; the most that IPv4 can carry
_FIRST_FREE_PORT: Final = 32_768  # the network hands out free ports from here on
_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - hosts that mean every address
LOOPBACK: Final = "127.0.0.1"

_Bound = TypeVar("_Bound")


@attrs.frozen
class MemoryNetworkStatistics:
    """What happened on the network so far."""

    tcp_opened: int
    tcp_refused: int
    udp_delivered: int
    udp_dropped: int  # nobody bound there, queue full, too long, or taken by `udp_filter`


class MemoryListener(StreamListener):
    """A listening socket of a network in memory.

    Args:
      endpoint: where it listens.
      release: called with it once it is closed.
    """

    def __init__(self, endpoint: Endpoint, release: Callable[[MemoryListener], None]) -> None:
        self._endpoint = endpoint
        self._release = release
        self._waiting: deque[MemoryStream] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._waiting:
                stream = self._waiting.popleft()
                self._changed.unpark_all()
                return stream
            await self._changed.park()

    async def aclose(self) -> None:
        self._closed = True
        self._release(self)
        while self._waiting:
            self._waiting.popleft().close()
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def connected(self, stream: MemoryStream) -> None:
        """Put a new connection into the backlog; wait while that is full."""
        while not self._closed and len(self._waiting) >= TCP_BACKLOG:
            await self._changed.park()
        if self._closed:
            raise ConnectionRefusedError(f"connect to {self._endpoint}: connection refused")
        self._waiting.append(stream)
        self._changed.unpark_all()


class MemoryDatagramSocket(DatagramSocket):
    """A UDP socket of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, endpoint: Endpoint) -> None:
        self._network = network
        self._endpoint = endpoint
        self._queue: deque[tuple[bytes, Endpoint]] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    async def receive(self) -> tuple[bytes, Endpoint]:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._queue:
                return self._queue.popleft()
            await self._arrived.park()

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        batch = [await self.receive()]
        batch.extend(self._queue)
        self._queue.clear()
        return batch

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        if self._closed:
            raise trio.ClosedResourceError
        source = self._endpoint
        return self._network.send_udp(data, Endpoint(LOOPBACK, source.port) if source.host in _ANY else source, to)

    def close(self) -> None:
        self._closed = True
        self._network.release_udp(self)
        self._arrived.unpark_all()

    def deliver(self, data: bytes, source: Endpoint) -> bool:
        """Put a datagram into the queue; False if it is full."""
        if len(self._queue) >= UDP_QUEUE:
            return False
        self._queue.append((data, source))
        self._arrived.unpark_all()
        return True


@attrs.define(eq=False)
class MemoryNetwork(Network):
    """One loopback machine in memory.

    Args:
      names: host names and the addresses they resolve to, besides `localhost`.
      capacity: bytes that one direction of a TCP connection holds.
      udp_filter: called with data, source and destination of each datagram; False loses it.
    """

    names: Mapping[str, str] = attrs.field(factory=dict)
    capacity: int = PIPE_CAPACITY
    udp_filter: Callable[[bytes, Endpoint, Endpoint], bool] | None = None
    _listeners: dict[Endpoint, MemoryListener] = attrs.field(factory=dict, init=False)
    _sockets: dict[Endpoint, MemoryDatagramSocket] = attrs.field(factory=dict, init=False)
    _connections: dict[Endpoint, list[MemoryStream]] = attrs.field(factory=dict, init=False)  # client ends, by server
    _refused: set[Endpoint] = attrs.field(factory=set, init=False)
    _black_holes: dict[Endpoint, trio.Event] = attrs.field(factory=dict, init=False)
    _next_port: int = attrs.field(default=_FIRST_FREE_PORT, init=False)
    _opened: int = attrs.field(default=0, init=False)
    _refusals: int = attrs.field(default=0, init=False)
    _delivered: int = attrs.field(default=0, init=False)
    _dropped: int = attrs.field(default=0, init=False)

    def random_source(self) -> random.Random:
        """Let jitter come from the module `random`, which a test may seed."""
        return random.Random(random.getrandbits(64))

    async def open_tcp(self, to: Endpoint) -> MemoryStream:
        to = await self.resolve(to)
        while (hole := self._black_holes.get(to)) is not None:
            await hole.wait()
        listener = _find(self._listeners, to)
        if listener is None or to in self._refused:
            self._refusals += 1
            raise ConnectionRefusedError(f"connect to {to}: connection refused")
        client, server = memory_stream_pair(self.capacity)
        client.name = f"to {to}"
        server.name = f"from {Endpoint(LOOPBACK, self._free_port(self._listeners))}"
        await listener.connected(server)
        self._opened += 1
        alive = [stream for stream in self._connections.get(listener.endpoint, []) if not stream.transport.closed]
        self._connections[listener.endpoint] = [*alive, client]
        return client

    async def listen_tcp(self, at: Endpoint) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        listener = MemoryListener(self._claim(self._listeners, at), self.release_tcp)
        self._listeners[listener.endpoint] = listener
        return listener

    async def open_udp(self, at: Endpoint) -> MemoryDatagramSocket:
        await trio.lowlevel.checkpoint()
        sock = MemoryDatagramSocket(self, self._claim(self._sockets, at))
        self._sockets[sock.endpoint] = sock
        return sock

    def route_mtu(self, to: Endpoint) -> int:
        return MTU

    async def resolve(self, name: Endpoint, at: Endpoint | None = None) -> Endpoint:
        await trio.lowlevel.checkpoint()
        host = self.names.get(name.host, name.host)
        if host in _ANY or host == "localhost":
            return Endpoint(LOOPBACK, name.port)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise OSError(f"cannot resolve {name.host!r}: the in-memory network has no such name") from None
        return Endpoint(host, name.port)

    def statistics(self) -> MemoryNetworkStatistics:
        """Return the counters."""
        return MemoryNetworkStatistics(self._opened, self._refusals, self._delivered, self._dropped)

    def refuse(self, endpoint: Endpoint) -> None:
        """From now on, refuse connections to `endpoint` although somebody listens; `restore` ends it."""
        self._refused.add(endpoint)

    def black_hole(self, endpoint: Endpoint) -> None:
        """From now on, let connection attempts to `endpoint` hang; `restore` lets the waiting ones go on."""
        self._black_holes.setdefault(endpoint, trio.Event())

    def restore(self, endpoint: Endpoint) -> None:
        """Undo `refuse` and `black_hole`."""
        self._refused.discard(endpoint)
        hole = self._black_holes.pop(endpoint, None)
        if hole is not None:
            hole.set()

    def break_connections(self, endpoint: Endpoint) -> int:
        """Reset every connection that was opened to `endpoint`; return how many."""
        broken = 0
        for listening, clients in self._connections.items():
            if listening == endpoint or (listening.host in _ANY and listening.port == endpoint.port):
                alive = [client for client in clients if not client.transport.closed]
                for client in alive:
                    client.transport.break_connection()
                broken += len(alive)
                clients.clear()
        return broken

    def send_udp(self, data: bytes, source: Endpoint, to: Endpoint) -> bool:
        """Carry one datagram; False if the sender's own socket would have refused it. Loss is silent, as it should be."""
        if len(data) > UDP_PAYLOAD_MAX:
            self._dropped += 1
            return False
        target = _find(self._sockets, to)
        passes = self.udp_filter is None or self.udp_filter(data, source, to)
        if target is not None and passes and target.deliver(data, source):
            self._delivered += 1
        else:
            self._dropped += 1
        return True

    def release_tcp(self, listener: MemoryListener) -> None:
        """Forget a listener; its port is free again."""
        if self._listeners.get(listener.endpoint) is listener:
            del self._listeners[listener.endpoint]

    def release_udp(self, sock: MemoryDatagramSocket) -> None:
        """Forget a socket; its port is free again."""
        if self._sockets.get(sock.endpoint) is sock:
            del self._sockets[sock.endpoint]

    def _claim(self, table: Mapping[Endpoint, object], at: Endpoint) -> Endpoint:
        host = LOOPBACK if at.host == "localhost" else at.host
        if at.port == 0:
            return Endpoint(host, self._free_port(table))
        for taken in table:
            if taken.port == at.port and (taken.host == host or taken.host in _ANY or host in _ANY):
                raise OSError(errno.EADDRINUSE, f"listen on {at}: address already in use")
        return Endpoint(host, at.port)

    def _free_port(self, table: Mapping[Endpoint, object]) -> int:
        taken = {endpoint.port for endpoint in table}
        while self._next_port in taken:
            self._next_port += 1
        if self._next_port > PORT_MAX:
            raise OSError(errno.EADDRNOTAVAIL, "the in-memory network has no free port left")
        self._next_port += 1
        return self._next_port - 1


def _find(table: Mapping[Endpoint, _Bound], to: Endpoint) -> _Bound | None:
    """Return who is bound to `to`: exactly, or to every address at that port."""
    exact = table.get(to)
    if exact is not None:
        return exact
    return next((bound for at, bound in table.items() if at.port == to.port and at.host in _ANY), None)
