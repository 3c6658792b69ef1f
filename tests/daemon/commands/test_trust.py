"""The handshake command (`spec/ipc.md` §5.5); what it does to trust is tested in `tests/daemon/test_trust.py`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.address import NodeId
from pilot_trio.proto.trust import TrustedPeer
from pilot_trio.wire.ipc import JSON_MAX
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import NOW, IPCPeer, ScriptedRegistry, assembled

RECORDED = json.loads((Path(__file__).parents[2] / "vectors" / "services.json").read_text())["ipc_service_replies"]


def registry() -> ScriptedRegistry:
    def empty(_fields: dict[str, Any]) -> Message:
        return {"requests": [], "responses": []}

    return ScriptedRegistry({"poll_handshakes": empty, "request_handshake": lambda _f: {}})


async def handshake(peer: IPCPeer, sub: int, *numbers: int, text: bytes = b"") -> dict[str, Any]:
    code, body = await peer.ask(0x0F, bytes([sub]) + b"".join(struct.pack("!I", n) for n in numbers) + text)
    assert code == 0x10, body
    record: dict[str, Any] = json.loads(body)
    return record


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: str(recorded["request_hex"]))
async def test_recorded_replies(
    recorded: dict[str, Any], tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    request = bytes.fromhex(recorded["request_hex"])
    async with assembled(registry=registry(), home=tmp_path) as node:
        peer = await node.connect()
        code, body = await peer.ask(request[0], request[1:])
        assert (code, body.decode()) == (recorded["reply_cmd"], recorded["reply_body"])


async def test_asking_pending_and_trusted_polls_first(autojump_clock: trio.testing.MockClock) -> None:
    relay = registry()
    relay.answers["poll_handshakes"] = lambda _f: {
        "requests": [{"from_node_id": 9, "justification": "hi \x07there", "timestamp": 1}],
        "responses": [],
    }
    async with assembled(registry=relay) as node:
        peer = await node.connect()
        (pending,) = (await handshake(peer, 0x04))["pending"]
        assert pending == {"node_id": 9, "justification": "hi there", "public_key": "", "received_at": int(NOW)}
        assert (await handshake(peer, 0x02, 9)) == {"node_id": 9, "status": "approved"}
        (trusted,) = (await handshake(peer, 0x05))["trusted"]
        assert trusted == {"node_id": 9, "public_key": "", "approved_at": int(NOW), "mutual": False, "network": 0}
        assert len(relay.asked("poll_handshakes")) == 1  # the rest came within two seconds


async def test_a_hanging_registry_holds_these_up_for_three_seconds(autojump_clock: trio.testing.MockClock) -> None:
    relay = registry()
    relay.held.add("poll_handshakes")
    async with assembled(registry=relay) as node:
        peer = await node.connect()
        before = trio.current_time()
        await handshake(peer, 0x04)
        assert trio.current_time() - before == pytest.approx(3)
        await handshake(peer, 0x05)
        assert trio.current_time() - before == pytest.approx(3)


async def test_waiting_is_answered_at_once_where_it_can_be(autojump_clock: trio.testing.MockClock) -> None:
    relay = registry()
    relay.held.add("poll_handshakes")
    async with assembled(registry=relay) as node:
        peer = await node.connect()
        before = trio.current_time()
        assert (await handshake(peer, 0x07, 1, 0xFFFFFFFF))["trusted"]  # ourselves
        assert not (await handshake(peer, 0x07, 9, 0))["trusted"]
        assert trio.current_time() == before
        assert relay.requests == []


async def test_a_wait_of_zero_joins_a_poll_that_may_bring_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    relay = registry()
    async with assembled(registry=relay) as node:
        peer = await node.connect()
        started_at = trio.current_time()
        assert (await handshake(peer, 0x01, 9, text=b"why"))["status"] == "sent"
        await trio.sleep(1)
        relay.held.add("poll_handshakes")  # the one that starts at two seconds
        await trio.sleep(2)
        assert not (await handshake(peer, 0x07, 8, 0))["trusted"]  # nobody was asked, so nothing can have come
        assert trio.current_time() - started_at == pytest.approx(3)
        assert not (await handshake(peer, 0x07, 9, 0))["trusted"]
        assert trio.current_time() - started_at == pytest.approx(5)


@pytest.mark.parametrize("milliseconds", [29_999, 30_000, 0xFFFFFFFF])
async def test_a_wait_is_capped(milliseconds: int, autojump_clock: trio.testing.MockClock) -> None:
    async with assembled() as node:
        peer = await node.connect()
        before = trio.current_time()
        assert not (await handshake(peer, 0x07, 9, milliseconds))["trusted"]
        assert trio.current_time() - before == pytest.approx(min(milliseconds / 1000, 30))


async def test_a_second_request_is_said_to_be_in_flight(autojump_clock: trio.testing.MockClock) -> None:
    relay = registry()
    relay.held.add("request_handshake")
    async with assembled(registry=relay) as node:
        one, two = await node.connect(), await node.connect()
        await one.send(0x0F, b"\x01\x00\x00\x00\x09")
        await trio.testing.wait_all_tasks_blocked()
        assert (await handshake(two, 0x01, 9))["status"] == "in_flight"
        await one.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        relay.held.clear()
        assert (await handshake(two, 0x01, 9))["status"] == "sent"


async def test_the_longest_list_that_fits_is_the_newest_part(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=registry()) as node:
        table = node.trust._table
        for number in range(1, 12_001):
            table.trusted[NodeId(number)] = TrustedPeer(NodeId(number), NOW + number, "k" * 44)
        peer = await node.connect()
        code, body = await peer.ask(0x0F, b"\x05")
        assert code == 0x10
        assert JSON_MAX - 200 < len(body) <= JSON_MAX
        record = json.loads(body)
        assert record["trusted_truncated"] is True
        times = [row["approved_at"] for row in record["trusted"]]
        assert times == sorted(times, reverse=True)
        assert record["trusted"][0]["node_id"] == 12_000
