"""The registry as a machine: a request in, an answer out, and what changed (`spec/registry.md`).

The shell around it does three things after each `handle`: store `take_changes()`, then send the answer (in this order: an
acknowledged change must survive anything), and poke the nodes of `take_notifications()` through the beacon.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs

from pilot_trio.address import NodeId
from pilot_trio.proto.directory import (
    badges,
    keys,
    members,
    names,
    networks,
    policies,
    registration,
    routes,
    trust,
)
from pilot_trio.proto.directory.records import Badge
from pilot_trio.proto.directory.refusal import MASKED, Refused, error_message, mask
from pilot_trio.proto.directory.request import PeerInfo, Request
from pilot_trio.proto.directory.rows import Change, load, take_changes
from pilot_trio.proto.directory.tables import DirectorySettings, Tables
from pilot_trio.wire.registry import Message

NOTED_AT_ONCE: Final = 10_000  # rows per call of `note_last_seen`; they are rendered in one go, some 5 µs each

Handler = Callable[[Tables, Request], Message]

_HANDLERS: Final[dict[str, Handler]] = {
    **registration.HANDLERS,
    **names.HANDLERS,
    **routes.HANDLERS,
    **trust.HANDLERS,
    **networks.HANDLERS,
    **members.HANDLERS,
    **policies.HANDLERS,
    **keys.HANDLERS,
    **badges.HANDLERS,
}

READ_ONLY: Final = frozenset(
    {
        "heartbeat",
        "lookup",
        "resolve",
        "resolve_hostname",
        "check_trust",
        "punch",
        "list_networks",
        "list_nodes",
        "get_network_policy",
        "get_expr_policy",
        "get_member_role",
        "get_member_tags",
        "get_key_info",
        "beacon_list",
        "beacon_register",
    }
)
"""Requests whose answers promise nothing. The answer to any other must wait until all earlier changes are stored, even if
it changed nothing itself: a repeated request finds its work done by a first one that may not be on disk yet."""

TYPES: Final = frozenset(_HANDLERS)
"""Every request that has a meaning here."""


@attrs.frozen
class Counts:
    """Sizes, for metrics and the page for people."""

    nodes: int  # live
    node_ids: int  # ever given out
    public_nodes: int
    networks: int  # without the backbone
    trust_pairs: int
    waiting_requests: int  # handshake requests in mailboxes
    beacons: int


@attrs.frozen
class NodeView:
    """One live node, for the page for people. Shows private nodes' endpoints too: the page decides who sees it."""

    node_id: NodeId
    hostname: str
    public: bool
    endpoint: str
    version: str
    last_seen: float  # unix seconds
    relay_only: bool
    tags: tuple[str, ...]
    networks: tuple[int, ...]  # without the backbone
    badge: Badge | None


@attrs.frozen
class NetworkView:
    """One network other than the backbone."""

    network_id: int
    name: str
    join_rule: str
    enterprise: bool
    managed: bool
    members: int
    created_at: float  # unix seconds


class Directory:
    """What a registry knows. One task may use it at a time; nothing here waits or fails by surprise."""

    def __init__(self, settings: DirectorySettings | None = None, *, now: float) -> None:
        """Make an empty directory at `now` (unix seconds, as everywhere in it)."""
        self._tables = Tables(settings or DirectorySettings(), created_at=now)
        self._tables.changed("meta", "counters")

    @classmethod
    def restore(
        cls, rows: Iterable[tuple[str, str, Any]], settings: DirectorySettings | None = None, *, now: float
    ) -> Directory:
        """Rebuild a directory from every row that was ever changed and not deleted; raise `DecodeError`.

        No rows make an empty directory. All nodes count as heard of at `now`: nobody listened to them meanwhile.
        """
        directory = cls(settings, now=now)
        rows = list(rows)
        if rows:
            load(directory._tables, rows, now)
        return directory

    def handle(self, message: Message, peer: PeerInfo, now: float) -> Message:
        """Answer a request. Never raises: what cannot be done is an error message, masked as §2.2 demands."""
        try:
            return self.answer(message, peer, now)
        except Refused as exc:
            return error_message(mask(str(exc)) if exc.masked else str(exc))

    def answer(self, message: Message, peer: PeerInfo, now: float) -> Message:
        """Answer a request; raise `Refused` with the unmasked text, which binary clients get to see (§2.3)."""
        kind = message.get("type")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            if kind == "subscribe_replication":
                raise Refused("replication not configured", masked=False)
            raise Refused(MASKED)
        result = handler(self._tables, Request(message, peer, now))
        result["type"] = f"{kind}_ok"
        return result

    def disconnected(self, peer: PeerInfo) -> None:
        """Note that a connection is gone: handshakes that its last polls carried away wait again (§5.2, policy)."""
        trust.connection_closed(self._tables, peer.connection_id)

    def take_changes(self) -> list[Change]:
        """Return the rows to store since the last call: all of them in one transaction."""
        return take_changes(self._tables)

    def take_notifications(self) -> list[NodeId]:
        """Return the nodes for which something was put into a mailbox since the last call."""
        nodes = list(self._tables.notify)
        self._tables.notify.clear()
        return nodes

    def reap(self, now: float) -> list[NodeId]:
        """Remove nodes that fell silent and return their ids. To be called every few seconds.

        Time between two calls that are more than `registration.REAP_GAP_MAX` apart does not count against the nodes: then
        it was this machine that fell silent.
        """
        return registration.reap(self._tables, now)

    def note_last_seen(self) -> None:
        """Put the rows of nodes heard of since they were stored among the changes; for now and then, and for the end.

        At most `NOTED_AT_ONCE` of them, those whose stored row is the oldest first.
        """
        heard = [node for node in self._tables.nodes.values() if node.last_seen != node.stored_seen]
        if len(heard) > NOTED_AT_ONCE:
            heard = heapq.nsmallest(NOTED_AT_ONCE, heard, key=lambda node: node.stored_seen)
        for node in heard:
            self._tables.changed("nodes", node.node_id)

    def is_known(self, node_id: int) -> bool:
        """Say whether a node is registered and not reaped."""
        return node_id in self._tables.nodes

    def endpoint_of(self, node_id: int) -> str:
        """Return the endpoint, host:port, that a node has registered; "" for nodes that are not there."""
        node = self._tables.nodes.get(NodeId(node_id))
        return "" if node is None else node.endpoint

    def may_punch(self, requester: int, target: int) -> bool:
        """Say whether `requester` may learn where `target` is, by the rule of `resolve`, and neither hides its endpoint."""
        tables = self._tables
        one, other = tables.nodes.get(NodeId(requester)), tables.nodes.get(NodeId(target))
        if one is None or other is None or one.relay_only or other.relay_only:
            return False
        return other.public or tables.related(requester, target)

    def counts(self) -> Counts:
        """Return sizes. Looks at every node."""
        tables = self._tables
        return Counts(
            nodes=len(tables.nodes),
            node_ids=len(tables.bindings),
            public_nodes=sum(node.public for node in tables.nodes.values()),
            networks=len(tables.networks),
            trust_pairs=len(tables.trust),
            waiting_requests=sum(map(len, tables.requests.values())),
            beacons=len(tables.beacons),
        )

    def nodes(self) -> list[NodeView]:
        """Return every live node in the order of ids."""
        tables = self._tables
        return [
            NodeView(
                node_id=node.node_id,
                hostname=node.hostname,
                public=node.public,
                endpoint=node.endpoint,
                version=node.version,
                last_seen=node.last_seen,
                relay_only=node.relay_only,
                tags=tuple(node.tags),
                networks=tuple(tables.networks_of(node.node_id)[1:]),
                badge=node.badge,
            )
            for _, node in sorted(tables.nodes.items())
        ]

    def networks(self) -> list[NetworkView]:
        """Return every network but the backbone, in the order of ids."""
        tables = self._tables
        return [
            NetworkView(
                network_id=network.network_id,
                name=network.name,
                join_rule=network.join_rule,
                enterprise=network.enterprise,
                managed=network.rules is not None,
                members=len(tables.members[network.network_id]),
                created_at=network.created_at,
            )
            for _, network in sorted(tables.networks.items())
        ]
