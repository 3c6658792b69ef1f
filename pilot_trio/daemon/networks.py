"""The networks that this node is in, and their port policies (`spec/registry.md` §6.2, §7).

The registry decides; this is what the node knows of it. A policy that cannot be fetched leaves the previous one in force.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import trio

from pilot_trio.address import BACKBONE, PORT_MAX, NetworkId, NodeId
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import RegistryError, RegistryUnavailable
from pilot_trio.net import files
from pilot_trio.wire.registry import Message, pair_text

SYNC_INTERVAL: Final = 300.0  # seconds between looks at the own memberships; protocol, `spec/registry.md` §6.2
SYNC_JITTER: Final = 30.0  # seconds; random part of the first wait, so that nodes do not ask in step; protocol, §6.2
POLICY_ATTEMPTS: Final = 3  # tries to fetch a policy; protocol, `spec/registry.md` §6.1
POLICY_PAUSE: Final = 0.2  # seconds between them; protocol, `spec/registry.md` §6.1
ALLOWED_PORTS_MAX: Final = 1000  # ports of a policy; ten times what the registry takes, `spec/registry.md` §2.6
MEMBERSHIPS_MAX: Final = 1024  # networks per node that we follow; each costs a request per sync

_log = logging.getLogger("pilot_trio.daemon")

Directory = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Told the registry's list of networks after each sync."""


class Networks:
    """Memberships and policies of one node.

    Args:
      state: where they are kept.
      registry, resolver: whom to ask.
      events: where changes are published.
      admin_token: shown where the registry demands one; needed to join at the start.
      path: `networks.json`; None keeps nothing.
      on_directory: what else wants to see the list of networks.
      rng: source of jitter.
    """

    def __init__(
        self,
        *,
        state: NodeState,
        registry: Registry,
        resolver: Resolver,
        events: EventBus,
        admin_token: str = "",
        path: Path | None = None,
        on_directory: Directory | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._state = state
        self._registry = registry
        self._resolver = resolver
        self._events = events
        self._admin_token = admin_token
        self._path = path
        self._on_directory = on_directory
        self._rng = rng or random.Random()
        self._knows_visibility = False
        self._changes = 0  # memberships begun or ended by ourselves

    async def run(self) -> None:
        """Synchronise now and every 300 seconds, for ever. Failures are logged; nothing waits for this."""
        await self.sync()
        await trio.sleep(SYNC_INTERVAL + self._rng.uniform(0, SYNC_JITTER))
        while True:
            await self.sync()
            await trio.sleep(SYNC_INTERVAL)

    async def sync(self) -> None:
        """Fetch memberships, policies and the list of networks; keep what cannot be fetched."""
        try:
            await self._sync_memberships()
            for network in (BACKBONE, *self._state.networks):
                await self.refresh(network)
            await self._sync_directory()
        except RegistryError as exc:
            _log.warning("network sync failed", extra={"kv": {"error": str(exc)}})

    async def refresh(self, network: NetworkId) -> None:
        """Fetch one network's port policy, with a few tries; on failure the previous policy stays in force.

        Raises:
          RegistryUnavailable: the registry gave no answer, so asking for more would be in vain.
        """
        for remaining in reversed(range(POLICY_ATTEMPTS)):
            try:
                answer = await self._registry.call("get_network_policy", network_id=network)
            except RegistryUnavailable:
                raise
            except RegistryError as exc:
                if not remaining:
                    self._policy_failed(network, exc)
                    return
                await trio.sleep(POLICY_PAUSE)
            else:
                self._adopt_policy(network, answer)
                return

    async def join_configured(self, networks: Iterable[int]) -> None:
        """Join networks at the start; those that refuse are logged and skipped.

        Raises:
          RegistryError: the registry gave no answer, or does not know this node.
        """
        state = self._state
        wanted = list(networks)
        if wanted:
            await self._sync_memberships()
        for network in wanted:
            if network in state.networks:
                continue
            try:
                await self._registry.call(
                    "join_network",
                    node_id=state.node_id,
                    network_id=network,
                    token="",
                    inviter_id=0,
                    admin_token=self._admin_token,
                    signature=state.identity.sign_text(pair_text("join_network", state.node_id, network)),
                )
            except RegistryUnavailable:
                raise
            except RegistryError as exc:
                _log.warning("failed to join network", extra={"kv": {"network_id": network, "error": str(exc)}})
            else:
                self._add(NetworkId(network))
                self._events.publish("network.auto_joined", {"network_id": network})

    async def joined(self, network: NetworkId, reply: Message) -> None:
        """Take up a network that a client just joined: its policy counts from now on. Publishes `network.joined`."""
        self._add(network)
        self._resolver.forget(self._state.node_id)
        details: dict[str, Any] = {key: reply[key] for key in ("rules", "expr_policy") if key in reply}
        self._events.publish("network.joined", {"network_id": network, **details})
        try:
            await self.refresh(network)
            await self._sync_directory()
        except RegistryError as exc:
            _log.warning("network sync failed", extra={"kv": {"error": str(exc)}})

    async def left(self, network: NetworkId) -> None:
        """Forget a network that a client just left. Publishes `network.left`."""
        self._changes += 1
        if network in self._state.networks:
            self._state.networks.remove(network)
        self._state.allowed_ports.pop(network, None)
        self._resolver.forget(self._state.node_id)
        self._events.publish("network.left", {"network_id": network})

    async def members(self, network: NetworkId) -> list[NodeId]:
        """Return a network's members, this node included; raise `RegistryError`."""
        fields: dict[str, Any] = {"admin_token": self._admin_token} if self._admin_token else {}
        answer = await self._registry.call("list_nodes", network_id=network, **fields)
        rows = answer.get("nodes")
        ids = [row.get("node_id") for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]
        return [NodeId(node) for node in ids if type(node) is int and 0 < node <= 0xFFFFFFFF]

    async def _sync_memberships(self) -> None:
        changes = self._changes
        record = await self._resolver.lookup(self._state.node_id)
        networks = record.get("networks")
        # What a client joined or left meanwhile may be missing from this answer; the next one will have it.
        if isinstance(networks, list) and changes == self._changes:
            ids = sorted({item for item in networks if type(item) is int and 0 < item <= 0xFFFF})
            if len(ids) > MEMBERSHIPS_MAX:
                kv = {"memberships": len(ids), "limit": MEMBERSHIPS_MAX}
                _log.warning("too many memberships, following the first ones", extra={"kv": kv})
            self._state.networks[:] = [NetworkId(item) for item in ids[:MEMBERSHIPS_MAX]]
            for gone in set(self._state.allowed_ports) - {BACKBONE, *self._state.networks}:
                del self._state.allowed_ports[gone]
            await self._store()
        if not self._knows_visibility:
            # A node made public in an earlier life still is. Later on we know better than a registry that may have lost it.
            self._knows_visibility = True
            self._state.public |= record.get("public") is True

    async def _sync_directory(self) -> None:
        answer = await self._registry.call("list_networks")
        rows = answer.get("networks")
        if self._on_directory is not None and isinstance(rows, list):
            await self._on_directory([row for row in rows if isinstance(row, dict)])

    async def _store(self) -> None:
        if self._path is None:
            return
        record = {"networks": [BACKBONE, *self._state.networks], "synced_at": datetime.now(UTC).isoformat()}
        try:
            await files.save(self._path, json.dumps(record, indent=2).encode())
        except OSError as exc:
            _log.warning("cannot save networks", extra={"kv": {"path": str(self._path), "error": str(exc)}})

    def _add(self, network: NetworkId) -> None:
        self._changes += 1
        if network != BACKBONE and network not in self._state.networks:
            self._state.networks.append(network)

    def _adopt_policy(self, network: NetworkId, answer: Message) -> None:
        ports = answer.get("allowed_ports")
        allowed = frozenset(
            port
            for port in (ports[:ALLOWED_PORTS_MAX] if isinstance(ports, list) else [])
            if type(port) is int and 0 < port <= PORT_MAX
        )
        if allowed:
            self._state.allowed_ports[network] = allowed
        else:
            self._state.allowed_ports.pop(network, None)

    def _policy_failed(self, network: NetworkId, exc: RegistryError) -> None:
        had_prior = network in self._state.allowed_ports
        kv = {"net_id": network, "had_prior": had_prior, "error": str(exc)}
        _log.warning("network policy load failed", extra={"kv": kv})
        self._events.publish("network.policy_load_failed", {"net_id": network, "had_prior": had_prior})
