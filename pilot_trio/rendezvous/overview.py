"""What a rendezvous shows of itself: one picture of directory and counters, taken at most so often.

A picture looks at every node. Its cost is kept below a twentieth of the time however often somebody asks, so that pages and
scrapers cannot slow the registry down.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs
import trio

from pilot_trio.proto.directory import Counts, NetworkView, NodeView
from pilot_trio.rendezvous.beacon_server import BeaconStatistics
from pilot_trio.rendezvous.registry_server import RegistryStatistics
from pilot_trio.rendezvous.store import StoreStatistics

ONLINE_WITHIN: Final = 180.0  # seconds since the last heartbeat of a node that counts as online; three are due in it
PICTURE_AGE: Final = 1.0  # seconds for which a picture is shown again; more where taking one costs more
PICTURE_COST_SHARE: Final = 20  # times as long as it took is a picture kept, at least; so pictures take 5 % of the time


@attrs.frozen
class RendezvousStatistics:
    """How a rendezvous is doing."""

    uptime: float  # seconds
    directory: Counts
    registry: RegistryStatistics
    beacon: BeaconStatistics | None
    store: StoreStatistics


@attrs.frozen
class Picture:
    """One moment."""

    now: float  # unix seconds
    statistics: RendezvousStatistics
    nodes: tuple[NodeView, ...]
    networks: tuple[NetworkView, ...]

    @property
    def online(self) -> int:
        """How many nodes have been heard of lately."""
        return sum(map(self.is_online, self.nodes))

    @property
    def versions(self) -> Mapping[str, int]:
        """How many nodes run which version, as they say."""
        return Counter(f"v{node.version}" for node in self.nodes if node.version)

    def is_online(self, node: NodeView) -> bool:
        """Say whether a node has been heard of lately."""
        return self.now - node.last_seen < ONLINE_WITHIN


class Shown(Protocol):
    """The part of a directory that pictures are taken of."""

    def nodes(self) -> list[NodeView]:
        """Return every live node."""
        ...

    def networks(self) -> list[NetworkView]:
        """Return every network but the backbone."""
        ...


@attrs.define(eq=False)
class Overview:
    """Takes pictures and keeps the last one."""

    directory: Shown
    statistics: Callable[[], RendezvousStatistics]
    clock: Callable[[], float]
    _picture: Picture | None = attrs.field(default=None, init=False)
    _valid_until: float = attrs.field(default=0.0, init=False)

    def picture(self) -> Picture:
        """Return a picture that is about a second old at most."""
        now = trio.current_time()
        if self._picture is None or now >= self._valid_until:
            started_at = time.perf_counter()
            nodes, networks = tuple(self.directory.nodes()), tuple(self.directory.networks())
            self._picture = Picture(self.clock(), self.statistics(), nodes, networks)
            cost = time.perf_counter() - started_at
            self._valid_until = now + max(PICTURE_AGE, PICTURE_COST_SHARE * cost)
        return self._picture
