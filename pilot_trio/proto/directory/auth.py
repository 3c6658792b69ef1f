"""Who may: node signatures, the administrator's token, roles in a network (`spec/registry.md` §3)."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Final

from pilot_trio.address import NodeId, quote
from pilot_trio.crypto.identity import KEY_SIZE, verify
from pilot_trio.proto.directory.records import NetworkRecord, Node
from pilot_trio.proto.directory.refusal import Refused
from pilot_trio.proto.directory.request import PeerInfo, Request
from pilot_trio.proto.directory.tables import Tables
from pilot_trio.wire.registry import BAD_SIGNATURE, UNKNOWN_NODE, pair_text

SIGNATURE_MISSING: Final = "signature required for authenticated node"
_REMEMBERED_TEXTS: Final = 8  # signed texts remembered per node; a daemon repeats three of them every minute
_STANDARD: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def live_node(tables: Tables, node_id: int) -> Node:
    """Return a registered node; raise `Refused` with the text that makes a daemon register again."""
    node = tables.nodes.get(node_id)
    if node is None:
        raise Refused(f"node {node_id}: {UNKNOWN_NODE}")
    return node


def registered_node(tables: Tables, node_id: int) -> Node:
    """Like `live_node`, with the text of the network requests."""
    node = tables.nodes.get(node_id)
    if node is None:
        raise Refused(f"node {node_id} not registered")
    return node


def decode_base64(text: str) -> bytes:
    """Decode standard base64 with padding; raise `Refused` naming the first bad byte, as the reference does."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        bad = next((i for i, byte in enumerate(text.encode()) if byte not in _STANDARD), len(text))
        raise Refused(f"illegal base64 data at input byte {bad}") from None


def decode_public_key(text: str, what: str) -> str:
    """Return a key in canonical base64, so that one key has one spelling; raise `Refused` beginning with `what`."""
    try:
        key = decode_base64(text)
    except Refused as exc:
        raise Refused(f"{what}: {exc}") from None
    if len(key) != KEY_SIZE:
        raise Refused(f"{what}: invalid public key size: {len(key)}")
    return base64.b64encode(key).decode()


def signature_verifies(public_key: str, signature: bytes, text: str) -> bool:
    """Say whether `signature` over `text` was made with `public_key` (canonical base64)."""
    return verify(base64.b64decode(public_key), signature, text.encode())


def require_signature(tables: Tables, request: Request, node: Node, text: str, what: str = "") -> None:
    """Raise `Refused` unless the request carries `node`'s signature over `text`.

    `what` begins the texts of the handshake messages: `handshake request requires signature`, …
    """
    signature = request.text("signature")
    if not signature:
        raise Refused(f"{what} requires signature" if what else SIGNATURE_MISSING)
    remembered = node.verified_texts.get(text)
    # Ed25519 is deterministic and the texts carry no time, so a daemon sends the same bytes every minute. Equal bytes
    # under the same key need no second verification, which is most of the cost of a heartbeat.
    if remembered is None or not hmac.compare_digest(remembered.encode(), signature.encode()):
        failed = f"{what} {BAD_SIGNATURE}".lstrip()
        try:
            raw = decode_base64(signature)
        except Refused as exc:
            raise Refused(f"invalid signature encoding: {exc}") from None
        if not signature_verifies(tables.bindings[node.node_id].public_key, raw, text):
            raise Refused(failed)
        if len(node.verified_texts) >= _REMEMBERED_TEXTS:
            del node.verified_texts[next(iter(node.verified_texts))]
        node.verified_texts[text] = signature
    authenticate(tables, request.peer, node.node_id)


def authenticate(tables: Tables, peer: PeerInfo, node_id: NodeId) -> None:
    """Note that a connection has carried a signature by the present key of a node."""
    peer.authenticated_node, peer.authenticated_key = node_id, tables.bindings[node_id].public_key


def proven_node(tables: Tables, peer: PeerInfo) -> NodeId | None:
    """Return the node that a connection counts as (§3.4, policy), None if it has proven nothing that still holds."""
    node_id = peer.authenticated_node
    if node_id not in tables.nodes or tables.bindings[node_id].public_key != peer.authenticated_key:
        return None
    return node_id


def is_admin(tables: Tables, request: Request) -> bool:
    """Say whether the request carries the administrator's token."""
    return _same_secret(tables.settings.admin_token, request.text("admin_token"))


def require_admin(tables: Tables, request: Request) -> None:
    """Raise `Refused` unless the request carries the administrator's token."""
    if not tables.settings.admin_token:
        raise Refused("network creation is disabled")
    if not is_admin(tables, request):
        raise Refused("invalid admin token")


def require_signature_or_admin(tables: Tables, request: Request, node: Node, text: str) -> None:
    """Raise `Refused` unless `node` signed `text`; the administrator's token stands in for a missing or bad signature."""
    if not is_admin(tables, request):
        require_signature(tables, request, node, text)


def require_role(tables: Tables, request: Request, network: NetworkRecord, *roles: str) -> NodeId:
    """Raise `Refused` unless the sender may act with one of `roles` in `network` (§3.3).

    Returns the acting node, 0 for a holder of the administrator's or the network's token. The reference believes the
    claimed `node_id`; here it must also be proven, by a signature over `type:node_id:network_id` or by a connection that
    has carried one of that node's signatures.
    """
    if is_admin(tables, request) or _same_secret(network.admin_token, request.text("admin_token")):
        return NodeId(0)
    node_id = request.node()
    if not node_id:
        raise Refused("rbac: node_id required for role-based authorization")
    member = tables.members[network.network_id].get(node_id)
    if member is None:
        raise Refused(f"rbac: node {node_id} has no role in network {network.network_id}")
    if member.role not in roles:
        wanted = " ".join(roles)
        raise Refused(f"rbac: node {node_id} has role {quote(member.role)}, requires one of [{wanted}]")
    if proven_node(tables, request.peer) != node_id:
        node = live_node(tables, node_id)
        require_signature(tables, request, node, pair_text(request.type, node_id, network.network_id))
    return node_id


def _same_secret(secret: str, given: str) -> bool:
    """Compare in constant time; an empty secret equals nothing."""
    return bool(secret) and hmac.compare_digest(secret.encode(), given.encode())
