"""Payloads of the IPC commands that have sub-commands, as a client writes them (`spec/ipc.md` §5.5 to §5.7)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class Handshake(IntEnum):
    """Sub-commands of `HANDSHAKE`."""

    SEND = 0x01
    APPROVE = 0x02
    REJECT = 0x03
    PENDING = 0x04
    TRUSTED = 0x05
    REVOKE = 0x06
    WAIT = 0x07


class Network(IntEnum):
    """Sub-commands of `NETWORK`."""

    LIST = 0x01
    JOIN = 0x02
    LEAVE = 0x03
    MEMBERS = 0x04
    INVITE = 0x05
    POLL_INVITES = 0x06
    RESPOND_INVITE = 0x07


class Managed(IntEnum):
    """Sub-commands of `MANAGED`."""

    STATUS = 0x02
    CYCLE = 0x04
    POLICY = 0x05
    MEMBER_TAGS = 0x06
    RECONCILE = 0x07


class Action(IntEnum):
    """What `Managed.POLICY` and `Managed.MEMBER_TAGS` do."""

    GET = 0x00
    SET = 0x01


def encode_handshake(command: Handshake, node: int | None = None, text: str = "") -> bytes:
    """Return the payload of a handshake command; `text` is the justification or the reason."""
    return bytes([command]) + (b"" if node is None else _U32.pack(node)) + text.encode()


def encode_handshake_wait(node: int, timeout_ms: int) -> bytes:
    """Return the payload of `Handshake.WAIT`; the daemon caps the timeout at 30,000 ms."""
    return bytes([Handshake.WAIT]) + _U32.pack(node) + _U32.pack(timeout_ms)


def encode_network(command: Network, network: int | None = None, rest: bytes = b"") -> bytes:
    """Return the payload of a network command."""
    return bytes([command]) + (b"" if network is None else _U16.pack(network)) + rest


def encode_network_invite(network: int, node: int) -> bytes:
    """Return the payload of `Network.INVITE`."""
    return encode_network(Network.INVITE, network, _U32.pack(node))


def encode_managed(command: Managed, network: int) -> bytes:
    """Return the payload of a managed command that names a network; 0 means any one."""
    return bytes([command]) + _U16.pack(network)


def encode_policy_get(network: int) -> bytes:
    """Return the payload that asks for a network's policy."""
    return bytes([Managed.POLICY, Action.GET]) + _U16.pack(network)


def encode_policy_set(network: int, policy: dict[str, Any], token: str) -> bytes:
    """Return the payload that sets a network's policy."""
    secret = token.encode()
    head = bytes([Managed.POLICY, Action.SET]) + _U16.pack(network) + _U16.pack(len(secret)) + secret
    return head + json.dumps(policy, separators=(",", ":"), ensure_ascii=False).encode()


def encode_member_tags(network: int, node: int, tags: Sequence[str] | None = None) -> bytes:
    """Return the payload that reads a member's tags (node 0: everybody's) or, with `tags`, sets them."""
    action = Action.GET if tags is None else Action.SET
    head = bytes([Managed.MEMBER_TAGS, action]) + _U16.pack(network) + _U32.pack(node)
    return head + (b"" if tags is None else encode_tags(tags))


def encode_tags(tags: Sequence[str]) -> bytes:
    """Return the JSON array that `SET_TAGS` and member tags take."""
    return json.dumps(list(tags), separators=(",", ":"), ensure_ascii=False).encode()
