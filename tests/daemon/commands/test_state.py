"""Info and Health (`spec/ipc.md` §5.9)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.daemon.commands.state import INFO_CACHE, fit_info
from pilot_trio.daemon.state import TunnelStatistics
from pilot_trio.wire.ipc import JSON_MAX
from tests.daemon.commands.assembly import IPCPeer, ScriptedRegistry, assembled

HEALTH_KEYS = {
    "status",
    "uptime_seconds",
    "connections",
    "peers",
    "encrypted_peers",
    "authenticated_peers",
    "relay_peer_count",
    "handshake_pending_count",
    "bytes_sent",
    "bytes_recv",
    "accept_queue_drops",
    "webhook_queue_dropped",
    "webhook_circuit_skips",
    "beacon_addr",
}


async def health(peer: IPCPeer) -> dict[str, Any]:
    code, body = await peer.ask(0x21)
    assert code == 0x22
    record: dict[str, Any] = json.loads(body)
    return record


async def info(peer: IPCPeer) -> dict[str, Any]:
    code, body = await peer.ask(0x0D)
    assert code == 0x0E
    record: dict[str, Any] = json.loads(body)
    return record


async def test_health_follows_every_change_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        peer = await node.connect()
        assert set(await health(peer)) == HEALTH_KEYS
        node.state.beacon_addr = 'b"\\:1'
        node.webhook.dropped, node.webhook.circuit_skips = 3, 4
        node.state.tunnel_source = lambda: TunnelStatistics(peers=5, bytes_sent=1 << 40)
        await peer.ask(0x03, bytes.fromhex("0000000000010007"))
        await trio.sleep(7.5)
        body = await health(peer)
        assert body["beacon_addr"] == 'b"\\:1'
        assert (body["webhook_queue_dropped"], body["webhook_circuit_skips"]) == (3, 4)
        assert (body["peers"], body["bytes_sent"]) == (5, 1 << 40)
        assert (body["connections"], body["uptime_seconds"], body["status"]) == (2, 7, "ok")
        await trio.sleep(0.5)
        assert (await health(peer))["uptime_seconds"] == 8


async def test_before_registration_both_are_honest(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        node.state.node_id = NodeId(0)
        peer = await node.connect()
        assert (await health(peer))["status"] == "registering"
        body = await info(peer)
        assert (body["node_id"], body["address"]) == (0, "0:0000.0000.0000")
        node.state.node_id = NodeId(1)
        assert (await health(peer))["status"] == "ok"


async def test_neither_waits_for_a_registry_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry()
    registry.held |= {"resolve_hostname", "poll_handshakes", "lookup"}
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        for _ in range(100):
            await peer.send(0x11, b"x")
            await peer.send(0x0F, b"\x04")
        before = trio.current_time()
        await health(peer)
        await info(peer)
        assert trio.current_time() == before


async def test_info_is_shared_for_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        one, two = await node.connect(), await node.connect()
        before = await info(one)
        await one.ask(0x01, b"\x13\x88")
        await trio.sleep(INFO_CACHE - 0.01)
        assert await info(two) == before
        await trio.sleep(0.02)
        assert (await info(two))["ports"] == before["ports"] + 1


async def test_networks_and_connections_are_listed(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        node.state.networks = [NetworkId(7)]
        peer = await node.connect()
        await peer.ask(0x03, bytes.fromhex("0000000000010007"))
        body = await info(peer)
        assert body["networks"] == [{"network_id": 7, "address": "7:0007.0000.0001"}]
        assert [row["state"] for row in body["conn_list"]] == ["ESTABLISHED", "ESTABLISHED"]
        assert body["connections"] == 2
        assert "conn_list_truncated" not in body


def peer_row(node: int) -> dict[str, Any]:
    endpoint = "203.0.113.77:48202"
    return {"node_id": node, "endpoint": endpoint, "encrypted": True, "authenticated": True, "relay": False}


def conn_row(node: int, size: int = 400) -> dict[str, Any]:
    return {"id": node, "remote_addr": f"0:0000.{node >> 16:04X}.{node & 0xFFFF:04X}", "state": "x" * size}


def test_peers_are_cut_first_and_those_with_connections_last() -> None:
    peers = [peer_row(node) for node in reversed(range(1, 20_001))]
    body = fit_info({"peers": 20_000}, peers, [conn_row(19_999), conn_row(7)])
    assert JSON_MAX - 200 < len(body) <= JSON_MAX
    record = json.loads(body)
    shown = [row["node_id"] for row in record["peer_list"]]
    assert shown[:4] == [7, 19_999, 1, 2]
    assert shown[2:] == sorted(shown[2:])
    assert (record["peers"], record["peer_list_truncated"], len(record["conn_list"])) == (20_000, True, 2)
    assert "conn_list_truncated" not in record
    assert body.index(b'"conn_list"') < body.index(b'"peer_list"') < body.index(b'"peers"')  # keys stay sorted


def test_connections_alone_may_be_too_many() -> None:
    body = fit_info({}, [peer_row(1)], [conn_row(node) for node in range(1, 4000)])
    assert len(body) <= JSON_MAX
    record = json.loads(body)
    assert record["conn_list_truncated"]
    assert [row["id"] for row in record["conn_list"]] == list(range(1, len(record["conn_list"]) + 1))


@pytest.mark.parametrize("spare", [0, 1])
def test_rows_fit_up_to_the_last_byte(spare: int) -> None:
    overhead = len(fit_info({"peer_list_truncated": True, "conn_list_truncated": True}, [], [conn_row(1, 0)])) + 1
    body = fit_info({}, [], [conn_row(1, JSON_MAX - overhead + 1 - spare)])
    assert ("conn_list_truncated" in json.loads(body)) is (spare == 0)
    assert len(body) <= JSON_MAX


async def test_what_a_name_contains_cannot_break_the_body(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        node.state.hostname = '"conn_list":[],"peer_list":[]'
        peer = await node.connect()
        body = await info(peer)
        assert body["hostname"] == node.state.hostname
        assert body["conn_list"] == body["peer_list"] == []
