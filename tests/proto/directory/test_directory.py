"""Laws of the directory as a whole, under arbitrary requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import DecodeError
from pilot_trio.proto.directory import READ_ONLY, TYPES, Directory, DirectorySettings, Refused
from pilot_trio.proto.directory import directory as directory_module
from pilot_trio.wire.registry import Message
from tests.proto.directory.world import IDENTITIES, START, TOKEN, World, snapshot

FIELDS = [
    "node_id", "peer_id", "network_id", "target_node_id", "requester_id", "from_node_id", "to_node_id", "inviter_id",
    "new_owner_id", "node_a", "node_b", "beacon_id", "public_key", "new_public_key", "signature", "listen_addr", "owner",
    "version", "lan_addrs", "relay_only", "hostname", "public", "tags", "justification", "accept", "name", "join_rule",
    "token", "admin_token", "network_admin_token", "enterprise", "rules", "expr_policy", "max_members", "allowed_ports",
    "description", "addr", "expires_at", "badge", "badge_sig", "enrollment", "enrollment_sig", "recovery", "recovery_sig",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=40)
    | st.sampled_from([TOKEN, "open", "invite", "token", "\ud800", "pilotbadge:v1:1:x:1:0:bdg-v1", IDENTITIES[0].public_key_b64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
small = st.integers(0, 4)
garbage = st.builds(
    lambda kind, likely, wild: {"type": kind, **likely, **wild},
    st.sampled_from(sorted(TYPES)) | json_values,
    st.dictionaries(st.sampled_from(FIELDS), small | st.sampled_from([TOKEN, "x"]), max_size=6),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4),
)


@given(st.lists(garbage, max_size=12))
@settings(deadline=None)
def test_garbage_is_answered_and_corrupts_nothing(messages: list[Message]) -> None:
    world = World()
    world.nodes(3)
    world.network("inv", 1, join_rule="invite", enterprise=True)
    for message in messages:
        world.send(message)  # asserts that the answer is one
    assert snapshot(world.restored()) == snapshot(world.directory)
    assert [world.directory.is_known(node) for node in (1, 2, 3)] == [True] * 3  # nothing unsigned removes a node


@given(garbage)
@settings(deadline=None)
def test_a_refusal_changes_nothing(message: Message) -> None:
    world = World()
    world.nodes(2)
    world.network("inv", 1, join_rule="invite", enterprise=True)
    before = snapshot(world.directory)
    if world.send(message)["type"] == "error":
        assert snapshot(world.directory) == before


@given(st.sampled_from(sorted(READ_ONLY)), st.dictionaries(st.sampled_from(FIELDS), small | json_values, max_size=6))
@settings(deadline=None)
def test_read_only_requests_change_no_row(kind: str, fields: dict[str, Any]) -> None:
    world = World()
    world.nodes(3)
    disk = dict(world.disk)
    fields.pop("signature", None)
    world.ask(kind, **(fields | {"node_id": 1, "requester_id": 1}))
    assert world.disk == disk


class Life(RuleBasedStateMachine):
    """Nodes come, go, trust, join and rotate; the directory is restarted at any moment from what was stored."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.ids: dict[str, int] = {}  # every key that ever got an id
        self.current: dict[int, str] = {}  # the key that an id has now
        self.fresh = iter(IDENTITIES)

    def owner_of(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.world.keys)), label="node")

    @rule(data=st.data(), again=st.booleans(), hostname=st.sampled_from(["", "alpha", "beta"]))
    def register(self, data: st.DataObject, again: bool, hostname: str) -> None:
        identity: Identity | None = next(self.fresh, None)
        if (again and self.world.keys) or identity is None:
            identity = self.world.keys[self.owner_of(data)]
        answer = self.world.register(identity, hostname=hostname)
        key, node_id = identity.public_key_b64, answer["node_id"]
        assert self.ids.setdefault(key, node_id) == node_id, "a key has one id for ever"
        assert self.current.setdefault(node_id, key) == key, "an id is never given to another key"

    @precondition(lambda self: self.world.keys)
    @rule(
        data=st.data(),
        kind=st.sampled_from(sorted(TYPES - {"register", "rotate_key", "recover_identity"})),
        peer=st.integers(1, 6),
        network=st.integers(1, 3),
        flags=st.fixed_dictionaries({"public": st.booleans(), "accept": st.booleans(), "enterprise": st.booleans()}),
        name=st.sampled_from(["", "alpha", "beta", "gamma"]),
        admin=st.booleans(),
        rule_=st.sampled_from(["open", "token", "invite"]),
    )
    def do(
        self,
        data: st.DataObject,
        kind: str,
        peer: int,
        network: int,
        flags: Message,
        name: str,
        admin: bool,
        rule_: str,
    ) -> None:
        node = self.owner_of(data)
        fields = {
            "node_id": node, "peer_id": peer, "from_node_id": node, "to_node_id": peer, "requester_id": node,
            "inviter_id": node, "target_node_id": peer, "new_owner_id": peer, "node_a": node, "node_b": peer,
            "network_id": network, "hostname": name, "name": name, "join_rule": rule_, "token": "t",
            "tags": ["x"], "max_members": 3, "allowed_ports": [7], "expires_at": "never",
            "expr_policy": '{"version":1,"rules":[{}]}', "badge": "", "addr": "192.0.2.9:9001", "beacon_id": 7,
        }  # fmt: skip
        if admin:
            fields["admin_token"] = TOKEN
        before = snapshot(self.world.directory)
        if self.world.ask(kind, **fields, **flags)["type"] == "error":
            assert snapshot(self.world.directory) == before, "a refusal changes nothing"

    @precondition(lambda self: self.world.keys)
    @rule(data=st.data())
    def rotate(self, data: st.DataObject) -> None:
        node, fresh = self.owner_of(data), next(self.fresh, None)
        if fresh is None or not self.world.directory.is_known(node):
            return
        answer = self.world.ask("rotate_key", node_id=node, new_public_key=fresh.public_key_b64)
        assert answer["type"] == "rotate_key_ok"
        old = self.current[node]
        del self.ids[old]  # free to get an id of its own
        self.ids[fresh.public_key_b64] = node
        self.current[node] = fresh.public_key_b64
        self.world.keys[node] = fresh

    @rule(seconds=st.sampled_from([1.0, 59.0, 1000.0, 1801.0]))
    def wait(self, seconds: float) -> None:
        assert not any(map(self.world.directory.is_known, self.world.wait(seconds)))

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        assert snapshot(self.world.restored()) == snapshot(self.world.directory)

    @invariant()
    def indexes_agree(self) -> None:
        tables = self.world.directory._tables
        assert {node.hostname: node.node_id for node in tables.nodes.values() if node.hostname} == tables.by_hostname
        assert {binding.public_key: node for node, binding in tables.bindings.items()} == tables.by_key
        assert {network.name: number for number, network in tables.networks.items()} == tables.by_network_name
        joined: dict[int, set[int]] = {}
        for number, members in tables.members.items():
            assert sum(member.role == "owner" for member in members.values()) <= 1
            for node in members:
                joined.setdefault(node, set()).add(number)
        assert joined == tables.joined
        assert all(a < b for a, b in tables.trust)


Life.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestLife = Life.TestCase


def test_every_request_ever_repeated_is_harmless() -> None:
    """§2.5: a client may send a mutation twice; the second answer is a success or a harmless error, the state the same."""
    world = World()
    world.nodes(3)
    number = world.network("inv", 1, join_rule="invite", enterprise=True)
    script: list[tuple[str, dict[str, Any]]] = [
        ("set_hostname", {"node_id": 1, "hostname": "one"}),
        ("set_visibility", {"node_id": 1, "public": True}),
        ("set_tags", {"node_id": 1, "tags": ["x"]}),
        ("request_handshake", {"from_node_id": 1, "to_node_id": 2, "justification": "hi"}),
        ("report_trust", {"node_id": 2, "peer_id": 1}),
        ("respond_handshake", {"node_id": 2, "peer_id": 1, "accept": True}),
        ("invite_to_network", {"inviter_id": 1, "network_id": number, "target_node_id": 2}),
        ("respond_invite", {"node_id": 2, "network_id": number, "accept": True}),
        ("leave_network", {"node_id": 2, "network_id": number}),
        ("revoke_trust", {"node_id": 1, "peer_id": 2}),
        ("deregister", {"node_id": 3}),
    ]
    for kind, fields in script:
        assert world.ask(kind, **fields)["type"] == f"{kind}_ok"
        before = snapshot(world.directory)
        world.ask(kind, **fields)
        assert snapshot(world.directory) == before, kind


def test_unknown_kinds_are_masked_whatever_they_are_called() -> None:
    world = World()
    for kind in ("nosuch", "already invalid", "", None, 7, ["lookup"], {"a": 1}):
        assert world.send({"type": kind}) == {"type": "error", "error": "request failed"}
    assert world.send({}) == {"type": "error", "error": "request failed"}


def test_binary_clients_see_unmasked_texts() -> None:
    world = World()
    with pytest.raises(Refused, match=r"^resolve denied: requester node 7 is not registered$"):
        world.directory.answer({"type": "resolve", "requester_id": 7}, world.peer(), START)


def test_no_rows_make_an_empty_directory_that_stores_its_counters() -> None:
    directory = Directory.restore([], now=START)
    assert [change.table for change in directory.take_changes()] == ["meta"]


def test_restart_keeps_ids_after_every_node_has_left() -> None:
    world = World()
    world.nodes(3)
    for node in (1, 2, 3):
        world.ok("deregister", node_id=node)
    world.restart()
    assert world.register(5)["node_id"] == 4
    assert world.register(1)["node_id"] == 2


def test_restart_gives_every_node_a_fresh_grace() -> None:
    world = World()
    world.nodes(1)
    world.now += 10 * 86_400
    world.restart()
    assert world.wait(1799.9) == []
    assert world.wait(0.1) == [1]


def test_last_seen_is_stored_when_asked_and_not_by_heartbeats() -> None:
    world = World()
    world.nodes(2)
    disk = dict(world.disk)
    world.now += 600
    world.ok("heartbeat", node_id=1)
    assert world.disk == disk
    world.directory.note_last_seen()
    changes = world.directory.take_changes()
    assert [change.key for change in changes] == ["1"]
    world.store(changes)
    world.directory.note_last_seen()
    assert world.directory.take_changes() == []
    world.restart()
    assert world.ok("lookup", node_id=1)["last_seen_unix"] == int(START) + 600


@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_last_seen_of_a_crowd_is_noted_in_portions(monkeypatch: pytest.MonkeyPatch, surplus: int) -> None:
    monkeypatch.setattr(directory_module, "NOTED_AT_ONCE", 3 - surplus)
    world = World()
    world.nodes(3)
    world.now += 1
    noted: list[str] = []
    for portion in (3 - max(surplus, 0), max(surplus, 0)):
        for node in (1, 2, 3):
            world.ok("heartbeat", node_id=node)
        world.directory.note_last_seen()
        changes = world.directory.take_changes()
        assert len(changes) == portion
        noted += [change.key for change in changes]
    assert sorted(noted) == ["1", "2", "3"]


@pytest.mark.parametrize(
    "row",
    [
        ("meta", "counters", {}),
        ("meta", "counters", None),
        ("bindings", "1", {"node_id": 1}),
        ("bindings", "1", {"node_id": 1, "public_key": "k", "created_at": 0, "surplus": 1}),
        ("bindings", "9", {"node_id": 9, "public_key": "k", "created_at": 0}),
        ("nodes", "1", {"node_id": 1, "endpoint": "", "last_seen": 0}),
        ("nodes", "x", {"node_id": 1, "endpoint": "", "last_seen": 0}),
        ("nodes", "1", []),
        ("networks", "5", {"network_id": 5, "name": "n", "created_at": 0}),
        ("members", "5:1", {}),
        ("pending", "1:2", {}),
        ("nonsense", "1", {}),
        ("nonsense", "1:2", {}),
    ],
)
def test_rows_that_cannot_be_are_refused(row: tuple[str, str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"stored"):
        Directory.restore([row], now=START)


def test_two_ids_for_one_key_are_refused() -> None:
    meta = ("meta", "counters", {"created_at": 0, "next_node": 3, "next_network": 1})
    twins = [("bindings", str(n), {"node_id": n, "public_key": "k", "created_at": 0}) for n in (1, 2)]
    with pytest.raises(DecodeError, match="two stored ids have one key"):
        Directory.restore([meta, *twins], now=START)


def test_views_for_people() -> None:
    world = World(DirectorySettings(admin_token=TOKEN))
    world.nodes(3)
    world.ok("set_visibility", node_id=1, public=True)
    world.ok("set_hostname", node_id=1, hostname="one")
    world.network()
    world.ok("report_trust", node_id=1, peer_id=2)
    world.ok("request_handshake", from_node_id=2, to_node_id=3, justification="")
    counts = world.directory.counts()
    assert (counts.nodes, counts.node_ids, counts.public_nodes, counts.networks) == (3, 3, 1, 1)
    assert (counts.trust_pairs, counts.waiting_requests, counts.beacons) == (1, 1, 0)
    first = world.directory.nodes()[0]
    assert (first.node_id, first.hostname, first.public, first.networks) == (1, "one", True, (1,))
    assert [(view.name, view.members) for view in world.directory.networks()] == [("lab", 1)]
    assert json.dumps(snapshot(world.directory)["next_node"]) == "4"
