"""A whole node in one call: `trio.run(pilot_trio.serve)`.

The composition root: the only place that knows both the daemon and the rendezvous. By default a node brings its own
rendezvous, so that it runs with nothing else installed or configured; it ends after the node that uses it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from pilot_trio.address import Address, NodeId
from pilot_trio.config import Config, RendezvousConfig
from pilot_trio.daemon.node import Node, NodeStatistics, open_ipc_listener, serve_node
from pilot_trio.errors import PilotError, StartupError, StoreError
from pilot_trio.net import files
from pilot_trio.net.addresses import on_this_machine
from pilot_trio.net.network import Endpoint, Network, SystemNetwork
from pilot_trio.net.service_nursery import ServiceNursery, open_service_nursery
from pilot_trio.net.transport import TransportListener

if TYPE_CHECKING:
    from pilot_trio.rendezvous.serve import RendezvousHandle


@attrs.frozen(eq=False)
class NodeHandle:
    """A running node. What it tells is as of the moment that it is asked."""

    _node: Node = attrs.field(repr=False)
    config: Config = attrs.field(repr=False)
    """The settings in effect, with the endpoints of the embedded rendezvous filled in."""
    rendezvous: RendezvousHandle | None
    """The embedded rendezvous, None if the node uses another one."""

    @property
    def registered(self) -> bool:
        """Whether the registry has given this node an id."""
        return self._node.state.registered

    @property
    def node_id(self) -> NodeId:
        """The node's id, 0 until it is registered."""
        return self._node.state.node_id

    @property
    def address(self) -> Address:
        """The node's address, `0:0000.0000.0000` until it is registered."""
        return self._node.state.address

    @property
    def socket(self) -> Path:
        """Where IPC clients connect."""
        return self.config.socket

    @property
    def registry(self) -> Endpoint:
        """Where the node's registry listens."""
        return self._node.registry.endpoint

    @property
    def beacon(self) -> Endpoint | None:
        """The first of the node's beacons."""
        return self.config.beacon[0] if self.config.beacon else None

    async def wait_registered(self) -> Address:
        """Wait until the node is registered; return its address."""
        await self._node.enrolment.announced.wait()
        return self.address

    def statistics(self) -> NodeStatistics:
        """Return every part's counters."""
        return self._node.statistics()


async def serve(
    config: Config | None = None,
    *,
    network: Network | None = None,
    listener: TransportListener | None = None,
    task_status: trio.TaskStatus[NodeHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a node, and the rendezvous that it embeds, until cancelled. Cancelling ends it in well under two seconds.

    With `nursery.start` the `NodeHandle` comes back when IPC clients are served: as soon as the node is registered, or one
    second after the start, whichever is first. A registry that cannot be reached is no error; it is tried for ever
    (unless `RegistryConfig.fail_fast` is set).

    Args:
      config: settings; None: `Config()`, a node with an embedded rendezvous on loopback and state below `~/.pilot`.
      network: how to reach others; None: the operating system's sockets. `pilot_trio.testing` has one in memory.
      listener: where IPC clients arrive; None: a Unix socket at `config.socket`.
      task_status: gets the handle.

    Raises:
      StartupError: the node cannot start; the text says why and what to do.
      ConfigError: a setting turned out not to work.
    """
    config = config or Config()
    network = network or SystemNetwork()
    if listener is None:
        # Before anything else: a second node on the same socket must not get as far as another's files and ports.
        listener = await open_ipc_listener(config)
    with _unwrapped(), contextlib.closing(listener):
        async with open_service_nursery() as services:
            rendezvous = None
            if config.rendezvous is not None:
                rendezvous = await _start_rendezvous(services, config.rendezvous, network)
                config = _pointed_at(config, rendezvous)
            async with trio.open_nursery() as nursery:
                node = await nursery.start(_serve_node, config, network, listener)
                task_status.started(NodeHandle(node, config, rendezvous))


async def _serve_node(
    config: Config, network: Network, listener: TransportListener, *, task_status: trio.TaskStatus[Node]
) -> None:
    await serve_node(config, network=network, listener=listener, task_status=task_status)


async def _start_rendezvous(services: ServiceNursery, settings: RendezvousConfig, network: Network) -> RendezvousHandle:
    # Imported here: a node that uses somebody else's rendezvous does not pay for the database and the directory.
    from pilot_trio.rendezvous.serve import serve_rendezvous

    try:
        if settings.store is not None:
            await files.make_directory(settings.store.parent)
        handle: RendezvousHandle = await services.start(partial(serve_rendezvous, settings, network=network))
    except StoreError as exc:
        raise StartupError(f"embedded rendezvous: {exc}") from exc
    except OSError as exc:
        text = f"embedded rendezvous: {exc if exc.filename else exc.strerror or exc}"
        if exc.errno == errno.EADDRINUSE:
            text += (
                "; if one is running here already, join it by naming it as the registry, else choose other endpoints"
            )
        raise StartupError(text) from exc
    return handle


def _pointed_at(config: Config, rendezvous: RendezvousHandle) -> Config:
    """Return the settings with the embedded rendezvous filled in where no other registry or beacon is named."""
    registry, beacon = config.registry, config.beacon
    if registry.endpoint is None and rendezvous.registry is not None:
        registry = attrs.evolve(registry, endpoint=on_this_machine(rendezvous.registry))
    if not beacon and rendezvous.beacon is not None:
        beacon = (on_this_machine(rendezvous.beacon),)
    return attrs.evolve(config, registry=registry, beacon=beacon)


@contextlib.contextmanager
def _unwrapped() -> Generator[None]:
    """Raise the one error of ours that ended the nurseries as itself: that there are nurseries is not the caller's affair."""
    try:
        yield
    except BaseExceptionGroup as group:
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        if isinstance(cause, PilotError):
            raise cause from cause.__cause__
        raise
