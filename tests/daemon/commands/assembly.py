"""A node put together from its real parts, but with a scripted registry and an IPC socket in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import Config
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.commands import build_table
from pilot_trio.daemon.datagrams import Datagrams
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.daemon.key_rotation import KeyRotation
from pilot_trio.daemon.managed import ManagedNetworks
from pilot_trio.daemon.networks import Networks
from pilot_trio.daemon.overlay import OverlayStream, listen, open_stream
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import NoTunnel, StreamTable
from pilot_trio.daemon.trust import TrustService
from pilot_trio.daemon.tunnel import Tunnel
from pilot_trio.daemon.webhook import Webhook
from pilot_trio.errors import RegistryError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.ports import PortTable
from pilot_trio.services.handshake import serve_handshakes
from pilot_trio.testing import MemoryNetwork, MemoryTransportListener
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame
from pilot_trio.wire.handshake import HandshakeMessage
from pilot_trio.wire.registry import Message
from pilot_trio.wire.service_ports import HANDSHAKE_PORT

NOW = 1795459925.0  # Unix seconds; the time at which the recorded envelopes are fresh

Answer = Callable[[dict[str, Any]], Message]


class ScriptedRegistry:
    """Answers each type of request by a function; what has none is refused. Keeps every request."""

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.answers: dict[str, Answer] = answers or {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.held: set[str] = set()  # types that are never answered

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        self.requests.append((type_, fields))
        await trio.lowlevel.checkpoint()
        if type_ in self.held:
            await trio.sleep_forever()
        answer = self.answers.get(type_)
        if answer is None:
            raise RegistryError("request failed", type_)
        return {"type": f"{type_}_ok", **answer(fields)}

    def asked(self, type_: str) -> list[dict[str, Any]]:
        """Return the fields of every request of one type."""
        return [fields for name, fields in self.requests if name == type_]


@attrs.define(eq=False)
class AssembledNode:
    """What `NodeParts` asks for, and the test's handles."""

    config: Config
    state: NodeState
    registry: ScriptedRegistry
    resolver: Resolver
    rotation: KeyRotation
    networks: Networks
    ports: PortTable
    streams: StreamTable
    datagrams: Datagrams
    trust: TrustService
    managed: ManagedNetworks
    webhook: Webhook
    events: EventBus
    tunnel: Tunnel
    listener: MemoryTransportListener
    published: list[Event]
    server: IPCServer = attrs.field(init=False)

    async def connect(self) -> IPCPeer:
        """Open an IPC connection."""
        return await connect(self.listener)


async def connect(listener: MemoryTransportListener) -> IPCPeer:
    """Open an IPC connection."""
    return IPCPeer(await listener.open_stream())


class IPCPeer:
    """A client that speaks frames and nothing else."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, code: int, payload: bytes = b"") -> None:
        await self.stream.send_all(struct.pack("!IB", 1 + len(payload), code) + payload)

    async def receive(self) -> bytes | None:
        """Return the next frame, whole; None at the end of the stream."""
        while True:
            if len(self._buffer) >= 4:
                end = 4 + int.from_bytes(self._buffer[:4], "big")
                if len(self._buffer) >= end:
                    frame = bytes(self._buffer[:end])
                    del self._buffer[:end]
                    return frame
            try:
                chunk = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                return None
            if not chunk:
                return None
            self._buffer += chunk

    async def ask(self, code: int, payload: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return code and payload of the next frame."""
        await self.send(code, payload)
        frame = await self.receive()
        assert frame is not None, "the daemon closed the connection"
        return frame[4], frame[5:]

    async def error(self, code: int, payload: bytes = b"") -> str:
        """Send a request that is answered by an error; return its text."""
        answered, body = await self.ask(code, payload)
        assert answered == 0x0A, (answered, body)
        return body[2:].decode()


async def serve_registry(
    registry: ScriptedRegistry,
    listener: trio.abc.Listener[trio.abc.Stream],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a scripted registry to real registry clients."""

    async def serve(stream: trio.abc.Stream) -> None:
        decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        while chunk := await stream.receive_some(65_536):
            decoder.feed(chunk)
            while (body := decoder.next_frame()) is not None:
                fields = json.loads(body)
                try:
                    answer = await registry.call(fields.pop("type"), **fields)
                except RegistryError as exc:
                    answer = {"type": "error", "error": exc.text}
                await stream.send_all(encode_frame(json.dumps(answer).encode()))

    task_status.started()
    await trio.serve_listeners(serve, [listener])


@asynccontextmanager
async def assembled(
    *,
    node_id: int = 1,
    registry: ScriptedRegistry | None = None,
    home: Path | None = None,
    admin_token: str = "",
    auto_approve: bool = False,
    networks: tuple[int, ...] = (),
    wall_time: Callable[[], float] = lambda: NOW,
    trust_path: Path | None = None,
) -> AsyncIterator[AssembledNode]:
    """Run a node until the end of the block."""
    config = Config(
        home=home or Path("/nonexistent"), identity=home and home / "identity.json", admin_token=admin_token
    )
    state = NodeState(Identity.from_seed(bytes([node_id]) * 32), trio.current_time(), node_id=NodeId(node_id))
    state.networks = [NetworkId(network) for network in networks]
    state.beacon_addr = "127.0.0.1:9411"
    state.endpoint = "127.0.0.1:48202"
    state.email = "a@example.com"
    state.hostname = "a-host"
    state.persistent = home is not None
    registry = registry or ScriptedRegistry()
    events = EventBus()
    published: list[Event] = []
    events.subscribe(published.append)
    resolver = Resolver(registry, state)
    ports = PortTable(1)
    streams = StreamTable(state, ports, NoTunnel(resolver), events=events)
    managed = ManagedNetworks(state, registry, admin_token, wall_time)
    joined = Networks(
        registry=registry, state=state, resolver=resolver, events=events, admin_token=admin_token, path=None
    )
    offered: list[IPCServer] = []
    datagrams = Datagrams(
        state,
        ports,
        resolver,
        lambda frames: offered[0].broadcast_offer(frames),
        members=joined.members,
        admin_token=admin_token,
        events=events,
    )

    async def dial(node: NodeId, port: int) -> OverlayStream:
        return await open_stream(streams, Address(NetworkId(0), node), port, "trust")

    trust = TrustService(
        state=state,
        registry=registry,
        resolver=resolver,
        events=events,
        dial=dial,
        path=trust_path,
        auto_approve=auto_approve,
        wall_time=wall_time,
    )

    async def receive(message: HandshakeMessage, stream: OverlayStream) -> None:
        await trust.receive(message, stream.remote.address.node)

    webhook = Webhook(events, node_id=lambda: state.node_id)
    network = MemoryNetwork()
    sock = await network.open_udp(Endpoint("127.0.0.1", 0))
    tunnel = Tunnel(sock=sock, state=state, resolver=resolver, network=network, bus=events)
    node = AssembledNode(
        config,
        state,
        registry,
        resolver,
        KeyRotation(state, registry, config.identity),
        joined,
        ports,
        streams,
        datagrams,
        trust,
        managed,
        webhook,
        events,
        tunnel,
        MemoryTransportListener(),
        published,
    )
    node.server = IPCServer(build_table(node, wall_time=wall_time))
    offered.append(node.server)
    async with trio.open_nursery() as nursery:
        await nursery.start(tunnel.run)
        await nursery.start(trust.run)
        nursery.start_soon(managed.run)
        await nursery.start(serve_handshakes, listen(streams, HANDSHAKE_PORT, "trust"), receive)
        for builtin in (7, 1001, 1002):
            streams.bind(builtin, "builtin")
        await nursery.start(node.server.serve, node.listener)
        yield node
        nursery.cancel_scope.cancel()
