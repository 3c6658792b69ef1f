"""Finding nodes: lookup, resolve, punch, and the beacons (`spec/registry.md` §3.4, §4.3, §4.4, §4.7, §4.8)."""

from __future__ import annotations

from typing import Final

from pilot_trio.address import BACKBONE, Address
from pilot_trio.proto.directory.auth import is_admin, live_node, require_signature
from pilot_trio.proto.directory.endpoints import split_host_port
from pilot_trio.proto.directory.records import Node
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Beacon, Tables
from pilot_trio.wire.registry import Message, pair_text, resolve_text
from pilot_trio.wire.times import rfc3339

BEACON_LIFETIME: Final = 60.0  # seconds without a refresh; spec registry §4.8
BEACONS_MAX: Final = 256  # announced at a time; the whole list goes into every answer
BEACON_ADDRESS_MAX: Final = 261  # characters; as for any endpoint
_DAY: Final = 86_400.0  # seconds


def visible_endpoint(tables: Tables, node: Node) -> str:
    """Return the endpoint that others may learn: the beacon's for a relay-only node."""
    return tables.settings.beacon_address if node.relay_only else node.endpoint


def badge_fields(node: Node) -> Message:
    """Return what answers say of a node's badge; nothing without one."""
    if (badge := node.badge) is None:
        return {}
    return {
        "verified": True,
        "badge": badge.text,
        "badge_sig": badge.signature,
        "verification_provider": badge.provider,
        "verified_at": rfc3339(badge.verified_at),
    }


def key_age_days(tables: Tables, node: Node, now: float) -> int:
    """Return whole days since the node's key was made or last rotated."""
    binding = tables.bindings[node.node_id]
    since = binding.created_at if binding.rotated_at is None else binding.rotated_at
    return max(0, int((now - since) / _DAY))


def _lookup(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    binding = tables.bindings[node.node_id]
    answer: Message = {
        "node_id": node.node_id,
        "address": str(Address(BACKBONE, node.node_id)),
        "networks": tables.networks_of(node.node_id),
        "public_key": binding.public_key,
        "public": node.public,
        "last_seen_unix": int(node.last_seen),
        "key_generation": binding.rotations,
    }
    if node.hostname:
        answer["hostname"] = node.hostname
    if node.tags:
        answer["tags"] = list(node.tags)
    if node.version:
        answer["version"] = node.version
    if node.public:
        answer["real_addr"] = answer["endpoint"] = visible_endpoint(tables, node)
        if node.relay_only:
            answer["relay_only"] = True
    if node.badge is not None:
        answer |= badge_fields(node)
    return answer


def _resolve(tables: Tables, request: Request) -> Message:
    requester_id = request.node("requester_id")
    requester = tables.nodes.get(requester_id)
    if requester is None:
        raise Refused(f"resolve denied: requester node {requester_id} is not registered")
    node_id = request.node()
    require_signature(tables, request, requester, resolve_text(requester_id, node_id))
    node = live_node(tables, node_id)
    if not (node.public or tables.related(requester_id, node_id)):
        raise Refused(f"resolve denied: node {node_id} is private (establish mutual trust first)")
    answer: Message = {
        "node_id": node_id,
        "real_addr": visible_endpoint(tables, node),
        "key_age_days": key_age_days(tables, node, request.now),
    }
    if node.relay_only:
        answer["relay_only"] = True
    elif node.lan_addrs:
        answer["lan_addrs"] = list(node.lan_addrs)
    return answer


def _punch(tables: Tables, request: Request) -> Message:
    requester_id, a, b = request.node("requester_id"), request.node("node_a"), request.node("node_b")
    if requester_id not in (a, b):
        raise Refused("punch denied: requester must be participant")
    for node_id in (a, b):
        if node_id not in tables.nodes:
            raise Refused(f"node {node_id} not found")
    require_signature(tables, request, tables.nodes[requester_id], pair_text("punch", a, b))
    other = tables.nodes[b if requester_id == a else a]
    if not (other.public or tables.related(a, b)):  # the rule of resolve: punch must not be the way around it
        raise Refused(f"resolve denied: node {other.node_id} is private (establish mutual trust first)")
    return {
        "node_a": a,
        "node_a_addr": visible_endpoint(tables, tables.nodes[a]),
        "node_b": b,
        "node_b_addr": visible_endpoint(tables, tables.nodes[b]),
    }


def _beacon_list(tables: Tables, request: Request) -> Message:
    _drop_silent_beacons(tables, request.now)
    return {"beacons": [{"id": number, "addr": beacon.address} for number, beacon in sorted(tables.beacons.items())]}


def _beacon_register(tables: Tables, request: Request) -> Message:
    number, address = request.number("beacon_id"), request.text("addr")
    if not number:
        raise Refused("beacon_id required")
    if not address:
        raise Refused("addr required")
    parts = split_host_port(address)
    if parts is None or not all(parts) or len(address) > BEACON_ADDRESS_MAX:
        raise Refused("beacon addr invalid: write host:port")
    if not (request.peer.loopback or is_admin(tables, request)):  # daemons may move to a listed beacon
        raise Refused("invalid admin token")
    _drop_silent_beacons(tables, request.now)
    if number not in tables.beacons and len(tables.beacons) >= BEACONS_MAX:
        raise Refused(f"too many beacons (max {BEACONS_MAX})")
    tables.beacons[number] = Beacon(address, request.now)
    return {"beacon_id": number}


def _drop_silent_beacons(tables: Tables, now: float) -> None:
    for number, beacon in list(tables.beacons.items()):
        if not 0 <= now - beacon.announced_at < BEACON_LIFETIME:
            del tables.beacons[number]


HANDLERS: Final = {
    "lookup": _lookup,
    "resolve": _resolve,
    "punch": _punch,
    "beacon_list": _beacon_list,
    "beacon_register": _beacon_register,
}
