"""Networks and who is in them: create, join, leave, rename, delete, list (`spec/registry.md` §7)."""

from __future__ import annotations

import hmac
from typing import Any, Final

from pilot_trio.address import BACKBONE, Address, NetworkId, NodeId, quote
from pilot_trio.proto.directory.auth import (
    is_admin,
    registered_node,
    require_admin,
    require_role,
    require_signature_or_admin,
)
from pilot_trio.proto.directory.documents import parse_expr_policy, parse_rules
from pilot_trio.proto.directory.names import LABEL, NAME_MAX
from pilot_trio.proto.directory.records import NetworkRecord, Node
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.routes import badge_fields, visible_endpoint
from pilot_trio.proto.directory.tables import MAX_NETWORKS, Tables
from pilot_trio.wire.registry import Message, pair_text
from pilot_trio.wire.times import rfc3339

JOIN_RULES: Final = ("open", "token", "invite")
TOKEN_MAX: Final = 256  # characters of a join token or a network's own admin token; longer than any generated secret
ENTERPRISE_REQUIRED: Final = "enterprise feature: requires enterprise network"


def find_network(tables: Tables, network_id: int) -> NetworkRecord:
    """Return a network other than the backbone; raise `Refused`."""
    network = tables.networks.get(network_id)
    if network is None:
        raise Refused(f"network {network_id}: network not found")
    return network


def check_room(tables: Tables, network: NetworkRecord) -> None:
    """Raise `Refused` if the network's limit of members is reached."""
    if network.max_members and len(tables.members[network.network_id]) >= network.max_members:
        raise Refused("network membership limit reached")


def _create_network(tables: Tables, request: Request) -> Message:
    require_admin(tables, request)
    name, rule = request.text("name"), request.text("join_rule") or "open"
    token, admin_token = request.text("token"), request.text("network_admin_token")
    enterprise = request.flag("enterprise")
    _check_name(tables, name)
    if rule not in JOIN_RULES:
        raise Refused(f"invalid join_rule {quote(rule)}: use open, token or invite")
    if rule == "invite" and not enterprise:
        raise Refused("enterprise feature: invite-only networks require the enterprise flag")
    if max(len(token), len(admin_token)) > TOKEN_MAX:
        raise Refused(f"token too long (max {TOKEN_MAX} chars)")
    rules, expr_policy = parse_rules(request.raw("rules")), parse_expr_policy(request.raw("expr_policy"))
    creator = registered_node(tables, request.node())
    if tables.next_network > MAX_NETWORKS:
        raise Refused("network ID space exhausted")
    network = NetworkRecord(tables.next_network, name, request.now, rule, token, enterprise, admin_token)
    network.rules, network.expr_policy = rules, expr_policy
    tables.next_network += 1
    tables.changed("meta", "counters")
    tables.networks[network.network_id] = network
    tables.by_network_name[name] = network.network_id
    tables.members[network.network_id] = {}
    tables.changed("networks", network.network_id)
    tables.add_member(network.network_id, creator.node_id, "owner")
    answer: Message = {"network_id": network.network_id, "name": name, "enterprise": enterprise}
    if rules is not None:
        answer["managed"] = True
    return answer


def _check_name(tables: Tables, name: str) -> None:
    if not name:
        raise Refused("network name required")
    if len(name) > NAME_MAX:
        raise Refused(f"network name too long (max {NAME_MAX} chars)")
    if not LABEL.fullmatch(name):
        raise Refused("network name must be lowercase alphanumeric with hyphens, start/end with alphanumeric")
    if name == "backbone":
        raise Refused(f"network name {quote(name)} is reserved")
    if name in tables.by_network_name:
        raise Refused(f"network {quote(name)} already exists")


def _join_network(tables: Tables, request: Request) -> Message:
    network_id = request.network()
    if network_id == BACKBONE:
        raise Refused("cannot join the backbone network")
    node = registered_node(tables, request.node())
    require_signature_or_admin(tables, request, node, pair_text("join_network", node.node_id, network_id))
    network = find_network(tables, network_id)
    if node.node_id in tables.members[network_id]:
        raise Refused(f"node {node.node_id} already in network {network_id}")
    if network.join_rule == "token" and not _token_fits(network, request):
        raise Refused(f"invalid token for network {network_id}")
    if network.join_rule == "invite":
        raise Refused("invite-only networks require invite_to_network + respond_invite flow")
    check_room(tables, network)
    tables.add_member(network_id, node.node_id)
    answer: Message = {"network_id": network_id, "address": str(Address(NetworkId(network_id), node.node_id))}
    if network.rules is not None:
        answer["rules"] = network.rules
    if network.expr_policy is not None:
        answer["expr_policy"] = network.expr_policy
    return answer


def _token_fits(network: NetworkRecord, request: Request) -> bool:
    given = request.text("token")
    return hmac.compare_digest(given.encode(), network.token.encode())


def _leave_network(tables: Tables, request: Request) -> Message:
    network_id, node_id = request.network(), request.node()
    if network_id == BACKBONE:
        raise Refused("cannot leave the backbone network")
    node = registered_node(tables, node_id)
    require_signature_or_admin(tables, request, node, pair_text("leave_network", node_id, network_id))
    network = find_network(tables, network_id)
    member = tables.members[network_id].get(node_id)
    if member is None:
        raise Refused(f"node {node_id} is not a member of network {network_id}")
    if network.enterprise and member.role == "owner":
        raise Refused("cannot leave network: owner must transfer ownership first")
    tables.remove_member(network_id, node_id)
    return {"network_id": network_id}


def _delete_network(tables: Tables, request: Request) -> Message:
    network_id = request.network()
    if network_id == BACKBONE:
        raise Refused("cannot delete the backbone network")
    network = find_network(tables, network_id)
    require_role(tables, request, network, "owner")
    for node_id in list(tables.members[network_id]):
        tables.remove_member(network_id, node_id)
    for invited in list(tables.invites):
        tables.drop_invite(invited, network_id)
    del tables.networks[network_id], tables.members[network_id], tables.by_network_name[network.name]
    tables.changed("networks", network_id)
    return {"network_id": network_id}


def _rename_network(tables: Tables, request: Request) -> Message:
    network_id, name = request.network(), request.text("name")
    if network_id == BACKBONE:
        raise Refused("cannot rename the backbone network")
    network = find_network(tables, network_id)
    require_role(tables, request, network, "owner", "admin")
    if name != network.name:  # so that the same request twice succeeds twice
        _check_name(tables, name)
        del tables.by_network_name[network.name]
        network.name = name
        tables.by_network_name[name] = network_id
        tables.changed("networks", network_id)
    return {"network_id": network_id, "name": name}


def _list_networks(tables: Tables, request: Request) -> Message:
    admin = is_admin(tables, request)
    backbone: Message = {
        "id": BACKBONE,
        "name": "backbone",
        "join_rule": "open",
        "enterprise": False,
        "created": int(tables.created_at),
    }
    if admin:
        backbone["members"] = len(tables.nodes)
    listed = [backbone]
    for network_id, network in sorted(tables.networks.items()):
        row = _network_row(network)
        if admin:
            row["members"] = len(tables.members[network_id])
        listed.append(row)
    return {"networks": listed}


def _network_row(network: NetworkRecord) -> Message:
    row: Message = {
        "id": network.network_id,
        "name": network.name,
        "join_rule": network.join_rule,
        "enterprise": network.enterprise,
        "created": int(network.created_at),
    }
    if network.enterprise and network.max_members:
        row["max_members"] = network.max_members
    if network.enterprise and network.description:
        row["description"] = network.description
    if network.rules is not None:
        row |= {"managed": True, "rules": network.rules}
    if network.expr_policy is not None:
        row["has_expr_policy"] = True
    return row


def _list_nodes(tables: Tables, request: Request) -> Message:
    network_id = request.network()
    if network_id == BACKBONE:
        if not is_admin(tables, request):
            raise Refused("listing backbone nodes is not permitted (use lookup with a specific node_id)")
        return {"nodes": [_node_row(tables, BACKBONE, node) for _, node in sorted(tables.nodes.items())]}
    find_network(tables, network_id)
    rows: list[Any] = []
    for node_id, member in sorted(tables.members[network_id].items()):
        node = tables.nodes.get(node_id)
        if node is None:
            row: Message = {"node_id": node_id, "address": _address(network_id, node_id), "offline": True}
        else:
            row = _node_row(tables, network_id, node)
            if member.tags:
                row["member_tags"] = list(member.tags)
        rows.append(row | {"role": member.role})
    return {"nodes": rows}


def _node_row(tables: Tables, network_id: int, node: Node) -> Message:
    row: Message = {
        "node_id": node.node_id,
        "address": _address(network_id, node.node_id),
        "public": node.public,
        "last_seen": rfc3339(node.last_seen),
    }
    if node.hostname:
        row["hostname"] = node.hostname
    if node.public:
        row["real_addr"] = visible_endpoint(tables, node)
    if node.tags:
        row["tags"] = list(node.tags)
    if node.version:
        row["version"] = node.version
    return row | badge_fields(node)


def _address(network_id: int, node_id: NodeId) -> str:
    return str(Address(NetworkId(network_id), node_id))


HANDLERS: Final = {
    "create_network": _create_network,
    "join_network": _join_network,
    "leave_network": _leave_network,
    "delete_network": _delete_network,
    "rename_network": _rename_network,
    "list_networks": _list_networks,
    "list_nodes": _list_nodes,
}
