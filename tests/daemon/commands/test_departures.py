"""A client that leaves while the registry hangs takes its request with it."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from pilot_trio.daemon.grace import GRACE
from tests.daemon.commands.assembly import NOW, ScriptedRegistry, assembled

ENVELOPE = f"pilot-req-v1|000000000009|{int(NOW)}|0123456789abcdef|{'a' * 64}|svc"
REQUESTS = {
    "resolve_hostname": (0x11, b"x"),
    "set_hostname": (0x13, b"x"),
    "set_visibility": (0x15, b"\x01"),
    "deregister": (0x17, b""),
    "set_tags": (0x19, b"[]"),
    "rotate_key": (0x25, b""),
    "resolve": (0x2D, b"\x00\x00\x00\x09"),
    "request_handshake": (0x0F, b"\x01\x00\x00\x00\x09"),
    "list_networks": (0x1F, b"\x01"),
    "join_network": (0x1F, b"\x02\x00\x07"),
    "leave_network": (0x1F, b"\x03\x00\x07"),
    "list_nodes": (0x1F, b"\x04\x00\x07"),
    "get_member_tags": (0x23, b"\x06\x00\x00\x07\x00\x00\x00\x02"),
    "submit_badge": (0x2F, b'{"badge":"x","badge_sig":"y"}'),
    "lookup": (0x35, json.dumps({"envelope": ENVELOPE, "signature": "AAAA"}).encode()),
}


@pytest.mark.parametrize("type_", REQUESTS)
async def test_nothing_of_a_request_outlives_its_client(type_: str, autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry()
    registry.held.add(type_)
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        await peer.send(*REQUESTS[type_])
        await trio.testing.wait_all_tasks_blocked()
        assert node.server.statistics().in_flight == 1
        await peer.stream.aclose()
        await trio.sleep(GRACE + 0.1)
        assert node.server.statistics().in_flight == 0
        assert node.server.statistics().clients == 0
        assert len(registry.asked(type_)) == 1
        assert node.server.statistics().crashes == 0
