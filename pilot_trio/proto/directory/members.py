"""Inside a network: roles, invitations, tags of members, the enterprise flag (`spec/registry.md` §7)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from pilot_trio.address import BACKBONE, NodeId
from pilot_trio.proto.directory.auth import (
    live_node,
    require_role,
    require_signature,
    require_signature_or_admin,
)
from pilot_trio.proto.directory.names import checked_tags
from pilot_trio.proto.directory.networks import ENTERPRISE_REQUIRED, check_room, find_network
from pilot_trio.proto.directory.records import Invite, Membership, NetworkRecord
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message, invite_text, node_text, pair_text

INVITES_MAX: Final = 100  # invites waiting per node; spec registry §2.6
INVITE_LIFETIME: Final = 30 * 86_400.0  # seconds; spec registry §2.6


def enterprise_network(tables: Tables, network_id: int) -> NetworkRecord:
    """Return a network with the enterprise flag; raise `Refused`."""
    network = find_network(tables, network_id)
    if not network.enterprise:
        raise Refused(ENTERPRISE_REQUIRED)
    return network


def _membership(tables: Tables, network_id: int, node_id: NodeId) -> Membership:
    member = tables.members[network_id].get(node_id)
    if member is None:
        raise Refused(f"node {node_id} is not a member of network {network_id}")
    return member


def _set_role(tables: Tables, network_id: int, node_id: NodeId, role: str) -> None:
    tables.members[network_id][node_id].role = role
    tables.changed("members", network_id, node_id)


def _kick_member(tables: Tables, request: Request) -> Message:
    network_id, target = request.network(), request.node("target_node_id")
    if network_id == BACKBONE:
        raise Refused("cannot kick from the backbone network")
    network = enterprise_network(tables, network_id)
    actor = require_role(tables, request, network, "owner", "admin")
    member = _membership(tables, network_id, target)
    if member.role == "owner":
        raise Refused("cannot kick the network owner")
    if actor and member.role == "admin" and tables.members[network_id][actor].role == "admin":
        raise Refused("admins cannot kick other admins")
    tables.remove_member(network_id, target)
    return {"network_id": network_id, "target_node_id": target}


def _give_role(verb: str, role: str, tables: Tables, request: Request) -> Message:
    network_id, target = request.network(), request.node("target_node_id")
    network = enterprise_network(tables, network_id)
    require_role(tables, request, network, "owner")
    member = _membership(tables, network_id, target)
    if member.role == "owner":
        raise Refused(f"cannot {verb} the owner")
    if member.role == role:
        raise Refused(f"node {target} is already {'an' if role == 'admin' else 'a'} {role}")
    _set_role(tables, network_id, target, role)
    return {"network_id": network_id, "target_node_id": target, "role": role}


def _transfer_ownership(tables: Tables, request: Request) -> Message:
    network_id, new_owner = request.network(), request.node("new_owner_id")
    network = enterprise_network(tables, network_id)
    require_role(tables, request, network, "owner")
    if not new_owner:
        raise Refused("new_owner_id is required")
    _membership(tables, network_id, new_owner)
    members = tables.members[network_id]
    old_owner = next((node_id for node_id, member in members.items() if member.role == "owner"), NodeId(0))
    if old_owner:
        _set_role(tables, network_id, old_owner, "admin")
    _set_role(tables, network_id, new_owner, "owner")
    return {"network_id": network_id, "old_owner": old_owner, "new_owner": new_owner}


def _get_member_role(tables: Tables, request: Request) -> Message:
    network_id, target = request.network(), request.node("target_node_id")
    find_network(tables, network_id)
    role = _membership(tables, network_id, target).role
    return {"network_id": network_id, "target_node_id": target, "role": role}


def _set_network_enterprise(tables: Tables, request: Request) -> Message:
    network_id, enterprise = request.network(), request.flag("enterprise")
    network = find_network(tables, network_id)
    require_role(tables, request, network, "owner")
    members = tables.members[network_id]
    if enterprise and members and not any(member.role == "owner" for member in members.values()):
        _set_role(tables, network_id, next(iter(members)), "owner")
    if not enterprise:
        for node_id, member in members.items():
            if member.role != "member":
                _set_role(tables, network_id, node_id, "member")
    network.enterprise = enterprise
    tables.changed("networks", network_id)
    return {"network_id": network_id, "enterprise": enterprise}


def _set_member_tags(tables: Tables, request: Request) -> Message:
    network_id, target = request.network(), request.node("target_node_id")
    tags = checked_tags(request.raw("tags"), "member tags")
    network = find_network(tables, network_id)
    require_role(tables, request, network, "owner", "admin")
    _membership(tables, network_id, target).tags = tags
    tables.changed("members", network_id, target)
    return {"network_id": network_id, "target_node_id": target, "tags": tags}


def _get_member_tags(tables: Tables, request: Request) -> Message:
    network_id, target = request.network(), request.node("target_node_id")
    find_network(tables, network_id)
    if target:
        tags = list(_membership(tables, network_id, target).tags)
        return {"network_id": network_id, "target_node_id": target, "tags": tags}
    members = {str(node_id): list(member.tags) for node_id, member in tables.members[network_id].items()}
    return {"network_id": network_id, "members": members}


def _invite_to_network(tables: Tables, request: Request) -> Message:
    inviter_id, network_id = request.node("inviter_id"), request.network()
    target_id = request.node("target_node_id")
    inviter = live_node(tables, inviter_id)
    text = invite_text(inviter_id, network_id, target_id)
    require_signature_or_admin(tables, request, inviter, text)
    if inviter_id == target_id:
        raise Refused("cannot invite yourself")
    network = enterprise_network(tables, network_id)
    if network.join_rule != "invite":
        raise Refused(f"network {network_id} is not invite-only (rule: {network.join_rule})")
    member = tables.members[network_id].get(inviter_id)
    if member is None:
        raise Refused(f"inviter {inviter_id} is not a member of network {network_id}")
    if member.role not in ("owner", "admin"):
        raise Refused(f'rbac: node {inviter_id} has role "{member.role}", requires one of [owner admin]')
    live_node(tables, target_id)
    if target_id in tables.members[network_id]:
        raise Refused(f"node {target_id} is already a member of network {network_id}")
    _drop_expired(tables, target_id, request.now)
    box = tables.invites.get(target_id, {})
    answer: Message = {"network_id": network_id, "target_node_id": target_id}
    if network_id in box:
        return answer | {"status": "already_invited"}
    if len(box) >= INVITES_MAX:
        raise Refused(f"invite inbox full for node {target_id}")
    tables.invites.setdefault(target_id, {})[network_id] = Invite(inviter_id, request.now)
    tables.changed("invites", target_id, network_id)
    return answer


def _poll_invites(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    require_signature(tables, request, node, node_text("poll_invites", node.node_id))
    _drop_expired(tables, node.node_id, request.now)
    return {
        "invites": [
            {"network_id": network_id, "inviter_id": invite.inviter, "timestamp": int(invite.timestamp)}
            for network_id, invite in tables.invites.get(node.node_id, {}).items()
        ]
    }


def _respond_invite(tables: Tables, request: Request) -> Message:
    node, network_id = live_node(tables, request.node()), request.network()
    require_signature(tables, request, node, pair_text("respond_invite", node.node_id, network_id))
    accept = request.flag("accept")
    answer: Message = {"network_id": network_id, "accepted": accept}
    invite = tables.invites.get(node.node_id, {}).get(network_id)
    if invite is None:
        raise Refused(f"no pending invite for node {node.node_id} to network {network_id}")
    if request.now - invite.timestamp > INVITE_LIFETIME:
        tables.drop_invite(node.node_id, network_id)
        raise Refused(f"invite for node {node.node_id} to network {network_id} has expired")
    if accept:
        check_room(tables, find_network(tables, network_id))
        if node.node_id not in tables.members[network_id]:
            tables.add_member(network_id, node.node_id)
    tables.drop_invite(node.node_id, network_id)
    return answer


def _drop_expired(tables: Tables, node_id: NodeId, now: float) -> None:
    for network_id, invite in list(tables.invites.get(node_id, {}).items()):
        if now - invite.timestamp > INVITE_LIFETIME:
            tables.drop_invite(node_id, network_id)


HANDLERS: Final[dict[str, Callable[[Tables, Request], Message]]] = {
    "kick_member": _kick_member,
    "promote_member": partial(_give_role, "promote", "admin"),
    "demote_member": partial(_give_role, "demote", "member"),
    "transfer_ownership": _transfer_ownership,
    "get_member_role": _get_member_role,
    "set_network_enterprise": _set_network_enterprise,
    "set_member_tags": _set_member_tags,
    "get_member_tags": _get_member_tags,
    "invite_to_network": _invite_to_network,
    "poll_invites": _poll_invites,
    "respond_invite": _respond_invite,
}
