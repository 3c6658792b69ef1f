"""Everything a directory knows, its indexes, and the journal of what changed.

Handlers read and write these tables and call `changed` for each row they touched. The journal holds keys only; rows are
rendered by `rows` when it is taken, so a row changed twice is written once, and always as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from pilot_trio.address import BACKBONE, NodeId
from pilot_trio.proto.directory.records import (
    Binding,
    Invite,
    Mail,
    Membership,
    NetworkRecord,
    Node,
)

RowKey = tuple[int | str, ...]

STALE_AFTER: Final = 1800.0  # seconds without a sign of life until a node is reaped; spec registry §9.1
MAX_NODES: Final = 1_000_000  # node ids ever given out; ids are kept for ever, so this bounds memory and disk
MAX_NETWORKS: Final = 65_535  # network ids ever given out; spec registry §7

# The reference's issuers: who signs badges and enrolments, and who signs recoveries.
BADGE_KEYS: Final[Mapping[str, str]] = {"bdg-v1": "Y2jjSAS+J6LVXAguY4P51vMGhHl7qgy5qBJZGS0Cmms="}
RECOVERY_KEYS: Final[Mapping[str, str]] = {"rec-v1": "EGQ7F/NGzCIPekBo1jx+eUQUfOBFQU/hyhiZd3xumTY="}


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
    reaped_at: float = attrs.field(init=False)  # the last look for silent nodes
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
    _journal: dict[tuple[str, RowKey], None] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.reaped_at = self.created_at

    # --- the journal ---

    def changed(self, table: str, *key: int | str) -> None:
        """Note that the row `key` of `table` was written or deleted."""
        self._journal[table, key] = None

    def take_journal(self) -> list[tuple[str, RowKey]]:
        """Return the keys noted since the last call, once each, and forget them."""
        keys = list(self._journal)
        self._journal.clear()
        return keys

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
