"""What a network allows: port policy and expression policy (`spec/registry.md` §7)."""

from __future__ import annotations

from typing import Any, Final

from pilot_trio.address import BACKBONE, PORT_MAX
from pilot_trio.proto.directory.auth import require_role
from pilot_trio.proto.directory.documents import parse_expr_policy
from pilot_trio.proto.directory.members import enterprise_network
from pilot_trio.proto.directory.networks import find_network
from pilot_trio.proto.directory.records import NetworkRecord
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message

MEMBERS_MAX: Final = 10_000  # highest settable limit of members; spec registry §2.6
ALLOWED_PORTS_MAX: Final = 100  # entries; spec registry §2.6
DESCRIPTION_MAX: Final = 256  # characters; spec registry §2.6


def _get_network_policy(tables: Tables, request: Request) -> Message:
    network_id = request.network()
    if network_id == BACKBONE:  # every daemon asks at its start; §1
        return {"network_id": BACKBONE, "max_members": 0, "allowed_ports": [], "description": ""}
    return _policy(find_network(tables, network_id))


def _policy(network: NetworkRecord) -> Message:
    return {
        "network_id": network.network_id,
        "max_members": network.max_members,
        "allowed_ports": list(network.allowed_ports),
        "description": network.description,
    }


def _set_network_policy(tables: Tables, request: Request) -> Message:
    network = enterprise_network(tables, request.network())
    require_role(tables, request, network, "owner", "admin")
    max_members, ports, description = network.max_members, network.allowed_ports, network.description
    if "max_members" in request.message:
        max_members = _checked_max_members(request.raw("max_members"), len(tables.members[network.network_id]))
    if "allowed_ports" in request.message:
        ports = _checked_ports(request.raw("allowed_ports"))
    if "description" in request.message:
        description = request.text("description")
        if len(description) > DESCRIPTION_MAX:
            raise Refused(f"policy description too long (max {DESCRIPTION_MAX} chars)")
    network.max_members, network.allowed_ports, network.description = max_members, ports, description
    tables.changed("networks", network.network_id)
    return _policy(network)


def _checked_max_members(given: Any, members: int) -> int:
    value = _integer(given)
    if value is None or not 0 <= value <= MEMBERS_MAX:
        raise Refused(f"invalid max_members (must be integer 0-{MEMBERS_MAX})")
    if 0 < value < members:
        raise Refused(f"cannot set max_members to {value}: network already has {members} members")
    return value


def _checked_ports(given: Any) -> list[int]:
    if given is None:
        return []
    ports = given if isinstance(given, list) else [None]
    if len(ports) > ALLOWED_PORTS_MAX:
        raise Refused(f"too many allowed_ports (max {ALLOWED_PORTS_MAX})")
    checked = [port for port in map(_integer, ports) if port is not None and 1 <= port <= PORT_MAX]
    if len(checked) != len(ports):
        raise Refused(f"invalid port number in allowed_ports (must be integer 1-{PORT_MAX})")
    return checked


def _integer(given: Any) -> int | None:
    if type(given) is float and given.is_integer():
        return int(given)
    return given if type(given) is int else None


def _set_expr_policy(tables: Tables, request: Request) -> Message:
    network = find_network(tables, request.network())
    require_role(tables, request, network, "owner", "admin")
    if "expr_policy" not in request.message:
        raise Refused("expr_policy field is required")
    network.expr_policy = parse_expr_policy(request.raw("expr_policy"))
    tables.changed("networks", network.network_id)
    answer: Message = {"network_id": network.network_id}
    if network.expr_policy is None:
        answer["cleared"] = True
    return answer


def _get_expr_policy(tables: Tables, request: Request) -> Message:
    network_id = request.network()
    answer: Message = {"network_id": network_id}
    if network_id != BACKBONE and (policy := find_network(tables, network_id).expr_policy) is not None:
        answer["expr_policy"] = policy
    return answer


HANDLERS: Final = {
    "get_network_policy": _get_network_policy,
    "set_network_policy": _set_network_policy,
    "set_expr_policy": _set_expr_policy,
    "get_expr_policy": _get_expr_policy,
}
