"""Pytest fixtures for users of pytest-trio.

Name them as a plugin in the top `conftest.py` of your tests:

    pytest_plugins = ["pilot_trio.testing.fixtures"]

They are not registered as an installed plugin on purpose: that would load this package into every pytest run of the
environment, in other projects too.

All but `pilot_socket_node` work under `autojump_clock`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, cast

import pytest_trio  # type: ignore[import-untyped] # it ships no types

from pilot_trio.driver import Driver
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.testing.node_network import NodeNetwork, open_node_network
from pilot_trio.testing.nodes import (
    RunningNode,
    StreamPair,
    open_node,
    open_node_pair,
    open_stream_pair,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _trio_fixture(function: _Function) -> _Function:
    """Make a fixture that runs in Trio whether or not the suite is in `trio_mode`."""
    return cast("_Function", pytest_trio.trio_fixture(function))


@_trio_fixture
async def pilot_network() -> MemoryNetwork:
    """The network of the other fixtures of the same test: for faults and for parts of your own."""
    return MemoryNetwork()


@_trio_fixture
async def pilot_node(pilot_network: MemoryNetwork) -> AsyncGenerator[RunningNode]:
    """A registered node in memory, with a driver connected to it."""
    async with open_node(network=pilot_network) as node:
        yield node


@_trio_fixture
async def pilot_driver(pilot_node: RunningNode) -> Driver:
    """The driver of `pilot_node`."""
    return pilot_node.driver


@_trio_fixture
async def pilot_stream_pair(pilot_driver: Driver) -> StreamPair:
    """Both ends of a stream of `pilot_node` to itself."""
    return await open_stream_pair(pilot_driver)


@_trio_fixture
async def pilot_node_pair() -> AsyncGenerator[tuple[RunningNode, RunningNode]]:
    """Two nodes, `alpha` and `beta`, on one rendezvous and a perfect network."""
    async with open_node_pair() as pair:
        yield pair


@_trio_fixture
async def pilot_node_network() -> AsyncGenerator[NodeNetwork]:
    """Three nodes on a simulated network that is perfect until the test says otherwise (`.network.set_link`)."""
    async with open_node_network(3) as network:
        yield network


@_trio_fixture
async def pilot_socket_node() -> AsyncGenerator[RunningNode]:
    """A node that other programs reach too: `handle.socket` is a Unix socket in a temporary directory."""
    async with open_node(transport="socket") as node:
        yield node
