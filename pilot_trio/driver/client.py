"""A program's side of the daemon: `open_driver` and what it gives.

How it uses connections, because the protocol has no request ids and no flow control towards clients:

- The **main** connection (`links`), opened first, carries confirmed datagrams and Health (their answers come in order,
  so any number of tasks may have one under way), received datagrams, and one other request at a time.
- **Extra** ones are opened while that other request is taking its time: so a Health never waits for a lookup, nor a
  lookup for somebody else's. Two of them stay open for reuse. One whose request was cancelled is closed, not reused.
- Each **dialled stream** and each **listener** has one of its own: a stream that nobody reads holds up itself only.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, final

import attrs
import trio

from pilot_trio.address import ConnId, NodeId, Port, SocketAddress
from pilot_trio.driver.commands import Json, ManagedNetworks, Networks, Signing, Trust
from pilot_trio.driver.datagrams import DatagramChannel
from pilot_trio.driver.dial_errors import dial_error
from pilot_trio.driver.links import Connect, Links
from pilot_trio.driver.listener import PilotListener
from pilot_trio.driver.replies import Health, Info, Resolved, decode_json
from pilot_trio.driver.socket_path import connect, find_socket
from pilot_trio.driver.stream import PilotStream
from pilot_trio.driver.target import Target, check_port, parse_target
from pilot_trio.errors import DaemonError, IPCClosedError, LocalProtocolError, PortInUse
from pilot_trio.net.background import open_background
from pilot_trio.net.transport import Transport
from pilot_trio.wire.ipc import (
    SEND_DATA_MAX,
    Accepted,
    Code,
    ReceivedDatagram,
    decode_conn,
    encode_broadcast,
    encode_frame,
    encode_target,
)
from pilot_trio.wire.ipc_requests import encode_tags

_HEADER_SIZE: Final = 5  # of an encoded frame: `Link.request` takes payloads


@attrs.frozen
class DriverStatistics:
    """What a driver holds and has seen."""

    links: int  # connections to the daemon, the main one included
    links_opened: int  # … over its life
    requests: int  # under way
    answers_owed: int  # of cancelled requests on connections still in use
    streams: int  # open ones
    unread: int  # bytes received and not read, over all streams
    datagrams: int  # received, whoever they were for
    datagrams_dropped: int  # because a channel was full


@contextlib.asynccontextmanager
async def open_driver(
    socket_path: str | Path | None = None, *, connect_with: Connect | None = None
) -> AsyncGenerator[Driver]:
    """Connect to a daemon and give a `Driver`; leaving the block closes everything that was opened with it.

    For example::

        async with pilot_trio.open_driver() as node:
            async with await node.dial("agent-b", 5000) as stream:
                await stream.send_all(b"hello")

    Args:
      socket_path: the daemon's socket; None means the one that `pilotctl` would use (`find_socket`).
      connect_with: opens connections instead, in tests for example.

    Raises:
      DaemonUnavailable: nobody answers on the socket.

    An exception of the block comes out as it is, not wrapped in a group: the driver's own tasks never fail.
    """
    if connect_with is None:
        path = await trio.to_thread.run_sync(find_socket) if socket_path is None else Path(socket_path)
        connect_with = partial(connect, path)
    transport = await connect_with()
    async with open_background() as nursery:
        driver = Driver(nursery, connect_with, transport)
        try:
            yield driver
        finally:
            driver.close()


@final
class Driver:
    """A connection to a daemon. Made by `open_driver`; usable from any number of tasks at once.

    Every method that asks the daemon raises `DaemonError`, with the daemon's text unchanged, if that says no, and
    `IPCClosedError` if the daemon is gone. Every one may be cancelled at any time without harm to the others: a request
    that was already sent is carried out, and its answer is dropped. There are no time limits; put one around the call.

    A driver whose daemon has gone stays so. Open a new one.

    Attributes:
      trust, networks, managed, signing: the commands of these subjects.
    """

    def __init__(self, nursery: trio.Nursery, connect_with: Connect, transport: Transport) -> None:
        self._links = Links(
            nursery, connect_with, transport, on_datagram=self._on_datagram, on_close=self._on_main_lost
        )
        self._channels: list[DatagramChannel] = []
        self._datagrams = 0
        self._datagrams_dropped = 0
        self._confirms = True  # until the daemon says that it does not know how
        self.trust = Trust(self.command)
        self.networks = Networks(self.command)
        self.managed = ManagedNetworks(self.command)
        self.signing = Signing(self.command)

    def __repr__(self) -> str:
        state = "open" if self._links.main.failure is None else "closed"
        return f"<Driver {state}, {len(self._links)} connections>"

    # Streams

    async def dial(self, target: Target, port: int | None = None) -> PilotStream:
        """Open a stream to a port of a node: `dial("agent-b", 5000)`, `dial("0:0000.0000.0001:5000")`.

        A host name is looked up first (`resolve`). Cancelled, it leaves nothing behind: the daemon is told to give up, and
        closes the stream if it was faster.

        Raises:
          DialError: in the class that says why: `DialRefused`, `DialTimeout`, `NoRoute`, `PortsExhausted`, …
          DecodeError: `target` has no port and none was given.
        """
        destination = await self._locate(target, port)
        stream: PilotStream | None = None
        link = await self._links.open()

        def opened(payload: bytes) -> None:
            nonlocal stream
            conn_id, _ = decode_conn(payload)
            stream = PilotStream(link, conn_id, destination, Port(0), link.close, self.info)

        payload = encode_target(Code.DIAL, destination.address, destination.port)[_HEADER_SIZE:]
        try:
            await link.request(Code.DIAL, payload, on_success=opened)
        except DaemonError as exc:
            link.close()
            raise dial_error(exc) from exc
        except BaseException:
            # A dial goes on for up to half a minute after its client has left, unless the daemon is told.
            with contextlib.suppress(IPCClosedError):
                link.post(encode_frame(Code.CANCEL))
            link.close()
            raise
        assert stream is not None
        return stream

    async def listen(self, port: int) -> PilotListener:
        """Bind a port and accept streams on it: `await trio.serve_listeners(handler, [await node.listen(5000)])`.

        Raises:
          PortInUse: somebody has bound it, or it belongs to a service of the daemon (7, 444, 1001, 1002).
        """
        number = check_port(port)
        listener: PilotListener

        def accepted(push: Accepted) -> None:
            listener.on_accept(push)

        def lost(cause: Exception) -> None:
            listener.on_link_closed(cause)

        link = await self._links.open(on_accept=accepted, on_close=lost)
        listener = PilotListener(number, link, self.info)
        try:
            await link.request(Code.BIND, number.to_bytes(2, "big"))
        except DaemonError as exc:
            link.close()
            raise (PortInUse(number) if str(exc) == str(PortInUse(number)) else exc) from exc
        except BaseException:
            link.close()
            raise
        return listener

    async def disconnect(self, conn_id: int) -> None:
        """Close any connection of the daemon by its number, whoever owns it. An unknown number is not an error."""
        await self.command(Code.CLOSE, ConnId(conn_id).to_bytes(4, "big"))

    # Datagrams

    async def send_datagram(self, target: Target, data: bytes, port: int | None = None) -> bool:
        """Send a datagram: `send_datagram("agent-b:5000", b"hi")`. Return whether the daemon confirmed it.

        Confirmed means handed to the network, not delivered. False: the daemon is too old to say. An empty datagram is sent
        and never delivered: receiving daemons ignore it.

        Raises:
          DaemonError: it could not be sent; the text starts with `sendto: `.
          LocalProtocolError: `data` does not fit into a request.
        """
        if len(data) > SEND_DATA_MAX:
            raise LocalProtocolError(f"a datagram holds 65,535 bytes, not {len(data)}")
        destination = await self._locate(target, port)
        if self._confirms:
            payload = encode_target(Code.SEND_TO_CONFIRM, *destination, data)[_HEADER_SIZE:]
            try:
                await self._ordered(Code.SEND_TO_CONFIRM, payload)
            except DaemonError as exc:
                if not str(exc).startswith("unknown command: 0x39"):
                    raise
                self._confirms = False
            else:
                return True
        main = self._links.main
        while not main.has_room:
            await main.wait_changed()
        main.post(encode_target(Code.SEND_TO, *destination, data))
        await trio.lowlevel.checkpoint()
        return False

    def datagrams(self, port: int | None = None) -> DatagramChannel:
        """Receive the datagrams that arrive for a port from now on, or for every port.

            async with node.datagrams(5000) as datagrams:
                async for source, source_port, port, data in datagrams:
                    ...

        No port has to be bound for that. Raises `IPCClosedError` if the daemon is gone.
        """
        self._links.main.check()
        channel = DatagramChannel(None if port is None else check_port(port), self._channels.remove)
        self._channels.append(channel)
        return channel

    async def broadcast(self, network: int, port: int, data: bytes, token: str) -> None:
        """Send a datagram to every member of a network; `token` is the daemon's admin token."""
        frame = encode_broadcast(network, check_port(port), token.encode(), data)
        await self.command(Code.BROADCAST, frame[_HEADER_SIZE:])

    # The node

    async def info(self) -> Info:
        """Return what the daemon is and has; up to 200 ms old."""
        return Info.decode(await self.command(Code.INFO))

    async def health(self) -> Health:
        """Return a snapshot of the daemon, which waits for nothing to take it."""
        return Health.decode(await self._ordered(Code.HEALTH))

    async def resolve(self, hostname: str) -> Resolved:
        """Look a node up by name."""
        return Resolved.decode(await self.command(Code.RESOLVE_HOSTNAME, hostname.encode()))

    async def set_hostname(self, hostname: str) -> Json:
        """Give this node a name, or none (`""`)."""
        return await self._json(Code.SET_HOSTNAME, hostname.encode())

    async def set_public(self, public: bool) -> Json:
        """Let everybody see this node's endpoint, or only those that it trusts."""
        return await self._json(Code.SET_VISIBILITY, bytes([public]))

    async def set_tags(self, tags: Sequence[str]) -> Json:
        """Replace this node's tags, at most three."""
        return await self._json(Code.SET_TAGS, encode_tags(tags))

    async def set_webhook(self, url: str) -> Json:
        """Send events to a URL, or to none (`""`)."""
        return await self._json(Code.SET_WEBHOOK, url.encode())

    async def deregister(self) -> Json:
        """Take this node out of the registry; the daemon registers again when it finds out."""
        return await self._json(Code.DEREGISTER)

    async def rotate_key(self) -> Json:
        """Give this node a new key pair."""
        return await self._json(Code.ROTATE_KEY)

    async def prefer_direct(self, node: int) -> Json:
        """Forget how a node was reached and try again to reach it directly."""
        return await self._json(Code.PREFER_DIRECT, NodeId(node).to_bytes(4, "big"))

    async def command(self, command: Code, payload: bytes = b"") -> bytes:
        """Send any request that is answered, and return the payload of its answer: for what has no method here."""
        return await self._links.request(command, payload)

    def statistics(self) -> DriverStatistics:
        """Return what the driver holds and has seen."""
        return DriverStatistics(
            links=len(self._links),
            links_opened=self._links.opened,
            requests=self._links.requests,
            answers_owed=self._links.owed,
            streams=self._links.streams,
            unread=self._links.unread,
            datagrams=self._datagrams,
            datagrams_dropped=self._datagrams_dropped,
        )

    def close(self) -> None:
        """Close everything at once; leaving the `open_driver` block does it."""
        self._links.close()

    async def _ordered(self, command: Code, payload: bytes = b"") -> bytes:
        return await self._links.main.request(command, payload)

    async def _json(self, command: Code, payload: bytes = b"") -> Json:
        return decode_json(await self.command(command, payload))

    async def _locate(self, target: Target, port: int | None) -> SocketAddress:
        node, number = parse_target(target, port)
        if isinstance(node, str):
            return SocketAddress((await self.resolve(node)).address, number)
        await trio.lowlevel.checkpoint()
        return SocketAddress(node, number)

    def _on_datagram(self, datagram: ReceivedDatagram) -> None:
        self._datagrams += 1
        for channel in self._channels:
            self._datagrams_dropped += channel.offer(datagram)

    def _on_main_lost(self, cause: Exception) -> None:
        for channel in self._channels:
            channel.end(cause)
