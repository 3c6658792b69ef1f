"""Whole nodes for tests: a daemon with its own rendezvous and a connected driver, in memory, in one line.

    async def test_my_service(autojump_clock):
        async with open_node() as node:
            listener = await node.driver.listen(5000)
            ...

Nothing touches the network; with `transport="memory"`, the default, no bytes pass through the operating system at all. A
node keeps nothing after its end: key, names and trust live in memory, files that its services receive in a temporary
directory.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import attrs

from pilot_trio.address import Address, NodeId
from pilot_trio.config import Config, RegistryConfig, RendezvousConfig
from pilot_trio.driver import Driver, PilotStream, open_driver
from pilot_trio.driver.socket_path import connect
from pilot_trio.net.background import open_background
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import Network
from pilot_trio.net.transport import Transport
from pilot_trio.serving import NodeHandle, serve
from pilot_trio.testing.memory_network import LOOPBACK, MemoryNetwork
from pilot_trio.testing.memory_transport import MemoryTransportListener

STREAM_PAIR_PORT: Final = 4000  # port; borrowed by `open_stream_pair` for a moment
_ANY_PORT: Final = Endpoint(LOOPBACK, 0)


@attrs.frozen(eq=False)
class RunningNode:
    """A node under test. Made by `open_node`."""

    handle: NodeHandle
    """What `serve` reported: address, socket, registry, statistics."""
    driver: Driver
    """A driver connected to it."""
    network: Network
    """The network it runs on; give it to another node to have two on one."""
    connect: Callable[[], Awaitable[Transport]] = attrs.field(repr=False)
    """Opens IPC connections, for more drivers: `open_driver(connect_with=node.connect)`."""

    @property
    def node_id(self) -> NodeId:
        """The node's id."""
        return self.handle.node_id

    @property
    def address(self) -> Address:
        """The node's address."""
        return self.handle.address


class StreamPair(NamedTuple):
    """The two ends of a stream."""

    dialled: PilotStream
    accepted: PilotStream


@contextlib.asynccontextmanager
async def open_node(
    *, network: Network | None = None, transport: Literal["memory", "socket"] = "memory", **settings: Any
) -> AsyncGenerator[RunningNode]:
    """Run a registered node with a driver connected to it; leaving the block stops it.

    Args:
      network: None: a new `MemoryNetwork`. Nodes on one network do not find each other by that alone; name the registry of
        the first to the second (`open_node_pair` does).
      transport: how IPC clients reach the daemon: in memory, or over a Unix socket in a temporary directory, so that other
        programs can (`handle.socket` says where). With a socket, bytes leave the process for a moment and virtual time
        must not run ahead of them: use `MockClock(autojump_threshold=0.01)`.
      settings: any of `Config`, such as `hostname="alpha"` or `public=True`.
    """
    network = MemoryNetwork() if network is None else network
    # Short, because the path of a Unix socket has to be.
    with tempfile.TemporaryDirectory(prefix="pilot-") as folder:
        config = _config(Path(folder), settings)
        listener = MemoryTransportListener() if transport == "memory" else None
        async with open_background() as nursery:
            handle: NodeHandle = await nursery.start(partial(serve, config, network=network, listener=listener))
            await handle.wait_registered()
            if listener is None:
                async with open_driver(handle.socket) as driver:
                    yield RunningNode(handle, driver, network, partial(connect, handle.socket))
            else:
                async with open_driver(connect_with=listener.open_transport) as driver:
                    yield RunningNode(handle, driver, network, listener.open_transport)


@contextlib.asynccontextmanager
async def open_node_pair(
    *, transport: Literal["memory", "socket"] = "memory", **settings: Any
) -> AsyncGenerator[tuple[RunningNode, RunningNode]]:
    """Run two nodes, `alpha` and `beta`, on one perfect network and one rendezvous, which is part of the first.

    They find each other by name, dial each other, ask each other for trust, join the same networks. For a bad network
    between them there is `open_node_network`.

    Args:
      transport: as for `open_node`.
      settings: any of `Config`; they apply to both.
    """
    first: dict[str, Any] = {"hostname": "alpha", "public": True, **settings}
    async with open_node(transport=transport, **first) as alpha:
        beacon = alpha.handle.beacon
        shared = {
            "registry": RegistryConfig(endpoint=alpha.handle.registry),
            "rendezvous": None,
            "beacon": () if beacon is None else (beacon,),
        }
        second: dict[str, Any] = {"hostname": "beta", "public": True, **settings, **shared}
        async with open_node(network=alpha.network, transport=transport, **second) as beta:
            yield alpha, beta


async def open_stream_pair(node: Driver, port: int = STREAM_PAIR_PORT) -> StreamPair:
    """Return both ends of a stream of a node to itself, through its daemon and all its flow control."""
    listener = await node.listen(port)
    try:
        dialled = await node.dial((await node.info()).address, port)
        return StreamPair(dialled, await listener.accept())
    finally:
        await listener.aclose()


def _config(folder: Path, settings: dict[str, Any]) -> Config:
    defaults: dict[str, Any] = {"home": folder, "socket": folder / "pilot.sock", "identity": None, "listen": _ANY_PORT}
    if "registry" not in settings:
        defaults["rendezvous"] = RendezvousConfig(registry=_ANY_PORT, beacon=_ANY_PORT)
    return Config(**(defaults | settings))
