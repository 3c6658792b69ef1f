"""Roles, invitations, member tags, the enterprise flag; who may act."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_trio.proto.directory import PeerInfo
from pilot_trio.proto.directory.members import INVITE_LIFETIME, INVITES_MAX
from tests.proto.directory.world import IDENTITIES, TOKEN, World

NET = 1


@pytest.fixture
def world() -> World:
    """Nodes 1 (owner), 2 and 3 (members) of an enterprise network, 4 outside."""
    world = World()
    world.nodes(4)
    world.network("ent", 1, enterprise=True, network_admin_token="net-secret")
    for node in (2, 3):
        world.ok("join_network", node_id=node, network_id=NET)
    return world


@pytest.fixture
def invites() -> World:
    """Nodes 1 to 3; 1 owns an invite-only network."""
    world = World()
    world.nodes(3)
    world.network("inv", 1, join_rule="invite", enterprise=True)
    return world


def act(world: World, kind: str, target: int, **fields: Any) -> Any:
    return world.ask(kind, **({"network_id": NET, "target_node_id": target, "admin_token": TOKEN} | fields))


def role(world: World, node: int) -> str:
    answer = world.ask("get_member_role", network_id=NET, target_node_id=node)
    return str(answer.get("role", answer.get("error")))


def test_promotion_and_demotion(world: World) -> None:
    assert act(world, "promote_member", 2)["role"] == "admin"
    assert act(world, "promote_member", 2)["error"] == "node 2 is already an admin"
    assert act(world, "promote_member", 1)["error"] == "cannot promote the owner"
    assert act(world, "demote_member", 2)["role"] == "member"
    assert act(world, "demote_member", 2)["error"] == "node 2 is already a member"
    assert act(world, "demote_member", 1)["error"] == "cannot demote the owner"
    assert act(world, "promote_member", 4)["error"] == "node 4 is not a member of network 1"


def test_kicking(world: World) -> None:
    assert act(world, "kick_member", 2) == {"type": "kick_member_ok", "network_id": NET, "target_node_id": 2}
    assert act(world, "kick_member", 2)["error"] == "node 2 is not a member of network 1"
    assert act(world, "kick_member", 1)["error"] == "cannot kick the network owner"
    assert act(world, "kick_member", 1, network_id=0)["error"] == "cannot kick from the backbone network"
    assert world.ok("lookup", node_id=2)["networks"] == [0]


def test_ownership_moves_and_the_old_owner_stays_administrator(world: World) -> None:
    assert act(world, "transfer_ownership", 0)["error"] == "new_owner_id is required"
    assert act(world, "transfer_ownership", 0, new_owner_id=4)["error"] == "node 4 is not a member of network 1"
    answer = act(world, "transfer_ownership", 0, new_owner_id=3)
    assert (answer["old_owner"], answer["new_owner"]) == (1, 3)
    assert [role(world, node) for node in (1, 2, 3)] == ["admin", "member", "owner"]
    world.ok("leave_network", node_id=1, network_id=NET)


@pytest.mark.parametrize("kind", ["kick_member", "promote_member", "demote_member", "transfer_ownership"])
def test_roles_are_an_enterprise_feature(kind: str) -> None:
    world = World()
    world.nodes(2)
    world.network()
    assert act(world, kind, 2, new_owner_id=2)["error"] == "enterprise feature: requires enterprise network"
    assert act(world, kind, 2, network_id=9)["error"] == "network 9: network not found"


def test_enterprise_flag_names_an_owner_and_takes_roles_away(world: World) -> None:
    world.ok("set_network_enterprise", network_id=NET, enterprise=False, admin_token=TOKEN)
    assert [role(world, node) for node in (1, 2, 3)] == ["member"] * 3
    world.ok("leave_network", node_id=1, network_id=NET)
    answer = world.ok("set_network_enterprise", network_id=NET, enterprise=True, admin_token=TOKEN)
    assert answer == {"network_id": NET, "enterprise": True}
    assert [role(world, node) for node in (2, 3)] == ["owner", "member"]
    world.restart()
    assert role(world, 2) == "owner"


def test_enterprise_flag_of_an_empty_network(world: World) -> None:
    for node in (2, 3):
        world.ok("leave_network", node_id=node, network_id=NET)
    world.ok("deregister", node_id=1)
    world.ok("set_network_enterprise", network_id=NET, enterprise=True, admin_token=TOKEN)
    assert world.ok("list_nodes", network_id=NET) == {"nodes": []}


def test_member_tags(world: World) -> None:
    assert act(world, "set_member_tags", 2, tags=["a", "#b"])["tags"] == ["a", "b"]
    assert (
        act(world, "set_member_tags", 2, tags=[str(n) for n in range(11)])["error"] == "too many member tags (max 10)"
    )
    assert act(world, "set_member_tags", 4, tags=[])["error"] == "node 4 is not a member of network 1"
    assert world.ok("get_member_tags", network_id=NET, target_node_id=2)["tags"] == ["a", "b"]
    assert world.ok("get_member_tags", network_id=NET)["members"] == {"1": [], "2": ["a", "b"], "3": []}
    assert world.error("get_member_tags", network_id=NET, target_node_id=4) == "node 4 is not a member of network 1"
    assert act(world, "set_member_tags", 2, tags=[])["tags"] == []


# --- who may act ---


def test_a_role_needs_proof_and_not_a_claim(world: World) -> None:
    claim = {"admin_token": "", "node_id": 1}
    assert act(world, "promote_member", 2, **claim)["error"] == "signature required for authenticated node"
    signature = world.keys[1].sign_text("promote_member:1:1")
    assert act(world, "promote_member", 2, **claim, signature=signature)["role"] == "admin"
    peer = PeerInfo("h", 1, 999)
    world.ok("heartbeat", peer, node_id=1)
    message = {"type": "promote_member", "network_id": NET, "target_node_id": 3, "node_id": 1}
    assert world.send(message, peer)["role"] == "admin"


def test_proof_by_a_key_that_was_rotated_away_is_void(world: World) -> None:
    peer = PeerInfo("h", 1, 999)
    world.ok("heartbeat", peer, node_id=1)
    world.ok("rotate_key", node_id=1, new_public_key=IDENTITIES[9].public_key_b64)
    message = {"type": "promote_member", "network_id": NET, "target_node_id": 3, "node_id": 1}
    assert world.send(message, peer)["error"] == "signature required for authenticated node"


def test_roles_below_are_refused(world: World) -> None:
    def text(**fields: Any) -> str:
        return str(act(world, "promote_member", 2, admin_token="", **fields)["error"])

    assert text() == "rbac: node_id required for role-based authorization"
    assert text(node_id=4) == "request failed"  # no role: masked
    assert text(node_id=3) == 'rbac: node 3 has role "member", requires one of [owner]'


def test_token_of_the_network_is_as_good_within_it(world: World) -> None:
    assert act(world, "promote_member", 2, admin_token="net-secret")["role"] == "admin"
    world.network("other", 4, enterprise=True)
    assert act(world, "promote_member", 2, admin_token="net-secret", network_id=2)["type"] == "error"


def test_administrators_of_a_network_do_not_kick_each_other(world: World) -> None:
    act(world, "promote_member", 2)
    act(world, "promote_member", 3)
    peer = PeerInfo("h", 1, 999)
    world.ok("heartbeat", peer, node_id=2)
    message = {"type": "kick_member", "network_id": NET, "node_id": 2}
    assert world.send(message | {"target_node_id": 3}, peer)["error"] == "admins cannot kick other admins"
    act(world, "demote_member", 3)
    assert world.send(message | {"target_node_id": 3}, peer)["type"] == "kick_member_ok"


# --- invitations ---


def invite(world: World, inviter: int = 1, target: int = 2, network: int = NET) -> Any:
    return world.ask("invite_to_network", inviter_id=inviter, network_id=network, target_node_id=target)


def test_invited_nodes_join_by_accepting(invites: World) -> None:
    assert invite(invites) == {"type": "invite_to_network_ok", "network_id": NET, "target_node_id": 2}
    assert invite(invites)["status"] == "already_invited"
    waiting = [{"network_id": NET, "inviter_id": 1, "timestamp": int(invites.now)}]
    for _ in range(2):  # polling takes nothing away
        assert invites.ok("poll_invites", node_id=2) == {"invites": waiting}
    invites.restart()
    answer = invites.ok("respond_invite", node_id=2, network_id=NET, accept=True)
    assert answer == {"network_id": NET, "accepted": True}
    assert invites.ok("lookup", node_id=2)["networks"] == [0, NET]
    assert invites.ok("poll_invites", node_id=2) == {"invites": []}
    assert invites.error("respond_invite", node_id=2, network_id=NET, accept=True) == "request failed"
    assert invite(invites)["error"] == "node 2 is already a member of network 1"


def test_declined_invites_are_gone(invites: World) -> None:
    invite(invites)
    assert invites.ok("respond_invite", node_id=2, network_id=NET, accept=False)["accepted"] is False
    assert invites.ok("lookup", node_id=2)["networks"] == [0]
    assert invite(invites)["type"] == "invite_to_network_ok"


def test_invites_that_cannot_be(invites: World) -> None:
    invites.network("open", 1, enterprise=True)
    invites.network("plain", 1)
    assert invite(invites, 1, 1)["error"] == "cannot invite yourself"
    assert invite(invites, 2, 3)["error"] == "inviter 2 is not a member of network 1"
    assert invite(invites, 1, 9)["error"] == "node 9: node not found"
    assert invite(invites, 9, 1)["error"] == "node 9: node not found"
    assert invite(invites, network=2)["error"] == "request failed"  # not invite-only: masked
    assert invite(invites, network=3)["error"] == "enterprise feature: requires enterprise network"
    assert invite(invites, network=9)["error"] == "network 9: network not found"
    invite(invites)
    invites.ok("respond_invite", node_id=2, network_id=NET, accept=True)
    assert invite(invites, 2, 3)["error"] == 'rbac: node 2 has role "member", requires one of [owner admin]'


@pytest.mark.parametrize(("age", "accepted"), [(INVITE_LIFETIME - 1, True), (INVITE_LIFETIME + 1, False)])
def test_invites_expire(invites: World, age: float, accepted: bool) -> None:
    invite(invites)
    invites.now += age
    if accepted:
        assert len(invites.ok("poll_invites", node_id=2)["invites"]) == 1
        invites.ok("respond_invite", node_id=2, network_id=NET, accept=True)
        return
    text = "invite for node 2 to network 1 has expired"
    assert invites.error("respond_invite", node_id=2, network_id=NET, accept=True) == text
    assert invites.ok("poll_invites", node_id=2) == {"invites": []}


def test_expired_invites_are_dropped_by_polling(invites: World) -> None:
    invite(invites)
    invites.now += INVITE_LIFETIME + 1
    assert invites.ok("poll_invites", node_id=2) == {"invites": []}
    assert not [key for table, key in invites.disk if table == "invites"]


def test_invites_waiting_are_bounded(invites: World) -> None:
    for number in range(2, INVITES_MAX + 2):
        network = invites.network(f"n{number}", 1, join_rule="invite", enterprise=True)
        assert invite(invites, network=network)["type"] == "invite_to_network_ok"
    assert invite(invites)["error"] == "request failed"
    invites.ok("respond_invite", node_id=2, network_id=5, accept=False)
    assert invite(invites)["type"] == "invite_to_network_ok"


def test_full_network_keeps_the_invite(invites: World) -> None:
    invite(invites)
    invites.ok("set_network_policy", network_id=NET, max_members=1, admin_token=TOKEN)
    assert invites.error("respond_invite", node_id=2, network_id=NET, accept=True) == "request failed"
    invites.ok("set_network_policy", network_id=NET, max_members=2, admin_token=TOKEN)
    invites.ok("respond_invite", node_id=2, network_id=NET, accept=True)


@pytest.mark.parametrize("how", ["kick_member", "leave_network", "deregister"])
def test_invites_of_those_who_go_are_void(invites: World, how: str) -> None:
    invite(invites)
    invites.ok("respond_invite", node_id=2, network_id=NET, accept=True)
    act(invites, "promote_member", 2)
    invite(invites, 2, 3)
    invites.ok(how, node_id=2, network_id=NET, target_node_id=2, admin_token=TOKEN)
    assert invites.ok("poll_invites", node_id=3) == {"invites": []}


def test_invites_to_a_node_that_deregisters_are_void(invites: World) -> None:
    invite(invites)
    invites.ok("deregister", node_id=2)
    invites.register(1)
    assert invites.ok("poll_invites", node_id=2) == {"invites": []}
