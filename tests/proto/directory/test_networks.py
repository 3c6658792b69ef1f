"""Creating, joining, leaving, renaming, deleting and listing networks."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_trio.proto.directory import DirectorySettings
from pilot_trio.proto.directory.networks import TOKEN_MAX
from tests.proto.directory.world import START, TOKEN, World

POLICY = {"version": 1, "rules": [{"name": "r"}]}
RULES = {"links": 3, "cycle": "1m", "prune": 1, "prune_by": "age", "fill": 1, "fill_how": "random"}


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes(3)
    return world


def create(world: World, **fields: Any) -> Any:
    return world.ask("create_network", **({"node_id": 1, "name": "lab", "admin_token": TOKEN} | fields))


def test_creator_is_owner_and_member(world: World) -> None:
    assert create(world) == {"type": "create_network_ok", "network_id": 1, "name": "lab", "enterprise": False}
    assert world.ok("lookup", node_id=1)["networks"] == [0, 1]
    assert world.ok("get_member_role", network_id=1, target_node_id=1)["role"] == "owner"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"admin_token": "wrong"}, "invalid admin token"),
        ({"admin_token": ""}, "invalid admin token"),
        ({"admin_token": "\ud800"}, "invalid admin token"),
        ({"name": ""}, "network name required"),
        ({"name": "n" * 64}, "network name too long (max 63 chars)"),
        ({"name": "N"}, "request failed"),
        ({"name": "backbone"}, "request failed"),
        ({"name": "old"}, 'network "old" already exists'),
        ({"node_id": 0}, "request failed"),
        ({"join_rule": "magic"}, 'invalid join_rule "magic": use open, token or invite'),
        ({"join_rule": "invite"}, "enterprise feature: invite-only networks require the enterprise flag"),
        ({"token": "t" * (TOKEN_MAX + 1)}, "token too long (max 256 chars)"),
        ({"network_admin_token": "t" * (TOKEN_MAX + 1)}, "token too long (max 256 chars)"),
        ({"rules": "{"}, None),
        ({"expr_policy": "[]"}, "expr_policy: invalid JSON: must be an object"),
    ],
)
def test_bad_networks_are_refused(world: World, fields: dict[str, Any], text: str | None) -> None:
    create(world, name="old")
    answer = create(world, **fields)
    assert answer["type"] == "error"
    assert text is None or answer["error"] == text
    assert world.directory.counts().networks == 1


def test_without_a_configured_token_nobody_creates_networks() -> None:
    world = World(DirectorySettings())
    world.nodes(1)
    assert create(world, admin_token="") == {"type": "error", "error": "request failed"}


def test_longest_name_and_token_are_taken(world: World) -> None:
    assert create(world, name="n" * 63, token="t" * TOKEN_MAX)["type"] == "create_network_ok"


def test_network_ids_are_not_reused_and_end(world: World) -> None:
    assert create(world)["network_id"] == 1
    world.ok("delete_network", network_id=1, admin_token=TOKEN)
    world.restart()
    assert create(world)["network_id"] == 2
    world.directory._tables.next_network = 65_535
    assert create(world, name="last")["network_id"] == 65_535
    assert create(world, name="surplus") == {"type": "error", "error": "request failed"}


def test_joining_an_open_network_brings_its_documents(world: World) -> None:
    created = create(world, rules=RULES, expr_policy=POLICY)
    assert created["managed"] is True
    answer = world.ok("join_network", node_id=2, network_id=1)
    assert answer == {"network_id": 1, "address": "1:0001.0000.0002", "rules": RULES, "expr_policy": POLICY}
    assert world.error("join_network", node_id=2, network_id=1) == "node 2 already in network 1"


def test_joining_by_token(world: World) -> None:
    create(world, join_rule="token", token="s3cret")
    for token in ("", "S3cret", 7, "\u00e9"):
        assert world.error("join_network", node_id=2, network_id=1, token=token) == "invalid token for network 1"
    assert world.ok("join_network", node_id=2, network_id=1, token="s3cret")["network_id"] == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"network_id": 0}, "cannot join the backbone network"),
        ({"network_id": 65_536}, "cannot join the backbone network"),
        ({"network_id": 9}, "network 9: network not found"),
        ({"node_id": 9}, "request failed"),
        ({"signature": "QUJD"}, "signature verification failed"),
    ],
)
def test_joins_that_cannot_be(world: World, fields: dict[str, Any], text: str) -> None:
    create(world)
    assert world.error("join_network", **({"node_id": 2, "network_id": 1} | fields)) == text


def test_administrator_joins_a_node_without_its_signature(world: World) -> None:
    create(world)
    message = {"type": "join_network", "node_id": 2, "network_id": 1}
    assert world.send(message)["error"] == "signature required for authenticated node"
    assert world.send(message | {"admin_token": TOKEN})["type"] == "join_network_ok"
    assert world.send(message | {"type": "leave_network", "admin_token": TOKEN})["type"] == "leave_network_ok"


def test_full_network_takes_nobody(world: World) -> None:
    create(world, enterprise=True)
    world.ok("set_network_policy", network_id=1, max_members=2, admin_token=TOKEN)
    world.ok("join_network", node_id=2, network_id=1)
    assert world.error("join_network", node_id=3, network_id=1) == "request failed"
    world.ok("leave_network", node_id=2, network_id=1)
    world.ok("join_network", node_id=3, network_id=1)


def test_leaving(world: World) -> None:
    create(world)
    world.ok("join_network", node_id=2, network_id=1)
    assert world.ok("leave_network", node_id=2, network_id=1) == {"network_id": 1}
    assert world.error("leave_network", node_id=2, network_id=1) == "node 2 is not a member of network 1"
    assert world.error("leave_network", node_id=2, network_id=0) == "cannot leave the backbone network"
    assert world.ok("leave_network", node_id=1, network_id=1) == {"network_id": 1}  # ownerless from now on
    assert world.ok("list_nodes", network_id=1) == {"nodes": []}


def test_owner_of_an_enterprise_network_must_hand_it_over_first(world: World) -> None:
    create(world, enterprise=True)
    text = "cannot leave network: owner must transfer ownership first"
    assert world.error("leave_network", node_id=1, network_id=1) == text


def test_deleting_ends_memberships_and_invites_and_frees_the_name(world: World) -> None:
    create(world, join_rule="invite", enterprise=True)
    world.ok("invite_to_network", inviter_id=1, network_id=1, target_node_id=2)
    assert world.error("delete_network", network_id=0, admin_token=TOKEN) == "cannot delete the backbone network"
    assert world.ok("delete_network", network_id=1, admin_token=TOKEN) == {"network_id": 1}
    assert world.error("delete_network", network_id=1, admin_token=TOKEN) == "network 1: network not found"
    assert world.ok("lookup", node_id=1)["networks"] == [0]
    assert world.ok("poll_invites", node_id=2) == {"invites": []}
    assert create(world)["network_id"] == 2


def test_renaming(world: World) -> None:
    create(world)
    create(world, name="other")
    for _ in range(2):
        answer = world.ok("rename_network", network_id=1, name="new", admin_token=TOKEN)
        assert answer == {"network_id": 1, "name": "new"}
    assert world.error("rename_network", network_id=1, name="other", admin_token=TOKEN).endswith("already exists")
    assert world.error("rename_network", network_id=0, name="x", admin_token=TOKEN).startswith("cannot")
    assert create(world)["name"] == "lab"  # free again


def test_list_of_networks(world: World) -> None:
    create(world, rules=RULES, expr_policy=POLICY)
    create(world, name="ent", enterprise=True)
    world.ok("set_network_policy", network_id=2, max_members=9, description="d", admin_token=TOKEN)
    base = {"join_rule": "open", "enterprise": False, "created": int(START)}
    backbone = {"id": 0, "name": "backbone", **base}
    lab = {"id": 1, "name": "lab", **base, "managed": True, "rules": RULES, "has_expr_policy": True}
    ent = {"id": 2, "name": "ent", **base, "enterprise": True, "max_members": 9, "description": "d"}
    assert world.ok("list_networks")["networks"] == [backbone, lab, ent]
    counted = world.ok("list_networks", admin_token=TOKEN)["networks"]
    assert [row.pop("members") for row in counted] == [3, 1, 1]
    assert counted == [backbone, lab, ent]


def test_backbone_is_listed_for_the_administrator_only(world: World) -> None:
    assert world.error("list_nodes", network_id=0) == "request failed"
    assert world.error("list_nodes", network_id=0, admin_token="no") == "request failed"
    listed = world.ok("list_nodes", network_id=0, admin_token=TOKEN)["nodes"]
    assert [node["address"] for node in listed] == [f"0:0000.0000.000{n}" for n in (1, 2, 3)]


def test_list_of_members_hides_where_private_ones_are(world: World) -> None:
    create(world)
    world.ok("join_network", node_id=2, network_id=1)
    world.ok("set_visibility", node_id=1, public=True)
    world.ok("set_member_tags", network_id=1, target_node_id=2, tags=["svc"], admin_token=TOKEN)
    public, private = world.ok("list_nodes", network_id=1)["nodes"]
    assert (public["real_addr"], public["role"]) == ("203.0.113.9:4000", "owner")
    assert "real_addr" not in private
    assert (private["member_tags"], private["role"]) == (["svc"], "member")
    assert world.error("list_nodes", network_id=9) == "network 9: network not found"
