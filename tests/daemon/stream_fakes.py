"""A client and a command loop for tests of the data commands: the contract of `dispatch`, without sockets."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import trio
import trio.testing

from pilot_trio.address import Address, NetworkId, NodeId, Port
from pilot_trio.config import StreamLimits
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.commands.data import routes
from pilot_trio.daemon.datagrams import Datagrams
from pilot_trio.daemon.dispatch import Client, CommandTable, Lane, Later, Promise, Route, RunRoute
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import Carrier, Connection, NoTunnel, StreamTable
from pilot_trio.errors import (
    CommandError,
    DecodeError,
    DialError,
    IPCClosedError,
    NoRoute,
    PortInUse,
    RegistryError,
)
from pilot_trio.proto.ports import PortTable
from pilot_trio.wire import ipc
from pilot_trio.wire.ipc import Code

OWN = NodeId(1)
OTHER = NodeId(3)  # known to the fake resolver
UNKNOWN = NodeId(7777)
SELF = Address(NetworkId(0), OWN)


class FakeResolver:
    """Knows one other node. `hold` makes lookups wait for ever."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.hold = False

    async def resolve(self, node: NodeId, /) -> object:
        self.asked.append(node)
        if self.hold:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if node != OTHER:
            raise NoRoute(f"resolve node {node}: registry: request failed")
        return "127.0.0.1:4000"


def make_state(node_id: int = OWN) -> NodeState:
    return NodeState(Identity.from_seed(bytes(32)), 0.0, node_id=NodeId(node_id))


class SlowCarrier(Carrier):
    """Reaches every node, once `arrived` is set: what answers is our own port."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.table: StreamTable | None = None

    async def open(self, address: Address, port: Port, owner: Hashable) -> Connection:
        assert self.table is not None
        await self.arrived.wait()
        return self.table.dial_local(SELF, port, owner=owner)


class FakeNode:
    """The parts of a node behind the data commands."""

    def __init__(
        self,
        *,
        limits: StreamLimits | None = None,
        admin_token: str = "",
        random_start: int = 1,
        carrier: SlowCarrier | None = None,
    ) -> None:
        self.state = make_state()
        self.ports = PortTable(random_start)
        self.resolver = FakeResolver()
        self.events = EventBus()
        self.published: list[Event] = []
        self.events.subscribe(self.published.append)
        self.streams = StreamTable(
            self.state, self.ports, carrier or NoTunnel(self.resolver), limits=limits, events=self.events
        )
        if carrier is not None:
            carrier.table = self.streams
        self.clients: list[FakeClient] = []
        self.members: dict[int, list[int] | RegistryError] = {}
        self.datagrams = Datagrams(
            self.state,
            self.ports,
            self.resolver,
            self._deliver,
            members=self._members,
            admin_token=admin_token,
            events=self.events,
        )
        self.commands: CommandTable = routes(self)

    def _deliver(self, frames: Sequence[bytes]) -> None:
        for client in self.clients:
            for frame in frames:
                if client.room:
                    client.post(frame)

    async def _members(self, network: NetworkId) -> Iterable[NodeId]:
        await trio.lowlevel.checkpoint()
        found = self.members.get(network, RegistryError("network not found"))
        if isinstance(found, RegistryError):
            raise found
        return [NodeId(node) for node in found]

    def topics(self) -> list[str]:
        return [event.topic for event in self.published]


class FakeClient(Client):
    """Runs requests as the IPC server does; frames towards the client pile up until `take` or `receive`.

    `slots` is the number of frames that fit; producers of more wait, as behind a client that does not read.
    """

    def __init__(self, node: FakeNode, nursery: trio.Nursery, *, slots: int = 1 << 30) -> None:
        self._node = node
        self._nursery = nursery
        self._id = len(node.clients) + 1
        self._frames: deque[bytes] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._releases: list[Callable[[], None]] = []
        self._closed = False
        self._scope: trio.CancelScope | None = None
        self.slots = slots
        self.waiting = 0  # requests that came in a run and wait in the reader
        self._line: deque[Callable[[], None]] = deque()
        self.tasks = 0
        node.clients.append(self)

    # dispatch.Client

    @property
    def client_id(self) -> int:
        return self._id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def room(self) -> int:
        return 1 << 18 if not self._closed and len(self._frames) < self.slots else 0

    def when_room(self, wake: Callable[[], None]) -> None:
        assert not self.room
        self._line.append(wake)

    def post(self, frame: bytes) -> None:
        if not self._closed:
            self._put(frame)

    def _wake(self) -> None:
        while self._line and (self.room or self._closed):
            self._line.popleft()()
        self._changed.unpark_all()

    def _start_soon(self, task: Callable[..., Awaitable[Any]], *args: object) -> None:
        async def run() -> None:
            self.tasks += 1
            try:
                with trio.CancelScope() as scope:
                    self._scopes.add(scope)
                    try:
                        await task(*args)
                    except IPCClosedError:
                        return
                    finally:
                        self._scopes.discard(scope)
            finally:
                self.tasks -= 1

        self._nursery.start_soon(run)

    def on_release(self, release: Callable[[], None]) -> None:
        if self._closed:
            release()
        else:
            self._releases.append(release)

    @property
    def _scopes(self) -> set[trio.CancelScope]:
        return self.__dict__.setdefault("scopes", set())  # type: ignore[no-any-return]

    # The command loop

    async def request(self, code: int, payload: bytes = b"") -> None:
        """Handle one request as the reader would: return once the next one may be looked at."""
        route = self._node.commands[code]
        try:
            if isinstance(route, RunRoute):
                later = route.handler(self, (bytes([code]) + payload,))
                if later is not None:
                    self.waiting += 1
                    await later.run()
                    self.waiting -= 1
                return
            answer = route.handler(self, payload)
        except (DecodeError, CommandError, DialError, RegistryError, PortInUse) as exc:
            self._fail(route, exc)
            return
        if isinstance(answer, Promise):
            answer.start(partial(self._answer, route))
        elif isinstance(answer, Later):
            if route.lane is Lane.FIFO:
                await self._later(route, answer)
            else:
                self._start_soon(self._later, route, answer)
        elif answer is not None:
            assert isinstance(answer, bytes)
            self._put(answer)

    def _answer(self, route: Route, answer: bytes | Exception) -> None:
        if isinstance(answer, Exception):
            self._fail(route, answer)
        else:
            self.post(answer)

    async def _later(self, route: Route, later: Later) -> None:
        try:
            frame = await later.run()
        except (DecodeError, CommandError, DialError, RegistryError) as exc:
            self._fail(route, exc)
            return
        if frame is not None:
            self.post(frame)

    def _fail(self, route: Route | RunRoute, exc: Exception) -> None:
        if isinstance(route, Route) and route.replies and not self._closed:
            self._put(ipc.encode_error(route.error_prefix + str(exc)))

    # The client's side

    def _put(self, frame: bytes) -> None:
        (length,) = struct.unpack_from("!I", frame)
        assert length == len(frame) - 4 <= 1 << 20
        self._frames.append(frame)
        self._changed.unpark_all()

    def take(self) -> list[tuple[int, bytes]]:
        """Take every frame that is there, as (code, payload)."""
        frames = [(frame[4], frame[5:]) for frame in self._frames]
        self._frames.clear()
        self._wake()
        return frames

    async def receive(self) -> tuple[int, bytes]:
        """Take one frame, waiting for it."""
        while not self._frames:
            await self._changed.park()
        frame = self._frames.popleft()
        self._wake()
        return frame[4], frame[5:]

    async def answer(self, code: int, payload: bytes = b"") -> tuple[int, bytes]:
        """Make one request, settle, return the one frame that came; what had come before it is lost."""
        await trio.testing.wait_all_tasks_blocked()
        self.take()
        await self.request(code, payload)
        await trio.testing.wait_all_tasks_blocked()
        (frame,) = self.take()
        return frame

    async def error(self, code: int, payload: bytes = b"") -> str:
        """Make one request; return the text of its error."""
        got, body = await self.answer(code, payload)
        assert got == Code.ERROR, (got, body)
        assert body[:2] == b"\x00\x01"
        return ipc.decode_error(body)

    def break_off(self) -> None:
        """Nothing can be sent any more, and nobody has noticed yet."""
        self._closed = True
        self._wake()

    def leave(self) -> None:
        """Go away: tasks cancelled, releases called, as the server does it."""
        self._closed = True
        self._node.clients.remove(self)
        for scope in list(self._scopes):
            scope.cancel()
        self.release()
        self._wake()

    def release(self) -> None:
        """Call what was registered with `on_release`."""
        for release in self._releases:
            release()

    # Shorthands

    async def bind(self, port: int) -> None:
        assert await self.answer(Code.BIND, struct.pack("!H", port)) == (Code.BIND_OK, struct.pack("!H", port))

    async def dial(self, port: int, address: Address = SELF) -> int:
        code, body = await self.answer(Code.DIAL, dial_payload(port, address))
        assert code == Code.DIAL_OK, (code, body)
        return int.from_bytes(body, "big")

    async def send_data(self, conn_id: int, data: bytes) -> None:
        await self.request(Code.SEND, conn(conn_id) + data)


def dial_payload(port: int, address: Address = SELF) -> bytes:
    return address.pack() + struct.pack("!H", port)


def conn(conn_id: int) -> bytes:
    return struct.pack("!I", conn_id)


def make_table(node_id: int = OWN, limits: StreamLimits | None = None, random_start: int = 0) -> StreamTable:
    return StreamTable(make_state(node_id), PortTable(random_start), NoTunnel(FakeResolver()), limits=limits)
