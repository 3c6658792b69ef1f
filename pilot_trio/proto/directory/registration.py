"""Being a node: register, heartbeat, rotate the key, leave, and be reaped (`spec/registry.md` §4.1, §4.2, §4.6, §9.1)."""

from __future__ import annotations

from typing import Final

from pilot_trio.address import BACKBONE, BROADCAST_NODE, Address, NodeId
from pilot_trio.proto.directory.auth import (
    authenticate,
    decode_base64,
    decode_public_key,
    live_node,
    require_signature,
    require_signature_or_admin,
    signature_verifies,
)
from pilot_trio.proto.directory.endpoints import stored_endpoint
from pilot_trio.proto.directory.names import claim_hostname
from pilot_trio.proto.directory.records import Binding, Node
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import BAD_SIGNATURE, Message, heartbeat_text, node_text, register_text, rotate_text
from pilot_trio.wire.times import rfc3339

PROTOCOL_VERSION: Final = 1  # as `register_ok` says; spec registry §4.1
KEY_EXPIRY_WARNING: Final = 86_400.0  # seconds before a key expires from which heartbeats warn; spec registry §4.2
ENDPOINT_MAX: Final = 261  # characters of an endpoint; a DNS name of 253, brackets, colon, port
OWNER_MAX: Final = 320  # characters; the longest e-mail address
VERSION_MAX: Final = 64  # characters of the version that a node reports; semantic versions with build data fit
LAN_ADDRESSES_MAX: Final = 32  # kept per node; further ones are ignored, a host with many interfaces is no error
REAP_GAP_MAX: Final = 60.0  # seconds between two passes; if it took longer, the machine slept and nodes were not heard
REAP_BATCH: Final = 10_000  # nodes reaped per pass; spec registry §9.1


def _register(tables: Tables, request: Request) -> Message:
    advertised, public_key = _checked_registration(tables, request)
    endpoint = stored_endpoint(advertised, request.peer.host, request.peer.port)
    node_id = tables.by_key.get(public_key)
    signed = bool(request.text("signature"))
    if node_id is None:
        binding = _allocate(tables, public_key, request.now)
    else:
        binding = tables.bindings[node_id]
        if binding.verified and not signed:
            text = f"node {node_id}: unsigned registration cannot modify a signature-verified key"
            raise Refused(text)
    _update_binding(tables, binding, owner=request.text("owner"), verified=signed)
    node = _update_node(tables, binding.node_id, endpoint, request)
    if signed:
        authenticate(tables, request.peer, node.node_id)
    answer: Message = {
        "node_id": node.node_id,
        "address": str(Address(BACKBONE, node.node_id)),
        "network_id": BACKBONE,
        "public_key": public_key,
        "observed_addr": node.endpoint,
        "protocol_version": PROTOCOL_VERSION,
    }
    if wanted := request.text("hostname"):
        try:
            claim_hostname(tables, node, wanted)
        except Refused as exc:
            answer["hostname_error"] = str(exc)
    if node.hostname:
        answer["hostname"] = node.hostname
    return answer


def _checked_registration(tables: Tables, request: Request) -> tuple[str, str]:
    """Return the advertised endpoint and the canonical key of a registration that may proceed."""
    advertised, given_key = request.text("listen_addr"), request.text("public_key")
    signature = request.text("signature")
    if not given_key:
        raise Refused("registration requires public_key")
    for what, value, maximum in (
        ("listen_addr", advertised, ENDPOINT_MAX),
        ("owner", request.text("owner"), OWNER_MAX),
        ("version", request.text("version"), VERSION_MAX),
    ):
        if len(value) > maximum:
            raise Refused(f"registration: {what} too long (max {maximum} chars)")
    if not signature:
        public_key = decode_public_key(given_key, "invalid public key")
        if tables.settings.require_signature:
            raise Refused("registration: signature required")
        return advertised, public_key
    try:
        public_key = decode_public_key(given_key, "")
    except Refused:
        raise Refused("registration: invalid public_key") from None
    try:
        raw = decode_base64(signature)
    except Refused:
        raise Refused("registration: invalid signature encoding") from None
    # Over the address and the key as sent: both are rewritten later.
    if not signature_verifies(public_key, raw, register_text(advertised, given_key)):
        raise Refused(f"registration: {BAD_SIGNATURE}")
    return advertised, public_key


def _allocate(tables: Tables, public_key: str, now: float) -> Binding:
    if len(tables.bindings) >= tables.settings.max_nodes:
        raise Refused("registry full")
    if tables.next_node >= BROADCAST_NODE:
        raise Refused("node ID space exhausted")
    binding = Binding(NodeId(tables.next_node), public_key, created_at=now)
    tables.next_node += 1
    tables.changed("meta", "counters")
    tables.bind(binding)
    return binding


def _update_binding(tables: Tables, binding: Binding, *, owner: str, verified: bool) -> None:
    owner, verified = owner or binding.owner, verified or binding.verified
    if (owner, verified) != (binding.owner, binding.verified):
        binding.owner, binding.verified = owner, verified
        tables.changed("bindings", binding.node_id)


def _update_node(tables: Tables, node_id: NodeId, endpoint: str, request: Request) -> Node:
    """Refresh the live record, or make one: a node that comes back starts private, without name or tags."""
    node = tables.nodes.get(node_id)
    if node is None:
        node = tables.nodes[node_id] = Node(node_id, endpoint, request.now)
    node.endpoint = endpoint
    node.lan_addrs = _lan_addresses(request)
    node.version = request.text("version") or node.version
    node.relay_only = request.flag("relay_only")
    node.heard(request.now)
    tables.changed("nodes", node_id)
    return node


def _lan_addresses(request: Request) -> list[str]:
    given = request.raw("lan_addrs")
    if not isinstance(given, list):
        return []
    fitting = [text for text in given if isinstance(text, str) and text.isascii() and 0 < len(text) <= ENDPOINT_MAX]
    return fitting[:LAN_ADDRESSES_MAX]


def _heartbeat(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    require_signature(tables, request, node, heartbeat_text(node.node_id))
    expires_at = tables.bindings[node.node_id].expires_at
    answer: Message = {"time": int(request.now)}
    if expires_at is not None:
        if request.now >= expires_at:
            raise Refused(f"node {node.node_id}: key expired at {rfc3339(expires_at)}")
        if request.now >= expires_at - KEY_EXPIRY_WARNING:
            answer["key_expiry_warning"] = True
    node.heard(request.now)
    return answer


def _rotate_key(tables: Tables, request: Request) -> Message:
    node = live_node(tables, request.node())
    binding = tables.bindings[node.node_id]
    given_key, signature = request.text("new_public_key"), request.text("signature")
    if not signature:
        raise Refused("rotate_key requires a valid signature")
    if not given_key:
        raise Refused("rotate_key requires new_public_key")
    new_key = decode_public_key(given_key, "invalid new_public_key")
    try:
        raw = decode_base64(signature.replace("-", "+").replace("_", "/"))
    except Refused as exc:
        raise Refused(f"invalid signature encoding: {exc}") from None
    text = rotate_text(node.node_id, given_key)
    # A repeated request, whose first answer was lost, is signed with the key that was rotated away.
    repeated = new_key == binding.public_key and bool(binding.previous_key)
    if not signature_verifies(binding.previous_key if repeated else binding.public_key, raw, text):
        raise Refused(BAD_SIGNATURE)
    holder = tables.by_key.get(new_key)
    if holder not in (None, node.node_id):
        raise Refused(f"new_public_key already belongs to node {holder}")
    if new_key != binding.public_key:
        tables.rebind(binding, new_key, request.now)
    return {"node_id": node.node_id, "address": str(Address(BACKBONE, node.node_id)), "public_key": new_key}


def _deregister(tables: Tables, request: Request) -> Message:
    node = tables.nodes.get(request.node())
    if node is None:
        return {}  # asked twice, or after reaping: the wish is fulfilled
    require_signature_or_admin(tables, request, node, node_text("deregister", node.node_id))
    for network_id in list(tables.joined.get(node.node_id, ())):
        tables.remove_member(network_id, node.node_id)
    for network_id in list(tables.invites.get(node.node_id, ())):
        tables.drop_invite(node.node_id, network_id)
    tables.remove_node(node)
    return {}


def reap(tables: Tables, now: float) -> list[NodeId]:
    """Remove nodes not heard of for `stale_after`, at most `REAP_BATCH`; memberships, trust and ids stay (§9.1)."""
    passed = now - tables.reaped_at
    tables.reaped_at = now
    if not 0 <= passed <= REAP_GAP_MAX:
        # The machine slept or its clock was set. Nobody could be heard in that time, so it counts against nobody.
        for node in tables.nodes.values():
            node.stale_from = min(now, node.stale_from + max(passed, 0.0))
    limit = now - tables.settings.stale_after
    stale = [node for node in tables.nodes.values() if node.stale_from <= limit][:REAP_BATCH]
    for node in stale:
        tables.remove_node(node)
    return [node.node_id for node in stale]


HANDLERS: Final = {
    "register": _register,
    "heartbeat": _heartbeat,
    "rotate_key": _rotate_key,
    "deregister": _deregister,
}
