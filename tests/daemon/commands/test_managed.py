"""Policies and member tags over IPC (`spec/ipc.md` §5.7); the replies are in `tests/daemon/test_ipc_vectors.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.daemon.commands.managed import FIRST_LOOK_TIMEOUT
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import ScriptedRegistry, assembled

POLICY = b'{ "version":1, "rules":[{"name":"r1","on":"connect","match":"true","actions":[{"type":"allow"}]}]}'


def policy_set(network: int, policy: bytes = POLICY, token: bytes = b"") -> bytes:
    return b"\x05\x01" + network.to_bytes(2, "big") + len(token).to_bytes(2, "big") + token + policy


def members(_fields: dict[str, Any]) -> Message:
    return {"nodes": [{"node_id": 1}, {"node_id": 2}, {"node_id": 3, "offline": True}, "odd"]}


async def test_a_policy_comes_back_as_it_was_set(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=ScriptedRegistry({"list_nodes": members})) as node:
        peer = await node.connect()
        assert (await peer.ask(0x23, policy_set(7)))[0] == 0x24
        code, body = await peer.ask(0x23, b"\x05\x00\x00\x07")
        assert code == 0x24
        assert b'"expr_policy":' + POLICY + b"," in body
        assert json.loads(body)["engine"] == "policy"
        _, status = await peer.ask(0x23, b"\x02")
        assert json.loads(status)["peers"] == 2


@pytest.mark.parametrize(
    ("configured", "given", "accepted"), [("", b"any", True), ("s", b"s", True), ("s", b"", False)]
)
async def test_the_token_counts_only_if_one_is_configured(
    configured: str, given: bytes, accepted: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with assembled(admin_token=configured) as node:
        peer = await node.connect()
        code, _ = await peer.ask(0x23, policy_set(7, token=given))
        assert (code == 0x24) is accepted


async def test_setting_does_not_wait_for_a_registry_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry()
    registry.held.add("list_nodes")
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        before = trio.current_time()
        assert (await peer.ask(0x23, policy_set(7)))[0] == 0x24
        assert trio.current_time() - before == pytest.approx(FIRST_LOOK_TIMEOUT)
        assert await peer.error(0x23, b"\x04") == "managed: force cycle timed out after 5s"


async def test_the_registry_may_refuse(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        peer = await node.connect()
        await peer.ask(0x23, policy_set(7))
        assert await peer.error(0x23, b"\x04\x00\x07") == "managed: registry: request failed"
        assert await peer.error(0x23, b"\x07\x00\x07") == "managed: registry: request failed"
        for action, name in ((b"\x00", "get"), (b"\x01", "set")):
            payload = b"\x06" + action + b"\x00\x07\x00\x00\x00\x02" + (b"[]" if name == "set" else b"")
            assert await peer.error(0x23, payload) == f"member-tags {name}: registry: request failed"


async def test_tags_of_members_are_set_with_the_admin_token(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry({"set_member_tags": lambda _f: {}, "get_member_tags": lambda _f: {}})
    async with assembled(registry=registry, admin_token="sesame") as node:
        peer = await node.connect()
        await peer.ask(0x23, b'\x06\x01\x00\x07\x00\x00\x00\x02["a","b"]')
        await peer.ask(0x23, b"\x06\x00\x00\x07\x00\x00\x00\x00")
        (asked,) = registry.asked("set_member_tags")
        assert asked == {"network_id": 7, "target_node_id": 2, "tags": ["a", "b"], "admin_token": "sesame"}
        assert registry.asked("get_member_tags") == [{"network_id": 7, "target_node_id": 0}]
