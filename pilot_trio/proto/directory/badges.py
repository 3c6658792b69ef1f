"""Badges and recovery: claims about a node, signed by issuers whose keys are pinned here (`spec/registry.md` §8).

A claim is a line of colon-separated fields, signed as a whole; its `kid` chooses the issuer's key. The issuer's signature
is checked before any field is believed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

from pilot_trio.address import BACKBONE, Address
from pilot_trio.crypto.identity import verify
from pilot_trio.proto.directory.auth import decode_base64, decode_public_key, live_node, require_signature
from pilot_trio.proto.directory.records import Badge, Binding
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import Message

CLAIM_MAX: Final = 1024  # characters of a badge, enrolment or recovery line; several times the longest real one
RECOVERY_AHEAD_MAX: Final = 1800.0  # seconds that a recovery may be valid for; spec registry §8
NONCES_MAX: Final = 10_000  # spent recovery nonces remembered until they expire; beyond it recoveries are refused


def _submit_badge(tables: Tables, request: Request) -> Message:
    node, text = live_node(tables, request.node()), request.text("badge")
    require_signature(tables, request, node, f"submit_badge:{node.node_id}:{text}")
    fields = _claim(text, request.text("badge_sig"), "pilotbadge", (7, 8), 6, tables.settings.badge_keys, "badge")
    verified_at, expires_at = _decimal(fields[4]), _decimal(fields[5])
    if _decimal(fields[2]) != node.node_id or verified_at is None or expires_at is None:
        raise Refused("badge verification failed: invalid badge: does not belong to this node")
    if expires_at and expires_at <= request.now:
        raise Refused("badge verification failed: badge expired")
    node.badge = Badge(text, request.text("badge_sig"), fields[3], float(verified_at))
    tables.changed("nodes", node.node_id)
    return {"node_id": node.node_id, "provider": fields[3]}


def _enroll_recovery(tables: Tables, request: Request) -> Message:
    node, text = live_node(tables, request.node()), request.text("enrollment")
    parts = text.split(":", 5)
    commitment = parts[4] if len(parts) > 4 else ""
    require_signature(tables, request, node, f"enroll_recovery:{node.node_id}:{commitment}")
    signature = request.text("enrollment_sig")
    fields = _claim(text, signature, "pilotenroll", (7,), 6, tables.settings.badge_keys, "enrollment")
    if _decimal(fields[2]) != node.node_id or not fields[4]:
        raise Refused("enrollment verification failed: invalid enrollment: does not belong to this node")
    tables.bindings[node.node_id].commitment = fields[4]
    tables.changed("bindings", node.node_id)
    return {"node_id": node.node_id}


def _recover_identity(tables: Tables, request: Request) -> Message:
    text, signature, node_id = request.text("recovery"), request.text("recovery_sig"), request.node()
    fields = _claim(text, signature, "pilotrecover", (8,), 7, tables.settings.recovery_keys, "recovery")
    new_key = decode_public_key(request.text("new_public_key"), "invalid new_public_key")
    _, _, claimed_node, claimed_key, commitment, expiry, nonce, _ = fields
    if _decimal(claimed_node) != node_id or claimed_key != request.text("new_public_key"):
        raise Refused("recovery verification failed: invalid recovery: does not belong to this node and key")
    binding = tables.bindings.get(node_id)
    if binding is None:
        live_node(tables, node_id)
        raise AssertionError("a live node has a binding")
    if new_key == binding.public_key and nonce in tables.nonces:
        return _recovered(binding)  # asked twice: the first time has done it
    expires_at = _checked_expiry(tables, nonce, _decimal(expiry), request.now)
    if not commitment or commitment != binding.commitment:
        raise Refused("recovery verification failed: invalid commitment")
    holder = tables.by_key.get(new_key)
    if holder not in (None, node_id):
        raise Refused(f"new_public_key already belongs to node {holder}")
    if new_key != binding.public_key:
        tables.rebind(binding, new_key, request.now)
    binding.previous_key = ""  # the lost key must not be able to repeat anything
    binding.expires_at = None
    tables.changed("bindings", node_id)
    tables.nonces[nonce] = expires_at
    tables.changed("nonces", nonce)
    return _recovered(binding)


def _recovered(binding: Binding) -> Message:
    address = str(Address(BACKBONE, binding.node_id))
    return {"node_id": binding.node_id, "address": address, "public_key": binding.public_key}


def _checked_expiry(tables: Tables, nonce: str, expires_at: int | None, now: float) -> float:
    """Return when a recovery expires; raise `Refused` if it is too old, valid for too long, or its nonce was used."""
    if expires_at is None or not now < expires_at <= now + RECOVERY_AHEAD_MAX:
        raise Refused("recovery verification failed: recovery expired")
    if not nonce or nonce in tables.nonces:
        raise Refused("recovery verification failed: nonce already used")
    for spent, expiry in list(tables.nonces.items()):
        if expiry <= now:  # refused for its age from now on
            del tables.nonces[spent]
            tables.changed("nonces", spent)
    if len(tables.nonces) >= NONCES_MAX:
        raise Refused("too many recoveries, retry later")
    return float(expires_at)


def _claim(
    text: str, signature: str, kind: str, lengths: tuple[int, ...], kid_at: int, keys: Mapping[str, str], what: str
) -> list[str]:
    """Return the fields of a claim whose issuer's signature verifies; raise `Refused`."""
    fields = text.split(":")
    if fields[:2] != [kind, "v1"] or len(fields) not in lengths or len(text) > CLAIM_MAX:
        raise Refused(f"{what} verification failed: invalid {what} format")
    key = keys.get(fields[kid_at])
    if key is None:
        raise Refused(f"{what} verification failed: invalid key id")
    try:
        raw = decode_base64(signature)
    except Refused as exc:
        raise Refused(f"{what} verification failed: invalid signature encoding: {exc}") from None
    if not verify(base64.b64decode(key), raw, text.encode()):
        raise Refused(f"{what} verification failed: badgeverify: badge signature verification failed")
    return fields


def _decimal(text: str) -> int | None:
    """Return a canonical decimal's value: no sign, no leading zeros, no more than 64 bits."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or (len(text) > 1 and text[0] == "0"):
        return None
    return int(text)


HANDLERS: Final = {
    "submit_badge": _submit_badge,
    "enroll_recovery": _enroll_recovery,
    "recover_identity": _recover_identity,
}
