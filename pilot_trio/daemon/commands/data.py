"""The data commands: ports, streams, datagrams (`spec/ipc.md` §5.1 to §5.3).

Each client that uses them has one `_Holder`, which owns its ports, connections and dials, and which lets go of all of
them when the client is gone. What arrives on a port or a connection is handed to the client in the turn of the loop in
which it arrives, by an `_Acceptor` per port and a `_Pusher` per connection; neither is a task. Both wait for room in the
client's queue before they take the next thing, so a client that does not read stops its senders and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from pilot_trio.daemon.connection import Connection
from pilot_trio.daemon.datagrams import Datagrams
from pilot_trio.daemon.dispatch import Answer, Client, CommandTable, Lane, Later, Promise, Route, RunRoute
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.streams import Attempt, StreamTable
from pilot_trio.errors import CommandError, DecodeError, DialCancelled, DialError, IPCClosedError
from pilot_trio.wire import ipc
from pilot_trio.wire.ipc import Code, Target

CLIENT_CONNECTIONS_MAX: Final = 4096  # live connections of one client, checked at Dial only; protocol, `spec/ipc.md` §8
RECV_HEADER: Final = 9  # bytes of a Recv frame before its data; protocol, `spec/ipc.md` §5.2
RECV_DATA_MAX: Final = (
    65_536 - RECV_HEADER
)  # bytes per Recv frame, which takes four calls; larger ones only delay those behind


_SEND_TO_PREFIX = "sendto: "  # by it clients tell a late answer of a confirmed send from others; `spec/ipc.md` §5.3
_BROADCAST_PREFIX = "broadcast: "

T = TypeVar("T")


class DataNode(Protocol):
    """The parts of a node that these commands use."""

    @property
    def streams(self) -> StreamTable:
        """The connection table."""
        ...

    @property
    def datagrams(self) -> Datagrams:
        """The datagrams."""
        ...


def routes(node: DataNode) -> CommandTable:
    """Return the rows of the command table for ports, streams and datagrams."""
    commands = _DataCommands(node.streams, node.datagrams)
    return {
        Code.BIND: Route(commands.bind),
        Code.UNBIND: Route(commands.unbind),
        Code.DIAL: Route(commands.dial),
        Code.SEND: Route(commands.send, Lane.FIFO, replies=False),
        Code.CLOSE: Route(commands.close),
        Code.CANCEL: Route(commands.cancel, Lane.FIFO, replies=False),
        Code.SEND_TO: RunRoute(commands.send_to, ipc.SEND_TO_HEAD),
        Code.SEND_TO_CONFIRM: Route(commands.send_to_confirm, Lane.FIFO, error_prefix=_SEND_TO_PREFIX),
        Code.BROADCAST: Route(commands.broadcast, error_prefix=_BROADCAST_PREFIX),
    }


class _Holder:
    """What one client holds. It is the owner, by identity, of the client's ports and connections."""

    def __init__(self, streams: StreamTable) -> None:
        self._streams = streams
        self.dials: set[Attempt | trio.CancelScope] = set()
        self.released = False

    def cancel_dials(self) -> None:
        for dial in list(self.dials):
            dial.cancel()

    def release(self) -> None:
        """Let go of everything, at once: ports are free, connections closed, dials aborted when this returns."""
        self.released = True
        self.cancel_dials()
        self._streams.close_owned(self)


class _DataCommands:
    def __init__(self, streams: StreamTable, datagrams: Datagrams) -> None:
        self._streams = streams
        self._datagrams = datagrams
        self._holders: dict[int, _Holder] = {}  # by client id; clients that never used a data command have none

    def _holder(self, client: Client) -> _Holder:
        """Return what the client holds; raise `IPCClosedError` if it is gone, so that nothing is given to the dead."""
        holder = self._holders.get(client.client_id)
        if holder is None:
            holder = self._holders[client.client_id] = _Holder(self._streams)
            client.on_release(partial(self._release, client.client_id))
        if holder.released:
            raise IPCClosedError("the client is gone")
        return holder

    def _release(self, client_id: int) -> None:
        holder = self._holders.pop(client_id)
        holder.release()

    # Ports

    def bind(self, client: Client, payload: bytes) -> bytes:
        listener = self._streams.bind(ipc.decode_bind(payload), self._holder(client))
        listener.attach(_Acceptor(client, listener))
        return ipc.encode_port(Code.BIND_OK, listener.port)

    def unbind(self, client: Client, payload: bytes) -> bytes:
        port = ipc.decode_unbind(payload)
        if not self._streams.unbind(port, self._holders.get(client.client_id)):
            raise CommandError("unbind: port is not owned by this client")
        return ipc.encode_port(Code.UNBIND_OK, port)

    # Streams

    def dial(self, client: Client, payload: bytes) -> Later | Promise | None:
        target = ipc.decode_dial(payload)
        holder = self._holder(client)
        if self._streams.live(holder) >= CLIENT_CONNECTIONS_MAX:
            raise DialError(f"dial: per-client connection quota ({CLIENT_CONNECTIONS_MAX}) reached")
        if self._streams.is_local(target.address):
            on_open = partial(_open, client)
            self._streams.dial_local(target.address, target.port, owner=holder, on_open=on_open)
            return None
        if self._streams.in_contact(target.address):
            return Promise(partial(self._begin_dial, client, holder, target))
        # From here on the dial is in flight: a Cancel in the same read as the Dial finds its scope.
        scope = trio.CancelScope()
        holder.dials.add(scope)
        return Later(partial(self._dial, client, holder, scope, target))

    def _begin_dial(self, client: Client, holder: _Holder, target: Target, answer: Answer) -> None:
        if holder.released:
            raise DialCancelled

        def done(outcome: Connection | DialError) -> None:
            holder.dials.discard(dial)
            if isinstance(outcome, DialError):
                answer(outcome)
            else:
                answer(ipc.encode_conn(Code.DIAL_OK, outcome.conn_id))
                outcome.attach(_Pusher(client, outcome))

        dial = self._streams.begin_dial(target.address, target.port, owner=holder, done=done)
        holder.dials.add(dial)

    async def _dial(self, client: Client, holder: _Holder, scope: trio.CancelScope, target: Target) -> None:
        connection = None
        try:
            with scope:
                connection = await self._streams.dial(target.address, target.port, owner=holder)
        finally:
            holder.dials.discard(scope)
        if connection is None:
            raise DialCancelled
        if scope.cancel_called or holder.released:
            connection.close()
            raise DialCancelled
        _open(client, connection)

    def send(self, client: Client, payload: bytes) -> Later | None:
        """Write to a stream. What does not fit is waited for in the reader: that is the sender's flow control."""
        conn_id, data = ipc.decode_conn(payload)
        connection = self._streams.get(conn_id)
        # Only the owner may write: nobody relies on the reference's lack of this check, and it lets any client
        # put words into another's mouth.
        if connection is None or connection.owner is not self._holders.get(client.client_id):
            return None
        try:
            taken = connection.write_nowait(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return None
        if taken == len(data):
            return None
        return Later(partial(_finish_send, connection, memoryview(data)[taken:]))

    def close(self, client: Client, payload: bytes) -> bytes:
        """Close any connection of the daemon: `pilotctl disconnect` closes those of other clients."""
        conn_id = ipc.decode_close(payload)
        connection = self._streams.get(conn_id)
        if connection is not None:
            connection.close()
        return ipc.encode_conn(Code.CLOSE_OK, conn_id)

    def cancel(self, client: Client, payload: bytes) -> None:
        holder = self._holders.get(client.client_id)
        if holder is not None:
            holder.cancel_dials()

    # Datagrams

    def send_to(self, client: Client, requests: Sequence[bytes]) -> Later | None:
        """Send datagrams; a client that floods a node waits for it in the reader, as one that writes to a stream does."""
        address, port, data = ipc.read_send_to(requests)
        if self._datagrams.send_or_drop(address, port, data):
            return Later(partial(self._datagrams.let_catch_up, address.node))
        return None

    def send_to_confirm(self, client: Client, payload: bytes) -> bytes | Later:
        target = _decode(ipc.decode_send_to, payload, _SEND_TO_PREFIX)
        if self._datagrams.send_nowait(target):
            return ipc.encode_frame(Code.SEND_TO_OK)
        return Later(partial(self._send_confirmed, target))

    async def _send_confirmed(self, target: Target) -> bytes:
        await self._datagrams.send(target)
        return ipc.encode_frame(Code.SEND_TO_OK)

    def broadcast(self, client: Client, payload: bytes) -> Later:
        request = _decode(ipc.decode_broadcast, payload, _BROADCAST_PREFIX)
        return Later(partial(self._broadcast, request))

    async def _broadcast(self, request: ipc.Broadcast) -> bytes:
        await self._datagrams.broadcast(request)
        return ipc.encode_frame(Code.BROADCAST_OK)


def _decode(decode: Callable[[bytes], T], payload: bytes, prefix: str) -> T:
    """Decode a request whose route puts `prefix` before every error; the decoder's text has it already."""
    try:
        return decode(payload)
    except DecodeError as exc:
        raise DecodeError(str(exc).removeprefix(prefix)) from exc


def _open(client: Client, connection: Connection) -> None:
    """Answer a dial; what has arrived on the connection follows."""
    client.post(ipc.encode_conn(Code.DIAL_OK, connection.conn_id))
    connection.attach(_Pusher(client, connection))


class _Acceptor:
    """Tells a binder of the connections on its port."""

    __slots__ = ("_client", "_listener", "_waiting")

    def __init__(self, client: Client, listener: PortListener) -> None:
        self._client = client
        self._listener = listener
        self._waiting = False  # for room

    def __call__(self) -> None:
        client, listener = self._client, self._listener
        while not self._waiting:
            if not client.room and not client.closed:
                self._waiting = True
                client.when_room(self._on_room)
                return
            try:
                connection = listener.accept_nowait()
            except (trio.WouldBlock, trio.ClosedResourceError):
                return
            remote, remote_port = connection.remote
            client.post(ipc.encode_accept(listener.port, connection.conn_id, remote, remote_port))
            connection.attach(_Pusher(client, connection))

    def _on_room(self) -> None:
        self._waiting = False
        self()


class _Pusher:
    """Pushes a connection's data to its owner, then its end: one `CLOSE_OK`, after a `BROKEN` if it was no proper one.

    The original's clients ignore pushes that they do not know, so that they are told no more than they ever were.
    """

    __slots__ = ("_client", "_connection", "_waiting")

    def __init__(self, client: Client, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        self._waiting = False  # for room

    def __call__(self) -> None:
        client, connection = self._client, self._connection
        while not self._waiting:
            room = client.room
            if not room:
                self._wait()
                return
            try:
                data = connection.receive_nowait(min(room - RECV_HEADER, RECV_DATA_MAX))
            except trio.WouldBlock:
                return
            except trio.ClosedResourceError:
                data = b""
            except trio.BrokenResourceError:
                client.post(ipc.encode_conn(Code.BROKEN, connection.conn_id))
                data = b""
            if not data:
                connection.detach()
                client.post(ipc.encode_conn(Code.CLOSE_OK, connection.conn_id))
                return
            client.post(ipc.encode_conn(Code.RECV, connection.conn_id, data))
            if not connection.has_input:
                return

    def _wait(self) -> None:
        if self._client.closed:
            # Nobody is left to read it; an open stream without a reader would stall its peer.
            self._connection.detach()
            self._connection.close()
        else:
            self._waiting = True
            self._client.when_room(self._on_room)

    def _on_room(self) -> None:
        self._waiting = False
        self()


async def _finish_send(connection: Connection, rest: memoryview) -> None:
    """Write the rest of a Send; whatever ends the stream ends this too, at once and without a word."""
    try:
        await connection.write_all(rest)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        return
