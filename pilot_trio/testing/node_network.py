"""Whole nodes on a bad network, each on a host of its own; they, and their rendezvous, can be killed and started again.

    async with open_node_network(3, seed=7, link=Link(loss=0.05), folder=tmp_path) as nodes:
        await nodes.kill(1)
        await nodes.start(1)
        stream = await nodes[0].driver.dial(nodes[1].address, 7)

A program that is killed says no goodbye: its connections break, and nothing leaves its host any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, overload

import trio

from pilot_trio.config import RegistryConfig, RendezvousConfig
from pilot_trio.net.background import open_background
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.serve import RendezvousHandle, serve_rendezvous
from pilot_trio.testing.links import Link
from pilot_trio.testing.nat import Nat, NatType
from pilot_trio.testing.nodes import RunningNode, open_node
from pilot_trio.testing.simulated_network import SimulatedHost, SimulatedNetwork

_ANY_PORT: Final = Endpoint("", 0)

_Running = TypeVar("_Running")


class _Program(Generic[_Running]):
    """What runs on a host, over all its lives."""

    def __init__(self, host: SimulatedHost, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._over: trio.Event | None = None

    async def start(self, opened: AbstractAsyncContextManager[_Running]) -> _Running:
        """Run it until it is stopped or killed."""
        if self._over is not None:
            raise RuntimeError(f"it runs already on {self._host.name}")
        running: _Running = await self._nursery.start(self._run, opened)
        return running

    async def _run(
        self, opened: AbstractAsyncContextManager[_Running], *, task_status: trio.TaskStatus[_Running]
    ) -> None:
        over = self._over = trio.Event()
        try:
            with trio.CancelScope() as self._scope:
                async with opened as running:
                    task_status.started(running)
                    await trio.sleep_forever()
        finally:
            self._over = None
            over.set()

    async def stop(self) -> None:
        """End it in good order, if it runs."""
        over = self._over
        self._scope.cancel()
        if over is not None:
            await over.wait()

    async def kill(self) -> None:
        """End it without a word to anybody."""
        self._host.network.take_down(self._host)
        with trio.CancelScope(shield=True):  # or the host would stay down; what it still wants to say fails at once
            await self.stop()
        self._host.network.bring_up(self._host)


class NodeNetwork(Sequence[RunningNode]):
    """Nodes on a `SimulatedNetwork`, in order. Made by `open_node_network`."""

    def __init__(
        self, network: SimulatedNetwork, rendezvous: SimulatedHost, folder: Path | None, nursery: trio.Nursery
    ) -> None:
        self.network: Final = network
        """Paths, partitions, statistics."""
        self.rendezvous: Final = rendezvous
        """The host of registry and beacon."""
        self.hosts: Final[list[SimulatedHost]] = []
        """The nodes' hosts, in the same order."""
        self.nodes: Final[list[RunningNode]] = []
        """The nodes; one that was killed stays here until it has been started again."""
        self._folder = folder
        self._nursery = nursery
        self._middle: _Program[RendezvousHandle] = _Program(rendezvous, nursery)
        self._endpoints = (_ANY_PORT, _ANY_PORT)  # of registry and beacon; they keep those of their first life
        self._programs: list[_Program[RunningNode]] = []
        self._settings: list[dict[str, Any]] = []

    @overload
    def __getitem__(self, index: int) -> RunningNode: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RunningNode]: ...
    def __getitem__(self, index: int | slice) -> RunningNode | Sequence[RunningNode]:
        return self.nodes[index]

    def __len__(self) -> int:
        return len(self.nodes)

    async def kill(self, index: int) -> None:
        """Kill a node without a goodbye: its drivers and connections break, its peers hear nothing any more."""
        await self._programs[index].kill()

    async def start(self, index: int, **changes: Any) -> RunningNode:
        """Start a node that was killed; return it, as `nodes[index]` does from now on.

        It is the node that it was, with its key, names and trust, only if the network has a `folder`.

        Args:
          index: which one.
          changes: any of `Config` that shall differ from now on, such as `listen`.
        """
        self._settings[index] |= changes
        host = self.hosts[index]
        self.nodes[index] = await self._programs[index].start(open_node(network=host, **self._settings[index]))
        return self.nodes[index]

    async def kill_rendezvous(self) -> None:
        """Kill registry and beacon without a goodbye."""
        await self._middle.kill()

    async def start_rendezvous(self) -> RendezvousHandle:
        """Start registry and beacon where they were; they remember the nodes only if the network has a `folder`."""
        store = None if self._folder is None else self._folder / "rendezvous.db"
        registry, beacon = self._endpoints
        config = RendezvousConfig(registry=registry, beacon=beacon, store=store)
        served = await self._middle.start(_open_rendezvous(config, self.rendezvous))
        if served.registry is not None and served.beacon is not None:
            self._endpoints = served.registry, served.beacon
        return served

    async def add(self, nat: NatType | Nat | None = None, **settings: Any) -> RunningNode:
        """Run one more node, on a new host."""
        name = f"node{len(self.nodes)}"
        host = self.network.host(name, nat=nat)
        registry, beacon = self._endpoints
        own: dict[str, Any] = {"public": True, "hostname": name, "listen": _ANY_PORT}
        if self._folder is not None:
            own |= {"home": self._folder / name, "identity": self._folder / name / "identity.json"}
        shared = {"registry": RegistryConfig(endpoint=registry), "rendezvous": None, "beacon": (beacon,)}
        own |= settings | shared
        program: _Program[RunningNode] = _Program(host, self._nursery)
        node = await program.start(open_node(network=host, **own))
        self.hosts.append(host)
        self.nodes.append(node)
        self._programs.append(program)
        self._settings.append(own)
        return node

    async def stop(self) -> None:
        """End all nodes, the youngest first."""
        for program in reversed(self._programs):
            await program.stop()


@contextlib.asynccontextmanager
async def open_node_network(
    count: int = 2,
    *,
    network: SimulatedNetwork | None = None,
    seed: int = 0,
    link: Link | None = None,
    nats: Sequence[NatType | Nat | None] = (),
    folder: Path | None = None,
    **settings: Any,
) -> AsyncGenerator[NodeNetwork]:
    """Run nodes `node0`, `node1`, ... on a bad network, each on a host of its own, all registered at one rendezvous.

    Args:
      count: how many.
      network: None: a new one with `seed` and `link`.
      seed: decides everything that is left to chance.
      link: what the paths between all hosts are like, the one of the rendezvous included.
      nats: what the first nodes are behind; the others have public addresses.
      folder: where nodes and rendezvous keep what they know, for those that are killed and started again; None: they
        keep nothing. Files are another thing than virtual time: use it with `run_simulation`.
      settings: any of `Config`; they apply to every node, which is `public` unless they say otherwise.
    """
    network = network or SimulatedNetwork(seed=seed, link=link)
    async with open_background() as nursery:
        nodes = NodeNetwork(network, network.host("rendezvous"), folder, nursery)
        await nodes.start_rendezvous()
        for number in range(count):
            await nodes.add(nats[number] if number < len(nats) else None, **settings)
        try:
            yield nodes
        finally:
            await nodes.stop()


@contextlib.asynccontextmanager
async def _open_rendezvous(config: RendezvousConfig, host: SimulatedHost) -> AsyncGenerator[RendezvousHandle]:
    async with open_background() as nursery:
        yield await nursery.start(partial(serve_rendezvous, config, network=host))
