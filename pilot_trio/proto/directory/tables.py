"""Everything a directory knows, its indexes, and the journal of what changed.

Handlers read and write these tables and call `changed` for each row they touched. The journal holds keys only; rows are
rendered when it is taken, so a row changed twice is written once, and always as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import attrs

from pilot_trio.address import BACKBONE, NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.proto.directory.records import (
    Binding,
    Invite,
    Mail,
    Membership,
    NetworkRecord,
    Node,
    Row,
    from_row,
    to_row,
)

V = TypeVar("V")

STALE_AFTER: Final = 1800.0  # seconds without a sign of life until a node is reaped; spec registry §9.1
MAX_NODES: Final = 1_000_000  # node ids ever given out; ids are kept for ever, so this bounds memory and disk
MAX_NETWORKS: Final = 65_535  # network ids ever given out; spec registry §7

# The reference's issuers: who signs badges and enrolments, and who signs recoveries.
BADGE_KEYS: Final[Mapping[str, str]] = {"bdg-v1": "Y2jjSAS+J6LVXAguY4P51vMGhHl7qgy5qBJZGS0Cmms="}
RECOVERY_KEYS: Final[Mapping[str, str]] = {"rec-v1": "EGQ7F/NGzCIPekBo1jx+eUQUfOBFQU/hyhiZd3xumTY="}


class Change(NamedTuple):
    """One row to store: the whole row, or None to delete it."""

    table: str
    key: str
    row: Row | None


@attrs.frozen
class DirectorySettings:
    """What an operator chooses."""

    admin_token: str = attrs.field(default="", repr=False)  # "": nobody is administrator
    beacon_address: str = ""  # host:port named in place of a relay-only node's endpoint
    require_signature: bool = True  # refuse unsigned registrations; every current daemon signs
    stale_after: float = STALE_AFTER
    max_nodes: int = MAX_NODES
    badge_keys: Mapping[str, str] = BADGE_KEYS
    recovery_keys: Mapping[str, str] = RECOVERY_KEYS


@attrs.define
class Beacon:
    """A relay that announced itself; forgotten unless it does so again."""

    address: str
    announced_at: float


@attrs.define(eq=False)
class Tables:
    """The state. Change rows through here or call `changed`; an index never disagrees with its table."""

    settings: DirectorySettings
    created_at: float
    next_node: int = 1
    next_network: int = 1
    bindings: dict[int, Binding] = attrs.field(factory=dict)
    by_key: dict[str, NodeId] = attrs.field(factory=dict)  # index: current public key -> id
    nodes: dict[int, Node] = attrs.field(factory=dict)
    by_hostname: dict[str, NodeId] = attrs.field(factory=dict)  # index
    networks: dict[int, NetworkRecord] = attrs.field(factory=dict)
    by_network_name: dict[str, int] = attrs.field(factory=dict)  # index
    members: dict[int, dict[NodeId, Membership]] = attrs.field(factory=dict)  # network -> node -> membership
    joined: dict[int, set[int]] = attrs.field(factory=dict)  # index: node -> networks
    trust: set[tuple[int, int]] = attrs.field(factory=set)  # (smaller id, larger id)
    requests: dict[int, dict[int, Mail]] = attrs.field(factory=dict)  # receiver -> sender -> mail
    responses: dict[int, dict[int, Mail]] = attrs.field(factory=dict)  # receiver -> sender -> mail
    pending: dict[int, dict[int, float]] = attrs.field(factory=dict)  # asked -> asking -> unix seconds
    invites: dict[int, dict[int, Invite]] = attrs.field(factory=dict)  # invited -> network -> invite
    nonces: dict[str, float] = attrs.field(factory=dict)  # spent recovery nonces -> unix seconds of expiry
    beacons: dict[int, Beacon] = attrs.field(factory=dict)  # not stored: an entry lives for a minute
    handed: dict[int, set[int]] = attrs.field(factory=dict)  # index: connection -> nodes whose mail it carried away
    notify: dict[NodeId, None] = attrs.field(factory=dict)  # nodes to poke, in order
    _journal: dict[tuple[str, str], None] = attrs.field(factory=dict)

    # --- the journal ---

    def changed(self, table: str, *key: int | str) -> None:
        """Note that the row `key` of `table` was written or deleted."""
        self._journal[table, ":".join(map(str, key))] = None

    def take_changes(self) -> list[Change]:
        """Return what changed since the last call, and forget it."""
        changes = [Change(table, key, self._render(table, key)) for table, key in self._journal]
        self._journal.clear()
        return changes

    def _render(self, table: str, key: str) -> Row | None:
        if table == "meta":
            return {"created_at": self.created_at, "next_node": self.next_node, "next_network": self.next_network}
        if table == "nonces":
            expires_at = self.nonces.get(key)
            return None if expires_at is None else {"expires_at": expires_at}
        first, _, second = key.partition(":")
        a, b = int(first), int(second or 0)
        if table == "trust":
            return {} if (a, b) in self.trust else None
        if table == "pending":
            asked_at = self.pending.get(a, {}).get(b)
            return None if asked_at is None else {"timestamp": asked_at}
        record = self._record(table, a, b)
        if isinstance(record, Node):
            record.stored_seen = record.last_seen
        return None if record is None else to_row(record)

    def _record(self, table: str, a: int, b: int) -> attrs.AttrsInstance | None:
        match table:
            case "bindings":
                return self.bindings.get(a)
            case "nodes":
                return self.nodes.get(a)
            case "networks":
                return self.networks.get(a)
            case "members":
                return self.members.get(a, {}).get(NodeId(b))
            case "requests":
                return self.requests.get(a, {}).get(b)
            case "responses":
                return self.responses.get(a, {}).get(b)
            case "invites":
                return self.invites.get(a, {}).get(b)
        raise AssertionError(table)

    def load(self, rows: Iterable[tuple[str, str, Any]], now: float) -> None:
        """Fill empty tables from stored rows, in any order; raise `DecodeError` for rows that cannot be.

        Every node gets the grace of having been heard at `now`: it had no chance to be heard while nobody listened.
        """
        for table, key, row in rows:
            try:
                self._load_row(table, key, row)
            except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as exc:
                raise DecodeError(f"stored row {table}/{key}: {exc}") from exc
        for node in self.nodes.values():
            node.stale_from = now
            node.stored_seen = node.last_seen
        for mails in (*self.requests.values(), *self.responses.values()):
            _reorder(mails, lambda mail: mail.timestamp)
        for invites in self.invites.values():
            _reorder(invites, lambda invite: invite.timestamp)
        for asking in self.pending.values():
            _reorder(asking, lambda asked_at: asked_at)
        self._check()

    def _load_row(self, table: str, key: str, row: Any) -> None:
        if table == "meta":
            self.created_at, self.next_node = float(row["created_at"]), int(row["next_node"])
            self.next_network = int(row["next_network"])
            return
        if table == "nonces":
            self.nonces[key] = float(row["expires_at"])
            return
        first, _, second = key.partition(":")
        if second:
            self._load_pair(table, int(first), int(second), row)
        else:
            self._load_single(table, int(first), row)

    def _load_single(self, table: str, a: int, row: Any) -> None:
        match table:
            case "bindings":
                self.bind(from_row(Binding, row))
            case "nodes":
                node = self.nodes[a] = from_row(Node, row)
                if node.hostname:
                    self.by_hostname[node.hostname] = node.node_id
            case "networks":
                network = self.networks[a] = from_row(NetworkRecord, row)
                self.by_network_name[network.name] = a
                self.members.setdefault(a, {})
            case _:
                raise ValueError("unknown table")

    def _load_pair(self, table: str, a: int, b: int, row: Any) -> None:
        match table:
            case "members":
                self.members.setdefault(a, {})[NodeId(b)] = from_row(Membership, row)
                self.joined.setdefault(b, set()).add(a)
            case "trust":
                self.trust.add((a, b))
            case "requests":
                self.requests.setdefault(a, {})[b] = from_row(Mail, row)
            case "responses":
                self.responses.setdefault(a, {})[b] = from_row(Mail, row)
            case "pending":
                self.pending.setdefault(a, {})[b] = float(row["timestamp"])
            case "invites":
                self.invites.setdefault(a, {})[b] = from_row(Invite, row)
            case _:
                raise ValueError("unknown table")

    def _check(self) -> None:
        # Ids given twice would be the worst failure of all (§9.2), so a store that could cause it is refused.
        if max(self.bindings, default=0) >= self.next_node or max(self.networks, default=0) >= self.next_network:
            raise DecodeError("stored ids reach beyond their counter")
        if not self.nodes.keys() <= self.bindings.keys():
            raise DecodeError("a stored node has no key")
        if not self.members.keys() <= self.networks.keys():
            raise DecodeError("a stored membership has no network")

    # --- writes that keep an index ---

    def bind(self, binding: Binding) -> None:
        """Tie a node id to a key, or to another key than before."""
        self.bindings[binding.node_id] = binding
        self.by_key[binding.public_key] = binding.node_id
        self.changed("bindings", binding.node_id)

    def rebind(self, binding: Binding, public_key: str, now: float) -> None:
        """Give a node id another key; the old key is free, and everything proven with it is forgotten."""
        del self.by_key[binding.public_key]
        binding.previous_key, binding.public_key = binding.public_key, public_key
        binding.rotations += 1
        binding.rotated_at = now
        self.bind(binding)
        if (node := self.nodes.get(binding.node_id)) is not None:
            node.badge = None
            node.verified_texts.clear()
            self.changed("nodes", node.node_id)

    def set_hostname(self, node: Node, hostname: str) -> None:
        """Name a node; "" frees its name. The caller has checked that the name is valid and free."""
        if node.hostname:
            del self.by_hostname[node.hostname]
        node.hostname = hostname
        if hostname:
            self.by_hostname[hostname] = node.node_id
        self.changed("nodes", node.node_id)

    def remove_node(self, node: Node) -> None:
        """Drop a live record and its name. Binding, trust and mail stay; memberships are the caller's affair."""
        self.set_hostname(node, "")
        del self.nodes[node.node_id]

    def add_member(self, network_id: int, node_id: NodeId, role: str = "member") -> None:
        """Make a node a member of a network."""
        self.members[network_id][node_id] = Membership(role)
        self.joined.setdefault(node_id, set()).add(network_id)
        self.changed("members", network_id, node_id)

    def remove_member(self, network_id: int, node_id: NodeId) -> None:
        """End a membership and the invites of this network that the node holds or has issued (§7)."""
        del self.members[network_id][node_id]
        joined = self.joined[node_id]
        joined.discard(network_id)
        if not joined:
            del self.joined[node_id]
        self.changed("members", network_id, node_id)
        self.drop_invite(node_id, network_id)
        for invited, box in list(self.invites.items()):
            if (invite := box.get(network_id)) is not None and invite.inviter == node_id:
                self.drop_invite(invited, network_id)

    def drop_invite(self, node_id: int, network_id: int) -> None:
        """Forget an invite, if there is one."""
        box = self.invites.get(node_id, {})
        if box.pop(network_id, None) is not None:
            self.changed("invites", node_id, network_id)
            if not box:
                del self.invites[node_id]

    # --- questions that several handlers ask ---

    def networks_of(self, node_id: int) -> list[int]:
        """Return the networks of a node in order; the backbone is the first."""
        return [BACKBONE, *sorted(self.joined.get(node_id, ()))]

    def trusted(self, a: int, b: int) -> bool:
        """Say whether a trust pair exists."""
        return (min(a, b), max(a, b)) in self.trust

    def related(self, a: int, b: int) -> bool:
        """Say whether two nodes may find each other though private: same node, trust pair, or a shared network (§3.4)."""
        if a == b or self.trusted(a, b):
            return True
        return not self.joined.get(a, set()).isdisjoint(self.joined.get(b, set()))


def _reorder(box: dict[int, V], age: Callable[[V], float]) -> None:
    """Put the oldest first, as it was before it was stored."""
    items = sorted(box.items(), key=lambda item: age(item[1]))
    box.clear()
    box.update(items)
