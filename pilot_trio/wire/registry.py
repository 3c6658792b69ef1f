"""Registry messages: the strings that nodes sign and the shape of answers (`spec/registry.md` §2, §3.1).

A request is a JSON object `{"type": T, …}` in a length-prefixed frame; success is `{"type": T + "_ok", …}`, failure
`{"type": "error", "error": TEXT}`. Signatures are base64 Ed25519 over the ASCII strings built here: no time, no nonce.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pilot_trio.errors import DecodeError

Message = dict[str, Any]

UNKNOWN_NODE: Final = "node not found"  # daemons re-register on this substring of a heartbeat's error; §2.2
BAD_SIGNATURE: Final = "signature verification failed"  # and on this one; §2.2


def decode_message(body: bytes) -> Message:
    """Read one JSON object; raise `DecodeError` for anything else. Deep nesting is refused like bad syntax."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"not a JSON message: {exc}") from exc
    if not isinstance(value, dict):
        raise DecodeError(f"a message must be a JSON object, got {type(value).__name__}")
    return value


def register_text(listen_addr: str, public_key_b64: str) -> str:
    """What `register` signs: the address exactly as sent, before the server rewrites it."""
    return f"register:{listen_addr}:{public_key_b64}"


def heartbeat_text(node: int) -> str:
    """What `heartbeat` signs."""
    return f"heartbeat:{node}"


def resolve_text(requester: int, node: int) -> str:
    """What `resolve` signs: the requester comes first."""
    return f"resolve:{requester}:{node}"


def node_text(message_type: str, node: int) -> str:
    """What the messages about oneself sign: `set_hostname`, `set_visibility`, `set_tags`, `poll_handshakes`,
    `deregister`, `poll_invites`, `set_key_expiry`.
    """
    return f"{message_type}:{node}"


def pair_text(message_type: str, node: int, peer: int) -> str:
    """What the messages about a pair sign: `report_trust` and `revoke_trust` (peer), `join_network`, `leave_network` and
    `respond_invite` (network), `punch` (both nodes).
    """
    return f"{message_type}:{node}:{peer}"


def handshake_text(from_node: int, to_node: int) -> str:
    """What `request_handshake` signs; the trust handshake on port 444 signs the same string."""
    return f"handshake:{from_node}:{to_node}"


def respond_text(node: int, peer: int) -> str:
    """What `respond_handshake` signs, for accept and reject alike."""
    return f"respond:{node}:{peer}"


def rotate_text(node: int, new_public_key_b64: str) -> str:
    """What `rotate_key` signs, with the old key."""
    return f"rotate:{node}:{new_public_key_b64}"


def invite_text(inviter: int, network: int, target: int) -> str:
    """What `invite_to_network` signs."""
    return f"invite:{inviter}:{network}:{target}"
