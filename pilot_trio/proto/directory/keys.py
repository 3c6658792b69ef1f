"""Age and expiry of keys (`spec/registry.md` §8)."""

from __future__ import annotations

from typing import Final

from pilot_trio.proto.directory.auth import live_node, require_signature_or_admin
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.routes import key_age_days
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message, node_text
from pilot_trio.wire.times import parse_rfc3339, rfc3339

EXPIRY_AHEAD_MAX: Final = 3653 * 86_400.0  # seconds; ten years, spec registry §8


def _get_key_info(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    binding = tables.bindings[node.node_id]
    answer: Message = {
        "node_id": node.node_id,
        "created_at": rfc3339(binding.created_at),
        "rotate_count": binding.rotations,
        "key_age_days": key_age_days(tables, node, request.now),
    }
    if binding.rotated_at is not None:
        answer["rotated_at"] = rfc3339(binding.rotated_at)
    if binding.expires_at is not None:
        answer["expires_at"] = rfc3339(binding.expires_at)
    return answer


def _set_key_expiry(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    require_signature_or_admin(tables, request, node, node_text("set_key_expiry", node.node_id))
    if not any(tables.networks[network_id].enterprise for network_id in tables.joined.get(node.node_id, ())):
        raise Refused("enterprise feature: key expiry requires enterprise network membership")
    given = request.text("expires_at")
    expires_at = None if given == "never" else parse_rfc3339(given)
    if given != "never":
        if expires_at is None:
            raise Refused('invalid expires_at: must be RFC 3339 or "never"')
        if expires_at <= request.now:
            raise Refused("invalid expires_at: must be in the future")
        if expires_at > request.now + EXPIRY_AHEAD_MAX:
            raise Refused("invalid expires_at: must be within 10 years")
    tables.bindings[node.node_id].expires_at = expires_at
    tables.changed("bindings", node.node_id)
    return {"node_id": node.node_id, "expires_at": "never" if expires_at is None else rfc3339(expires_at)}


HANDLERS: Final = {"get_key_info": _get_key_info, "set_key_expiry": _set_key_expiry}
