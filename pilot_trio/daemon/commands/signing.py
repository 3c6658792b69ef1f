"""Badges, recovery and signed requests (`spec/ipc.md` §5.8).

The node signs only what it has built itself from checked parts, for its own address and the current time: there is no way
to have it sign bytes of a caller's choice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from pilot_trio.daemon.commands.parts import NodeParts, later, passed_through, prefixed, reply
from pilot_trio.daemon.dispatch import Client, CommandTable, Later, Route
from pilot_trio.errors import AuthenticationError, CommandError, DecodeError, RegistryError
from pilot_trio.proto.envelope import (
    DEFAULT_WINDOW,
    ONLINE_WINDOW,
    Envelope,
    check_enrollment,
    decode_base64,
)
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.json_text import member, parse_object
from pilot_trio.wire.registry import Message

KEYS_MAX: Final = 1024  # keys of other nodes kept for verifying; the one unused for longest goes first
WINDOW_MAX: Final = 9_223_372_036  # seconds that a caller may allow clocks to differ; 64 bits of nanoseconds

_log = logging.getLogger("pilot_trio.node")


def routes(node: NodeParts, *, wall_time: Callable[[], float] = time.time) -> CommandTable:
    """Return the rows of this module's commands; `wall_time` gives Unix seconds."""
    attestations = Attestations(node)
    requests = SignedRequests(node, wall_time)
    return {
        Code.SUBMIT_BADGE: Route(attestations.submit_badge),
        Code.ENROLL_RECOVERY: Route(attestations.enroll_recovery),
        Code.SIGN_ENVELOPE: Route(requests.sign),
        Code.VERIFY_ENVELOPE: Route(requests.verify),
    }


class Attestations:
    """What a third party says of this node, handed on to the registry with the node's signature."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node

    def submit_badge(self, _client: Client, payload: bytes) -> Later:
        """Attach a badge to the node's record."""
        with prefixed("submit_badge: bad payload: "):
            record = parse_object(payload)
            badge, badge_sig = member(record, "badge", str, ""), member(record, "badge_sig", str, "")
        if not badge or not badge_sig:
            raise DecodeError("submit_badge: badge and badge_sig required")
        fields: dict[str, Any] = {"badge": badge, "badge_sig": badge_sig}
        return self._hand_on("submit_badge", badge, fields, Code.SUBMIT_BADGE_OK)

    def enroll_recovery(self, _client: Client, payload: bytes) -> Later:
        """Enroll the node for the recovery of its id after a loss of its key."""
        with prefixed("enroll_recovery: bad payload: "):
            record = parse_object(payload)
            enrollment = member(record, "enrollment", str, "")
            enrollment_sig = member(record, "enrollment_sig", str, "")
        if not enrollment or not enrollment_sig:
            raise DecodeError("enroll_recovery: enrollment and enrollment_sig required")
        with prefixed("enroll_recovery: bad enrollment: "):
            commitment = check_enrollment(enrollment)
        fields = {"enrollment": enrollment, "enrollment_sig": enrollment_sig}
        return self._hand_on("enroll_recovery", commitment, fields, Code.ENROLL_RECOVERY_OK)

    def _hand_on(self, type_: str, signed: str, fields: dict[str, Any], code: Code) -> Later:
        async def run() -> bytes:
            state = self._node.state
            text = f"{type_}:{state.node_id}:{signed}"
            signature = base64.b64encode(state.identity.sign(text.encode("utf-8", "replace"))).decode()
            answer = await self._node.registry.call(type_, node_id=state.node_id, signature=signature, **fields)
            return passed_through(code, answer)

        return later(f"{type_}: ", run)


class SignedRequests:
    """Makes envelopes in this node's name and checks those of others."""

    def __init__(self, node: NodeParts, wall_time: Callable[[], float]) -> None:
        self._node = node
        self._wall_time = wall_time
        self._keys: OrderedDict[int, bytes] = OrderedDict()  # of other nodes, used lately last

    def sign(self, _client: Client, payload: bytes) -> bytes:
        """Make an envelope for a body and an audience, and sign it."""
        with prefixed("sign_envelope: bad payload: "):
            record = parse_object(payload)
            audience, nonce = member(record, "audience", str, ""), member(record, "nonce", str, "")
            body_hash, body_b64 = member(record, "body_hash", str, ""), member(record, "body_b64", str, "")
        with prefixed("sign_envelope: "):
            if not audience:
                raise DecodeError("audience required")
            body_hash = _hash_of(body_hash, body_b64)
            state = self._node.state
            if not state.registered:
                raise CommandError("daemon not registered (no address)")
            now = int(self._wall_time())
            envelope = Envelope(state.address, now, nonce or secrets.token_hex(8), body_hash, audience)
            body = {
                "type": "sign_envelope_ok",
                "address": str(state.address),
                "envelope": str(envelope),
                "signature": state.identity.sign_text(str(envelope)),
            }
            return reply(Code.SIGN_ENVELOPE_OK, body)

    def verify(self, _client: Client, payload: bytes) -> Later:
        """Check an envelope and its signature. A failed check is an answer, not an error."""
        with prefixed("verify_envelope: bad payload: "):
            record = parse_object(payload)
            text, signature = member(record, "envelope", str, ""), member(record, "signature", str, "")
            window = int(min(_number(record, "max_skew_secs"), WINDOW_MAX))
            standing = member(record, "check_standing", bool, False)
        if not text or not signature:
            raise DecodeError("verify_envelope: envelope and signature required")

        async def run() -> bytes:
            try:
                body = await self._check(text, signature, window if window > 0 else DEFAULT_WINDOW, standing)
            except (DecodeError, AuthenticationError) as exc:
                body = {"valid": False, "reason": str(exc)}
            return reply(Code.VERIFY_ENVELOPE_OK, {"type": "verify_envelope_ok", **body})

        return later("verify_envelope: ", run)

    async def _check(self, text: str, signature: str, window: int, standing: bool) -> dict[str, Any]:
        envelope = Envelope.parse(text)
        envelope.check_fresh(self._wall_time(), window)
        node_id = envelope.address.node
        via, key = await self._key_of(node_id)
        try:
            envelope.check_signature(signature, key)
        except AuthenticationError:
            # A key may have been replaced since we saw it; only the registry's word on it is final.
            if via == "registry" or node_id == self._node.state.node_id:
                raise
            self._keys.pop(node_id, None)
            via, key = "registry", await self._registered_key(node_id)
            envelope.check_signature(signature, key)
        body = {
            "valid": True,
            "node_id": node_id,
            "address": str(envelope.address),
            "trusted": self._node.trust.admits(node_id),
            "verified_via": via,
        }
        return body | (await self._standing(envelope) if standing else {})

    async def _key_of(self, node_id: int) -> tuple[str, bytes]:
        state = self._node.state
        if node_id == state.node_id and state.registered:
            return "cache", state.identity.public_key
        if (key := self._keys.get(node_id)) is not None:
            self._keys.move_to_end(node_id)
            return "cache", key
        return "registry", await self._registered_key(node_id)

    async def _registered_key(self, node_id: int) -> bytes:
        try:
            record = await self._node.resolver.lookup(node_id)
        except RegistryError as exc:
            raise AuthenticationError(
                f"public key for node {node_id} unavailable: lookup node {node_id}: {exc}"
            ) from exc
        try:
            key = base64.b64decode(str(record.get("public_key") or ""), validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if key:
            while len(self._keys) >= KEYS_MAX:
                self._keys.popitem(last=False)
            self._keys[node_id] = key
        return key

    async def _standing(self, envelope: Envelope) -> dict[str, Any]:
        """Return what the registry says of the signer besides the key; what it does not say is left out."""
        try:
            record = await self._node.resolver.lookup(envelope.address.node)
        except RegistryError as exc:
            _log.debug("standing unknown", extra={"kv": {"node_id": envelope.address.node, "error": str(exc)}})
            return {}
        return _standing_fields(record, envelope, self._wall_time())


def _standing_fields(record: Message, envelope: Envelope, now: float) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if isinstance(seen := record.get("last_seen_unix"), int) and seen:
        fields["last_seen_unix"] = seen
        fields["online"] = abs(now - seen) <= ONLINE_WINDOW
    if isinstance(generation := record.get("key_generation"), int):
        fields["key_generation"] = generation
    if isinstance(networks := record.get("networks"), list):
        fields["network_member"] = envelope.address.network in networks
    return fields


def _hash_of(body_hash: str, body_b64: str) -> str:
    if body_hash and body_b64:
        raise DecodeError("body_hash and body_b64 are mutually exclusive")
    if body_b64:
        return hashlib.sha256(decode_base64(body_b64, "body_b64 not base64: ")).hexdigest()
    if not body_hash:
        raise DecodeError("body_hash or body_b64 required")
    return body_hash


def _number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError(f"json: cannot unmarshal value into Go struct field .{key} of type float64")
    return value
