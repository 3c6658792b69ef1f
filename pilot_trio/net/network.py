"""The seam between this package and the outside world: TCP and UDP as the daemon and the rendezvous see them.

`SystemNetwork` is the real one. `pilot_trio.testing` has one in memory, so that whole nodes run under virtual time.
"""

from __future__ import annotations

import abc
import contextlib
import os
import random
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Final

import trio

from pilot_trio.net.endpoint import Endpoint as Endpoint
from pilot_trio.net.udp import Addr as Addr
from pilot_trio.net.udp import UDPSocket, UDPStatistics

# Level and name of the option that tells a connected socket's MTU, on Linux; the socket module does not name them.
_IP_MTU: Final = (socket.IPPROTO_IP, 14)
_IPV6_MTU: Final = (socket.IPPROTO_IPV6, 24)
# Linux' monotonic clock, and Trio's with it, stands still while the machine sleeps; this one does not.
_SLEEPLESS: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

ROUTE_MTU_LEAST: Final = 1280  # bytes, IP header included; IPv6 wants every link to carry as much, and so do we
DEFAULT_RECEIVE_BUFFER: Final = 1 << 20  # bytes; what a datagram socket holds that does not say


class DatagramSocket(abc.ABC):
    """A bound UDP socket.

    An implementation needs only the abstract methods; the batched ones are there for those that are faster with them.
    """

    @property
    @abc.abstractmethod
    def endpoint(self) -> Endpoint:
        """Where it is bound."""

    @abc.abstractmethod
    async def receive(self) -> tuple[bytes, Endpoint]:
        """Wait for one datagram; raise `trio.ClosedResourceError` once closed."""

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        """Wait for datagrams and return those that are there, at least one; raise as `receive` does."""
        return [await self.receive()]

    def send_batch(self, batch: Sequence[tuple[bytes, Addr]]) -> Sequence[Addr]:
        """Hand datagrams to the network, in order and without waiting; return destinations to which there is no way."""
        for data, to in batch:
            self.send_nowait(data, Endpoint(*to))
        return ()

    async def send_queued(self) -> None:
        """Send what `send_batch` had to keep, for ever. Somebody must run it; a socket that keeps nothing just sleeps."""
        await trio.sleep_forever()

    @property
    def receive_buffer(self) -> int:
        """Bytes that can wait to be received; what exceeds them is lost."""
        return DEFAULT_RECEIVE_BUFFER

    def statistics(self) -> UDPStatistics | None:
        """Return the counters, None if it has none."""
        return None

    @abc.abstractmethod
    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        """Hand one datagram to the network; False if it had to be dropped (full buffer, no route). Never waits."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the port; a task inside `receive` gets `trio.ClosedResourceError`."""


class StreamListener(trio.abc.Listener[trio.abc.Stream]):
    """A listening TCP socket that knows its own address."""

    @property
    @abc.abstractmethod
    def endpoint(self) -> Endpoint:
        """Where it listens."""


class Network(abc.ABC):
    """How a node reaches others. Name resolution is part of it; addresses given may be names."""

    @abc.abstractmethod
    async def open_tcp(self, to: Endpoint) -> trio.abc.Stream:
        """Open a TCP connection; raise `OSError` if that fails. No deadline of its own."""

    @abc.abstractmethod
    async def listen_tcp(self, at: Endpoint) -> StreamListener:
        """Listen on `at` (port 0: any free one); raise `OSError` if that fails."""

    @abc.abstractmethod
    async def open_udp(self, at: Endpoint) -> DatagramSocket:
        """Bind a UDP socket to `at` (port 0: any free one); raise `OSError` if that fails."""

    @abc.abstractmethod
    async def resolve(self, name: Endpoint, at: Endpoint | None = None) -> Endpoint:
        """Turn a host name into an address literal; raise `OSError` if that fails.

        Args:
          name: what to look up.
          at: where the UDP socket is bound that is to send there; one on an IPv4 address reaches no other. None: any will do.
        """

    def source_host(self, to: Endpoint) -> str | None:
        """Return the own address, as a literal, from which datagrams would leave for an address.

        "" if there is no way there now, None if this network cannot say. Nothing is sent.
        """
        return None

    def own_hosts(self, to: Endpoint) -> Sequence[str]:
        """Return the addresses under which neighbours may know this machine; `to`: somewhere outside."""
        host = self.source_host(to)
        return (host,) if host else ()

    def route_mtu(self, to: Endpoint) -> int:
        """Return the largest IP packet, in bytes, that this machine would send to an address in one piece.

        It says nothing about what lies beyond the first link. `ROUTE_MTU_LEAST` if this network cannot say. Nothing is sent.
        """
        return ROUTE_MTU_LEAST

    def clock(self) -> float:
        """Return seconds of a clock that goes on while the machine sleeps."""
        return trio.current_time()

    def random_source(self) -> random.Random:
        """Return random numbers for jitter, part of the outside world like time. Keys and nonces never come from here."""
        return random.Random()

    def random_bytes(self, size: int) -> bytes:
        """Return entropy for keys and nonces: the system's, except in a simulation, whose runs have to repeat."""
        return os.urandom(size)

    def wall_time_ns(self) -> int:
        """Return nanoseconds since the epoch, by a clock that somebody may set."""
        return time.time_ns()

    def wall_time(self) -> float:
        """Return seconds since the epoch, by a clock that somebody may set."""
        return self.wall_time_ns() / 1e9


class _SystemDatagramSocket(DatagramSocket):
    def __init__(self, sock: UDPSocket) -> None:
        self._udp = sock
        self._unread: deque[tuple[bytes, Addr]] = deque()  # of a batch, for those who take one at a time
        # The batched calls are the hot path: no frame of ours between caller and socket.
        self.send_batch = sock.send_batch  # type: ignore[method-assign]
        self.send_queued = sock.send_queued  # type: ignore[method-assign]

    @property
    def endpoint(self) -> Endpoint:
        return self._udp.endpoint

    @property
    def receive_buffer(self) -> int:
        return self._udp.receive_buffer

    def statistics(self) -> UDPStatistics:
        return self._udp.statistics()

    async def receive(self) -> tuple[bytes, Endpoint]:
        if self._unread:
            await trio.lowlevel.checkpoint()
        else:
            self._unread.extend(await self._udp.receive_batch())
        data, source = self._unread.popleft()
        return data, Endpoint(*source)

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        if self._unread:
            await trio.lowlevel.checkpoint()
            batch = list(self._unread)
            self._unread.clear()
            return batch
        return await self._udp.receive_batch()

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        before = self._udp.lost
        self._udp.send_batch([(data, to)])
        return self._udp.lost == before

    def close(self) -> None:
        self._unread.clear()
        self._udp.close()


class _SystemListener(StreamListener):
    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        host, port = listener.socket.getsockname()[:2]
        self._endpoint = Endpoint(host, port)

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    async def accept(self) -> trio.abc.Stream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()


class SystemNetwork(Network):
    """The operating system's sockets."""

    def source_host(self, to: Endpoint) -> str:
        family = socket.AF_INET6 if ":" in to.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((to.host, to.port))
                host = sock.getsockname()[0]
        except (OSError, TypeError):  # the latter: it is neither an address nor a name
            return ""
        assert isinstance(host, str)
        return host

    def route_mtu(self, to: Endpoint) -> int:
        if sys.platform != "linux":
            return ROUTE_MTU_LEAST  # the numbers mean something else there
        is_ipv6 = ":" in to.host
        try:
            with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((to.host, to.port))
                return sock.getsockopt(*(_IPV6_MTU if is_ipv6 else _IP_MTU))
        except (OSError, TypeError):
            return ROUTE_MTU_LEAST

    def clock(self) -> float:
        return time.clock_gettime(_SLEEPLESS)

    async def open_tcp(self, to: Endpoint) -> trio.abc.Stream:
        with _names_checked(to):
            return await trio.open_tcp_stream(to.host or "127.0.0.1", to.port)

    async def listen_tcp(self, at: Endpoint) -> StreamListener:
        with _names_checked(at):
            (listener, *others) = await trio.open_tcp_listeners(at.port, host=at.host or "0.0.0.0")  # noqa: S104
        for other in others:
            await other.aclose()
        return _SystemListener(listener)

    async def open_udp(self, at: Endpoint) -> DatagramSocket:
        family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        with _names_checked(at):
            found = await trio.socket.getaddrinfo(
                at.host or None, at.port, family, socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.bind(found[0][4])
        except BaseException:
            sock.close()
            raise
        return _SystemDatagramSocket(UDPSocket(sock))

    async def resolve(self, name: Endpoint, at: Endpoint | None = None) -> Endpoint:
        family = socket.AF_UNSPEC if at is None or ":" in at.host else socket.AF_INET
        with _names_checked(name):
            found = await trio.socket.getaddrinfo(name.host, name.port, family, socket.SOCK_STREAM)
        host, port = found[0][4][:2]
        return Endpoint(str(host), int(port))


@contextlib.contextmanager
def _names_checked(endpoint: Endpoint) -> Generator[None]:
    """Raise `OSError` for a host that can be no name, too. It is somebody else's word, and looking up has errors of its own."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        raise socket.gaierror(socket.EAI_NONAME, f"{endpoint.host!r} is no host name: {exc}") from exc


def remote_endpoint(stream: trio.abc.Stream) -> Endpoint:
    """Return where the other end of a connection is; loopback and port 0 for streams that do not know."""
    if isinstance(stream, trio.SocketStream):
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # it was reset already; the first read will tell
            return Endpoint("0.0.0.0", 0)  # noqa: S104 - not a bind, and not an address that deserves privileges
        return Endpoint(host, port)
    found = getattr(stream, "remote_endpoint", None)
    return found if isinstance(found, Endpoint) else Endpoint("127.0.0.1", 0)


def client_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext, server_hostname: str
) -> trio.SSLStream[trio.abc.Stream]:
    """Wrap a connection in TLS, client side; the handshake happens at first use."""
    return trio.SSLStream(stream, context, server_hostname=server_hostname)
