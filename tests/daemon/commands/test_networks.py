"""Membership and invitations (`spec/ipc.md` §5.6); the replies are in `tests/daemon/test_ipc_vectors.py`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio.testing

from pilot_trio.crypto.identity import verify
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import ScriptedRegistry, assembled

RULE = {"name": "r1", "on": "connect", "match": "true", "actions": [{"type": "allow"}]}
POLICY = {"version": 1, "rules": [RULE]}


def empty(_fields: dict[str, Any]) -> Message:
    return {}


@pytest.mark.parametrize(
    ("payload", "type_", "fields", "signed"),
    [
        (b"\x01", "list_networks", {}, None),
        (b"\x02\x00\x07tok", "join_network", {"network_id": 7, "token": "tok", "node_id": 1}, "join_network:1:7"),
        (b"\x03\x00\x07", "leave_network", {"network_id": 7, "node_id": 1}, "leave_network:1:7"),
        (b"\x04\x00\x07", "list_nodes", {"network_id": 7}, None),
        (
            b"\x05\x00\x07\x00\x00\x00\x02",
            "invite_to_network",
            {"network_id": 7, "inviter_id": 1, "target_node_id": 2},
            "invite:1:7:2",
        ),
        (b"\x06", "poll_invites", {"node_id": 1}, "poll_invites:1"),
        (b"\x07\x00\x07\x01", "respond_invite", {"node_id": 1, "network_id": 7, "accept": True}, "respond_invite:1:7"),
        (b"\x07\x00\x07\x02", "respond_invite", {"accept": False}, "respond_invite:1:7"),
    ],
)
@pytest.mark.parametrize("token", ["", "sesame"])
async def test_what_is_asked_of_the_registry(
    payload: bytes,
    type_: str,
    fields: dict[str, Any],
    signed: str | None,
    token: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    registry = ScriptedRegistry({type_: empty, "get_network_policy": empty, "list_networks": empty})
    async with assembled(registry=registry, admin_token=token) as node:
        peer = await node.connect()
        code, _ = await peer.ask(0x1F, payload)
        assert code == 0x20
        asked = registry.asked(type_)[0]
        assert {key: asked[key] for key in fields} == fields
        assert asked.get("admin_token", "") == token
        if signed is None:
            assert "signature" not in asked
        else:
            signature = base64.b64decode(asked["signature"])
            assert verify(node.state.identity.public_key, signature, signed.encode())


async def test_joining_and_leaving_change_the_node(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry(
        {
            "join_network": lambda _f: {"network_id": 7, "address": "7:0007.0000.0001", "expr_policy": POLICY},
            "leave_network": lambda _f: {"network_id": 7},
            "get_network_policy": lambda _f: {"allowed_ports": [80]},
            "list_networks": lambda _f: {"networks": []},
        }
    )
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        _, body = await peer.ask(0x1F, b"\x02\x00\x07")
        assert json.loads(body)["expr_policy"] == POLICY
        assert node.state.networks == [7]
        assert node.state.port_allowed(node.state.networks[0], 80)
        assert not node.state.port_allowed(node.state.networks[0], 81)
        assert json.loads(node.managed.policy(7) or "") == POLICY
        await peer.ask(0x1F, b"\x03\x00\x07")
        assert node.state.networks == []
        assert node.managed.policy(7) is None


async def test_a_member_list_that_exceeds_a_frame_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry({"list_nodes": lambda _f: {"nodes": [{"hostname": "x" * 1000}] * 1100}})
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        assert (await peer.error(0x1F, b"\x04\x00\x07")).startswith("network members: reply too large: ")
        assert (await peer.ask(0x21))[0] == 0x22
