"""A bad network in memory: hosts, paths that delay, lose, repeat, reorder and damage, routers with NAT, partitions.

    network = SimulatedNetwork(seed=7, link=Link(delay=0.02, loss=0.01))
    alpha = network.host("alpha")
    beta = network.host("beta", nat=NatType.SYMMETRIC)
    network.set_path(alpha, beta, Link(delay=0.1, jitter=0.05))

Each host is a `pilot_trio.net.network.Network`: give it to `serve`, or to `open_node`. UDP goes over the links. TCP is
perfect but for partitions, during which it hangs; the registry is not what is tested here.

Everything is decided by the seed, by what is sent and by the time at which it is sent; the keys and the calendar of the
programs on the hosts come from the seed as well. Under `MockClock(autojump_threshold=0)` an hour takes as long as the
computing in it; `run_simulation` makes even the order in which Trio runs tasks a matter of the seed, so that a run which
failed fails again.

What happens to a datagram is decided when it is sent; only its arrival comes later. So a partition, a router's restart or a
closed port concern what is sent from then on.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import ipaddress
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

import attrs
import trio

from pilot_trio.address import PORT_MAX
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DEFAULT_RECEIVE_BUFFER, Addr, DatagramSocket, Network
from pilot_trio.net.udp import RECEIVE_BATCH_MAX
from pilot_trio.testing.links import HEADERS, Arrival, Direction, Link, LinkStatistics
from pilot_trio.testing.memory_network import LOOPBACK, UDP_PAYLOAD_MAX, MemoryListener
from pilot_trio.testing.nat import MAPPING_TIMEOUT, Nat, NatType
from pilot_trio.testing.pipe import PIPE_CAPACITY, MemoryStream, memory_stream_pair

ETHERNET_MTU: Final = 1500  # bytes of a packet, headers included; what a host's interface takes that says nothing else
IN_FLIGHT_MAX: Final = 65_536  # datagrams on their way to one socket; more are lost: no real path holds as many
_OWN: Final = frozenset({"", "0.0.0.0", "::", "::1", "localhost", LOOPBACK})  # noqa: S104 - names of the host itself
_FIRST_FREE_PORT: Final = 32_768  # hosts hand out free ports from here on
_FIRST_PUBLIC: Final = int(ipaddress.IPv4Address("11.0.0.1"))  # addresses that no node takes for private ones
_PRIVATE: Final = "10.{}.0.{}"
_EPOCH_NS: Final = 1_767_225_600 * 10**9  # nanoseconds; simulations start on 1 January 2026, UTC


class Passage(NamedTuple):
    """What became of one datagram."""

    at: float
    """When it was sent."""
    source: str
    """Name of the host."""
    to: str
    """Name of the host, or the endpoint if there is no such host."""
    size: int
    fate: str
    """`carried`, `lost` (link), `blocked` (partition), `filtered` (NAT), `nobody` (no socket there), `full` (in flight)."""
    arrives: tuple[float, ...]
    """When it, and its copy, arrive."""


@attrs.frozen
class NetworkStatistics:
    """What a `SimulatedNetwork` has done so far."""

    links: LinkStatistics  # all of them together
    blocked: int  # by a partition
    filtered: int  # by a NAT
    nobody: int  # nobody was bound there
    overflowed: int  # the receiver's buffer was full, or too many were in flight
    in_flight: int  # now


class SimulatedSocket(DatagramSocket):
    """A UDP socket of a `SimulatedHost`. What is on its way to it waits in here: there is no task behind the network."""

    def __init__(self, host: SimulatedHost, endpoint: Endpoint) -> None:
        self._host = host
        self._endpoint = endpoint
        self._flight: list[tuple[float, int, bytes, Endpoint]] = []  # a heap
        self._numbers = itertools.count()  # what arrives at the same time arrives in the order of sending
        self._queue: deque[tuple[bytes, Endpoint]] = deque()
        self._queued = 0  # bytes
        self._scope: trio.CancelScope | None = None  # of the task that waits; its deadline is the next arrival
        self._closed = False

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    @property
    def receive_buffer(self) -> int:
        return DEFAULT_RECEIVE_BUFFER

    @property
    def in_flight(self) -> int:
        """Datagrams that have not arrived yet."""
        self._settle()
        return len(self._flight)

    async def receive(self) -> tuple[bytes, Endpoint]:
        await self._arrival()
        return self._take()

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        await self._arrival()
        return [self._take() for _ in range(min(len(self._queue), RECEIVE_BATCH_MAX))]

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        if self._closed:
            raise trio.ClosedResourceError
        if len(data) > UDP_PAYLOAD_MAX:
            return False
        self._host.network.send(self._host, data, self._endpoint, to)
        return True

    def close(self) -> None:
        self._closed = True
        self._host.release_udp(self)
        self._flight.clear()
        self._queue.clear()
        if self._scope is not None:
            self._scope.cancel()

    def expect(self, arrival: Arrival, source: Endpoint) -> bool:
        """Take a datagram that will arrive; False if too many are on their way."""
        if len(self._flight) >= IN_FLIGHT_MAX:
            self._settle()
            if len(self._flight) >= IN_FLIGHT_MAX:
                return False
        heapq.heappush(self._flight, (arrival.at, next(self._numbers), arrival.data, source))
        if self._scope is not None and arrival.at < self._scope.deadline:
            self._scope.deadline = arrival.at
        return True

    async def _arrival(self) -> None:
        """Wait until there is something to take."""
        if self._scope is not None:
            raise trio.BusyResourceError("another task is receiving on this socket")
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            self._settle()
            if self._queue:
                return
            try:
                with trio.CancelScope(deadline=self._flight[0][0] if self._flight else inf) as self._scope:
                    await trio.sleep_forever()
            finally:
                self._scope = None

    def _settle(self) -> None:
        """Let what has arrived by now take its place in the buffer, which is as large as a kernel's."""
        now = trio.current_time()
        while self._flight and self._flight[0][0] <= now:
            _, _, data, source = heapq.heappop(self._flight)
            if self._queued + len(data) > DEFAULT_RECEIVE_BUFFER:
                self._host.network.count_overflow()
            else:
                self._queue.append((data, source))
                self._queued += len(data)

    def _take(self) -> tuple[bytes, Endpoint]:
        data, source = self._queue.popleft()
        self._queued -= len(data)
        return data, source


class SimulatedHost(Network):
    """One machine of a `SimulatedNetwork`, with one address. Made by `SimulatedNetwork.host`."""

    def __init__(self, network: SimulatedNetwork, name: str, address: str, nat: Nat | None) -> None:
        self.network: Final = network
        self.name: Final = name
        self.address: Final = address
        """Its own; behind a NAT a private one."""
        self.nat: Final = nat
        self.listeners: Final[dict[Endpoint, MemoryListener]] = {}
        self.sockets: Final[dict[Endpoint, SimulatedSocket]] = {}
        self.clock_error = 0.0
        """Seconds by which the host's calendar is ahead of the others'; may change at any time, as when somebody sets it."""
        self.down = False
        """Whether its programs are being killed (`SimulatedNetwork.take_down`)."""
        self.slept = 0.0
        """Seconds that the machine has slept, which its programs notice afterwards. Isolate the host meanwhile."""
        self.mtu = ETHERNET_MTU
        """Bytes of the largest packet of its interface, headers included; may change at any time. It is what the host knows;
        what becomes of larger datagrams, and of those that only this interface takes, is up to the links (`Link.mtu`)."""
        self._entropy = random.Random(f"{network.seed} {name} entropy")

    def __repr__(self) -> str:
        return f"<SimulatedHost {self.name} {self.address}>"

    async def open_tcp(self, to: Endpoint) -> MemoryStream:
        return await self.network.open_tcp(self, await self.resolve(to))

    async def listen_tcp(self, at: Endpoint) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        listener = MemoryListener(self._claim(self.listeners, at), self._release_tcp)
        self.listeners[listener.endpoint] = listener
        return listener

    async def open_udp(self, at: Endpoint) -> SimulatedSocket:
        await trio.lowlevel.checkpoint()
        sock = SimulatedSocket(self, self._claim(self.sockets, at))
        self.sockets[sock.endpoint] = sock
        return sock

    async def resolve(self, name: Endpoint, at: Endpoint | None = None) -> Endpoint:
        await trio.lowlevel.checkpoint_if_cancelled()  # no more: nodes ask for ever, and the answer is here
        if name.host in _OWN:
            return Endpoint(self.address, name.port)
        return Endpoint(self.network.lookup(name.host), name.port)

    def own_hosts(self, to: Endpoint) -> tuple[str, ...]:
        return (self.address,)

    def route_mtu(self, to: Endpoint) -> int:
        """Return what the interface towards an address takes, in bytes of a packet with its headers."""
        return UDP_PAYLOAD_MAX + HEADERS if to.host in _OWN or to.host == self.address else self.mtu

    def random_source(self) -> random.Random:
        return self.network.random_for(self)

    def random_bytes(self, size: int) -> bytes:
        return self._entropy.randbytes(size)

    def clock(self) -> float:
        return trio.current_time() + self.slept

    def wall_time_ns(self) -> int:
        return _EPOCH_NS + round((trio.current_time() + self.clock_error) * 1e9)

    def rebind(self) -> None:
        """Restart the router in front of this host: what it sends from now on comes from other ports."""
        if self.nat is None:
            raise ValueError(f"{self.name} is not behind a NAT")
        self.nat.rebind()

    def release_udp(self, sock: SimulatedSocket) -> None:
        """Forget a socket; its port is free again."""
        if self.sockets.get(sock.endpoint) is sock:
            del self.sockets[sock.endpoint]

    def _release_tcp(self, listener: MemoryListener) -> None:
        if self.listeners.get(listener.endpoint) is listener:
            del self.listeners[listener.endpoint]

    def _claim(self, table: Mapping[Endpoint, object], at: Endpoint) -> Endpoint:
        if at.host not in _OWN and at.host != self.address:
            raise OSError(errno.EADDRNOTAVAIL, f"listen on {at}: {self.name} has no address but {self.address}")
        wanted = [at.port] if at.port else range(_FIRST_FREE_PORT, PORT_MAX + 1)
        free = next((port for port in wanted if Endpoint(self.address, port) not in table), None)
        if free is None:
            raise OSError(errno.EADDRINUSE, f"listen on {at}: address already in use")
        return Endpoint(self.address, free)


class SimulatedNetwork:
    """Hosts and the paths between them.

    Args:
      seed: decides everything that is left to chance. Show it when a test fails: it is what repeats the run.
      link: what paths are like that nothing else is said about.
      names: host names and the addresses they resolve to; the hosts' own names resolve anyway.
      observer: called for every datagram with what became of it.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        link: Link | None = None,
        names: Mapping[str, str] | None = None,
        observer: Callable[[Passage], None] | None = None,
    ) -> None:
        self.seed: Final = seed
        self.observer = observer
        self._link = link or Link()
        self._names = dict(names or {})
        self._hosts: dict[str, SimulatedHost] = {}  # by name
        self._at: dict[str, SimulatedHost | Nat] = {}  # by public address
        self._lans: list[Nat] = []
        self._inside: dict[tuple[Nat | None, str], SimulatedHost] = {}  # by router and own address
        self._directions: dict[tuple[str, str], Direction] = {}
        self._blocked: set[tuple[str, str]] = set()
        self._healed = trio.lowlevel.ParkingLot()
        self._tcp: list[tuple[str, str, MemoryStream]] = []  # client's host, server's, client's end
        self._counted: Counter[str] = Counter()
        self._random_sources = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)

    # --- building ----------------------------------------------------------------------------------------------------

    def host(self, name: str, *, nat: Nat | NatType | None = None) -> SimulatedHost:
        """Add a machine.

        Args:
          name: unique; resolves to its address.
          nat: the router it is behind (`router`), or the kind of one of its own; None: it has a public address.
        """
        if name in self._hosts:
            raise ValueError(f"there is a host named {name} already")
        if isinstance(nat, NatType):
            nat = self.router(nat)
        if nat is None:
            address = self._public_address()
        else:
            siblings = sum(1 for router, _ in self._inside if router is nat)
            address = _PRIVATE.format(self._lans.index(nat), siblings + 2)
        host = self._hosts[name] = SimulatedHost(self, name, address, nat)
        self._inside[nat, address] = host
        if nat is None:
            self._at[address] = host
        return host

    def router(self, kind: NatType, *, mapping_timeout: float = MAPPING_TIMEOUT) -> Nat:
        """Add a router with NAT; hosts behind the same one reach each other by their own addresses."""
        nat = Nat(kind, self._public_address(), mapping_timeout=mapping_timeout)
        self._lans.append(nat)
        self._at[nat.address] = nat
        return nat

    def set_path(self, one: SimulatedHost, other: SimulatedHost, link: Link, back: Link | None = None) -> None:
        """Say what the path between two hosts is like from now on; `back`: the way from `other`, if it differs."""
        self.direction(one, other).link = link
        self.direction(other, one).link = back or link

    def set_link(self, link: Link) -> None:
        """Say what all paths are like from now on, those named before included."""
        self._link = link
        for direction in self._directions.values():
            direction.link = link

    def set_mtu(self, one: SimulatedHost, other: SimulatedHost, mtu: int) -> None:
        """Let the path between two hosts carry packets of up to `mtu` bytes from now on; larger ones vanish silently."""
        for direction in (self.direction(one, other), self.direction(other, one)):
            direction.link = attrs.evolve(direction.link, mtu=mtu)

    def direction(self, source: SimulatedHost, to: SimulatedHost) -> Direction:
        """Return one direction of a path, with its counters."""
        key = source.name, to.name
        direction = self._directions.get(key)
        if direction is None:
            seed = f"{self.seed} {source.name} {to.name}"
            direction = self._directions[key] = Direction(self._link, seed)
        return direction

    def random_for(self, host: SimulatedHost) -> random.Random:
        """Return random numbers for a program that starts on a host."""
        return random.Random(f"{self.seed} {host.name} {next(self._random_sources)}")

    # --- partitions --------------------------------------------------------------------------------------------------

    def block(self, sources: Iterable[SimulatedHost], targets: Iterable[SimulatedHost]) -> None:
        """Let nothing through from any of `sources` to any of `targets`. TCP hangs if either way is blocked."""
        targets = list(targets)
        self._blocked |= {(source.name, to.name) for source in sources for to in targets if source is not to}
        self._hold_tcp()

    def partition(self, *groups: Iterable[SimulatedHost]) -> None:
        """Cut the hosts of each group off from those of the others, and from no one else."""
        for one, other in itertools.permutations([list(group) for group in groups], 2):
            self.block(one, other)

    def isolate(self, host: SimulatedHost) -> None:
        """Cut one host off from all there are."""
        self.partition([host], [other for other in self._hosts.values() if other is not host])

    def heal(self) -> None:
        """Undo every `block`, `partition` and `isolate`."""
        self._blocked.clear()
        self._hold_tcp()
        self._healed.unpark_all()

    # --- death -------------------------------------------------------------------------------------------------------

    def take_down(self, host: SimulatedHost) -> None:
        """Kill what runs on a host: whatever it does from now on, nothing leaves it or gets there; connections break."""
        host.down = True
        for source, target, client in self._tcp:
            if host.name in (source, target):
                client.transport.break_connection()
        self._tcp = [entry for entry in self._tcp if host.name not in entry[:2]]

    def bring_up(self, host: SimulatedHost) -> None:
        """Let programs be started there again, once those that were killed are gone."""
        host.down = False

    # --- what happened -----------------------------------------------------------------------------------------------

    def statistics(self) -> NetworkStatistics:
        """Return the counters."""
        links = LinkStatistics()
        for direction in self._directions.values():
            links.add(direction.counted)
        sockets = [sock for host in self._hosts.values() for sock in host.sockets.values()]
        return NetworkStatistics(
            links=links,
            blocked=self._counted["blocked"],
            filtered=self._counted["filtered"],
            nobody=self._counted["nobody"],
            overflowed=self._counted["full"] + self._counted["overflowed"],
            in_flight=sum(sock.in_flight for sock in sockets),
        )

    def fingerprint(self) -> str:
        """Return a digest of all datagrams so far, what became of them included: equal for runs that were the same."""
        return self._trace.hexdigest()

    # --- carrying; called by hosts and sockets -----------------------------------------------------------------------

    def send(self, source: SimulatedHost, data: bytes, origin: Endpoint, to: Endpoint) -> None:
        """Carry one datagram."""
        if source.down:
            return
        now = trio.current_time()
        if to.host in _OWN:
            to = Endpoint(source.address, to.port)
        target, seen_as, at = self._route(source, origin, to, now)
        sock = None if target is None or target.down else target.sockets.get(at)
        arrivals: list[Arrival] = []
        if target is None:
            fate = "filtered" if to.host in self._at else "nobody"
        elif (source.name, target.name) in self._blocked:
            fate = "blocked"
        elif target is source:
            arrivals, fate = [Arrival(now, data)], "carried"
        else:
            arrivals = self.direction(source, target).carry(data, now)
            fate = "carried" if arrivals else "lost"
        if arrivals and sock is None:
            fate = "nobody"
        elif sock is not None and not all(sock.expect(arrival, seen_as) for arrival in arrivals):
            fate = "full"
        self._trace.update(data)
        self._note(Passage(now, source.name, target.name if target else str(to), len(data), fate, _times(arrivals)))

    async def open_tcp(self, source: SimulatedHost, to: Endpoint) -> MemoryStream:
        """Connect."""
        target = self._inside.get((source.nat, to.host)) or self._at.get(to.host)
        listener = target.listeners.get(to) if isinstance(target, SimulatedHost) else None
        if not isinstance(target, SimulatedHost) or listener is None or source.down or target.down:
            raise ConnectionRefusedError(f"connect to {to}: connection refused")
        while self._is_cut(source.name, target.name):
            await self._healed.park()
        client, server = memory_stream_pair(PIPE_CAPACITY)
        client.name, client.remote_endpoint = f"to {to}", to
        seen_as = source.address if source.nat is None or target.nat is source.nat else source.nat.address
        server.name, server.remote_endpoint = f"from {source.name}", Endpoint(seen_as, 1)
        self._tcp = [entry for entry in self._tcp if not entry[2].transport.closed]
        self._tcp.append((source.name, target.name, client))
        await listener.connected(server)
        return client

    def lookup(self, name: str) -> str:
        """Resolve a host name; raise `OSError` if there is no such."""
        if name in self._hosts:
            return self._hosts[name].address
        name = self._names.get(name, name)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise OSError(f"cannot resolve {name!r}: the simulated network has no such name") from None
        return name

    def _route(
        self, source: SimulatedHost, origin: Endpoint, to: Endpoint, now: float
    ) -> tuple[SimulatedHost | None, Endpoint, Endpoint]:
        """Return who gets a datagram, as whose, and at which own endpoint."""
        neighbour = self._inside.get((source.nat, to.host))
        if neighbour is not None:
            return neighbour, origin, to
        seen_as = origin if source.nat is None else source.nat.outgoing(origin, to, now)
        target = self._at.get(to.host)
        if not isinstance(target, Nat):
            return target, seen_as, to
        inside = target.incoming(to.port, seen_as, now)
        # Routers that send back what comes from inside (hairpinning) are rare; these do not.
        if inside is None or target is source.nat:
            return None, seen_as, to
        return self._inside[target, inside.host], seen_as, inside

    def count_overflow(self) -> None:
        """Count a datagram that arrived at a full buffer."""
        self._counted["overflowed"] += 1

    def _note(self, passage: Passage) -> None:
        self._counted[passage.fate] += 1
        self._trace.update(repr(passage).encode())
        if self.observer is not None:
            self.observer(passage)

    def _is_cut(self, one: str, other: str) -> bool:
        return (one, other) in self._blocked or (other, one) in self._blocked

    def _hold_tcp(self) -> None:
        for source, target, client in self._tcp:
            client.transport.hold(held=self._is_cut(source, target))

    def _public_address(self) -> str:
        return str(ipaddress.IPv4Address(_FIRST_PUBLIC + len(self._at)))


def _times(arrivals: Iterable[Arrival]) -> tuple[float, ...]:
    return tuple(arrival.at for arrival in arrivals)
