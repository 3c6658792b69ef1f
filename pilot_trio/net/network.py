"""The seam between this package and the outside world: TCP and UDP as the daemon and the rendezvous see them.

`SystemNetwork` is the real one. `pilot_trio.testing` has one in memory, so that whole nodes run under virtual time.
"""

from __future__ import annotations

import abc
import socket
import ssl

import trio

from pilot_trio.net.endpoint import Endpoint as Endpoint


class DatagramSocket(abc.ABC):
    """A bound UDP socket."""

    @property
    @abc.abstractmethod
    def endpoint(self) -> Endpoint:
        """Where it is bound."""

    @abc.abstractmethod
    async def receive(self) -> tuple[bytes, Endpoint]:
        """Wait for one datagram; raise `trio.ClosedResourceError` once closed."""

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
    async def resolve(self, name: Endpoint) -> Endpoint:
        """Turn a host name into an address literal; raise `OSError` if that fails."""


class _SystemDatagramSocket(DatagramSocket):
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        host, port = sock.getsockname()[:2]
        self._endpoint = Endpoint(host, port)

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    async def receive(self) -> tuple[bytes, Endpoint]:
        while True:
            try:
                data, source = await self._sock.recvfrom(65_535)
            except ConnectionRefusedError:
                continue  # an ICMP answer to something sent earlier; it says nothing about the next datagram
            except OSError as exc:
                if self._sock.fileno() < 0:
                    raise trio.ClosedResourceError from exc
                raise
            return data, Endpoint(source[0], source[1])

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError
        # Trio's socket hides the plain one; a second descriptor object for the same socket costs nothing.
        try:
            self._raw.sendto(data, to)
        except OSError:
            return False
        return True

    @property
    def _raw(self) -> socket.socket:
        return self._sock._sock  # type: ignore[attr-defined,no-any-return]

    def close(self) -> None:
        self._sock.close()


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

    async def open_tcp(self, to: Endpoint) -> trio.abc.Stream:
        return await trio.open_tcp_stream(to.host or "127.0.0.1", to.port)

    async def listen_tcp(self, at: Endpoint) -> StreamListener:
        (listener, *others) = await trio.open_tcp_listeners(at.port, host=at.host or "0.0.0.0")  # noqa: S104
        for other in others:
            await other.aclose()
        return _SystemListener(listener)

    async def open_udp(self, at: Endpoint) -> DatagramSocket:
        family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_DGRAM)
        try:
            await sock.bind((at.host, at.port))
        except BaseException:
            sock.close()
            raise
        return _SystemDatagramSocket(sock)

    async def resolve(self, name: Endpoint) -> Endpoint:
        found = await trio.socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
        host, port = found[0][4][:2]
        return Endpoint(str(host), int(port))


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
