"""Every recorded exchange of `vectors/ipc.json`, replayed byte by byte against a whole node.

The node is the real one on an in-memory network and IPC socket. Its registry is scripted to answer as the minimal one
did that the recordings were made with, so the texts that come from there are the recorded ones too. Each exchange gets
a fresh node; what it depends on is prepared first (`PREPARATIONS`).

Compared by shape (keys, and types of values, recursively) instead of by bytes: the exchanges marked volatile, as the
notes of the vectors ask. `MASKS` lists what is treated differently beyond those notes, each with its reason. Streams and
datagrams between two daemons are replayed by one node with itself: connection ids, source ports and the sender's node id
are substituted (`SUBSTITUTED`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import Config, RegistryConfig
from pilot_trio.daemon.node import Node, serve_node
from pilot_trio.errors import RegistryError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.trust import TrustedPeer
from pilot_trio.testing import MemoryNetwork, MemoryTransportListener
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import NOW, IPCPeer, ScriptedRegistry, connect, serve_registry

VECTORS: dict[str, dict[str, Any]] = {
    vector["id"]: vector
    for vector in json.loads((Path(__file__).parents[1] / "vectors" / "ipc.json").read_text())["vectors"]
}

MASKS = {
    "info": "`features` lists those that this node has",
    "info-member": "`features` as above; `peer_list` is empty, there being no peers; the connection is a self-dial, so "
    "there are its two rows where the recording has one",
    "prefer-direct-known": "`had_tunnel` is false: there is no second node with a tunnel to tear down",
}

SUBSTITUTED = {
    "bind": "one script, `test_streams_and_datagrams_by_self_dial`, with the following",
    "bind-again": "needs the port bound",
    "dial": "connection id",
    "accept-push": "connection id, remote node, remote port",
    "stream-data": "connection ids",
    "stream-data-back": "connection ids",
    "close-local": "connection id",
    "close-remote": "connection id",
    "dial-2": "connection id",
    "unbind": "needs the port bound",
    "data-after-unbind": "connection ids",
    "sendto-confirm": "destination node",
    "recvfrom-push": "source node, source port",
    "cancel-dial": "the same bytes, but its two requests go in one write and the registry holds the resolve",
}

NODE_3 = (  # who answered, by the vectors' notes: patterns of ids
    "info-member",
    "net-list-2",
    "net-join",
    "net-members",
    "net-invite",
    "net-poll-invites",
    "net-accept",
    "net-reject",
    "net-leave",
    "hs-*",
    "wait-*",
    "trusted-*",
    "verify-*",
    "policy-set",
    "policy-set-*",
    "policy-get",
    "managed-status",
    "managed-status-any",
    "managed-cycle",
    "managed-reconcile",
    "mtags-set",
    "mtags-get",
    "broadcast-bad-token",
    "broadcast-ok",
    "broadcast-backbone",
    "rotate-key",
    "badge-ok",
)
NODE_3_REFUSES = ("policy-set-*",)  # malformed ones: node 3 would ask for its token first, so node 1 answers them
NODE_3_HAS_A_TOKEN = ("policy-set-bad-token",)

SIGNER_KEY = json.loads(bytes.fromhex(VECTORS["info"]["replies"][0])[5:])["public_key"]
POLICY = bytes.fromhex(VECTORS["policy-set"]["request"][0])[5:]


def refuse(_fields: dict[str, Any]) -> Message:
    raise RegistryError("request failed")


def minimal_registry(vector_id: str, node_id: int) -> ScriptedRegistry:
    """Answer as the registry of the recordings did."""
    networks = [{"id": 0, "join_rule": "open", "members": 4, "name": "backbone"}]
    if vector_id == "net-list-2":
        networks = [
            {
                "created": 1795450000,
                "enterprise": False,
                "id": 0,
                "join_rule": "open",
                "members": 3,
                "name": "backbone",
            },
            {"created": 1795450000, "enterprise": False, "id": 7, "join_rule": "open", "members": 2, "name": "lab"},
        ]
    members: list[Message] = [
        {
            "address": "7:0007.0000.0003",
            "hostname": "c-host",
            "last_seen": "2026-11-23T18:40:00Z",
            "node_id": 3,
            "polo_score": 0,
            "public": True,
        },
        {"address": "7:0007.0000.0009", "node_id": 9, "offline": True},
    ]

    def resolve_hostname(fields: dict[str, Any]) -> Message:
        if fields["hostname"] != "b-host":
            return refuse(fields)
        return {"address": "0:0000.0000.0002", "hostname": "b-host", "node_id": 2, "public": True}

    def resolve(fields: dict[str, Any]) -> Message:
        return {"real_addr": "127.0.0.1:4000"} if fields["node_id"] in (2, 3) else refuse(fields)

    def lookup(fields: dict[str, Any]) -> Message:
        if fields["node_id"] == node_id == 3:
            return {"networks": [0, 7]}
        return {"public_key": SIGNER_KEY, "networks": [0]} if fields["node_id"] == 1 else refuse(fields)

    def member_tags(fields: dict[str, Any]) -> Message:
        return {"network_id": fields["network_id"], "target_node_id": fields["target_node_id"], "tags": ["a"]}

    return ScriptedRegistry(
        {
            "register": lambda _f: {"node_id": node_id, "address": str(Address(NetworkId(0), NodeId(node_id)))},
            "heartbeat": lambda _f: {},
            "resolve_hostname": resolve_hostname,
            "resolve": resolve,
            "lookup": lookup,
            "set_hostname": lambda f: {"hostname": f["hostname"], "node_id": f["node_id"]},
            "set_visibility": lambda f: {
                "node_id": f["node_id"],
                "visibility": "public" if f["public"] else "private",
            },
            "set_tags": lambda f: {"node_id": f["node_id"], "tags": f["tags"] or None},
            "list_networks": lambda _f: {"networks": networks},
            "join_network": lambda _f: {"address": "7:0007.0000.0003", "network_id": 7},
            "list_nodes": lambda _f: {"nodes": members},
            "invite_to_network": lambda f: {"network_id": f["network_id"], "target_node_id": f["target_node_id"]},
            "poll_invites": lambda _f: {"invites": [{"inviter_id": 2, "network_id": 7, "timestamp": 1795450100}]},
            "respond_invite": lambda f: {"accepted": f["accept"], "network_id": f["network_id"]},
            "leave_network": lambda f: {"network_id": f["network_id"]},
            "get_network_policy": lambda f: {"network_id": f["network_id"], "allowed_ports": []},
            "get_member_tags": member_tags,
            "set_member_tags": member_tags,
            "rotate_key": lambda f: {
                "address": "0:0000.0000.0003",
                "node_id": f["node_id"],
                "public_key": f["new_public_key"],
            },
            "submit_badge": lambda f: {"node_id": f["node_id"]},
            "poll_handshakes": lambda _f: {"requests": [], "responses": []},
            "request_handshake": lambda _f: {"status": "delivered"},
            "report_trust": lambda _f: {},
            "revoke_trust": lambda _f: {},
            "respond_handshake": lambda f: {"accept": f["accept"], "peer_id": f["peer_id"]},
        }
    )


@attrs.frozen
class Setting:
    """A running node and what is around it."""

    node: Node
    registry: ScriptedRegistry
    listener: MemoryTransportListener


class NetworkOfThatTime(MemoryNetwork):
    """When the envelopes of the exchanges were signed."""

    def wall_time_ns(self) -> int:
        return int(NOW * 1e9)


def matches(vector_id: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(vector_id, pattern) for pattern in patterns)


@asynccontextmanager
async def node_for(vector_id: str, home: Path) -> AsyncIterator[Setting]:
    """Run the node that answered this exchange."""
    is_node_3 = matches(vector_id, NODE_3) and (
        not matches(vector_id, NODE_3_REFUSES) or matches(vector_id, NODE_3_HAS_A_TOKEN)
    )
    registry = minimal_registry(vector_id, 3 if is_node_3 else 1)
    network, listener = NetworkOfThatTime(), MemoryTransportListener()
    config = Config(
        home=home,
        identity=None,
        registry=RegistryConfig(endpoint="127.0.0.1:9410"),
        endpoint="127.0.0.1:48202",
        admin_token="sesame" if is_node_3 else "",
        hostname="c-host" if is_node_3 else "a-host",
        email="a@example.com",
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_registry, registry, await network.listen_tcp(Endpoint("127.0.0.1", 9410)))
        node = await nursery.start(partial(serve_node, config, network=network, listener=listener))
        await trio.testing.wait_all_tasks_blocked()
        yield Setting(node, registry, listener)
        nursery.cancel_scope.cancel()


async def trust_node_1(setting: Setting, _peer: IPCPeer) -> None:
    setting.node.trust._table.trusted[NodeId(1)] = TrustedPeer(
        NodeId(1), 1795459659, "arBBZXheuQXnkCKBrwMhtVxEFnKB3x2KIDAhUKYZDr4=", mutual=True
    )


async def trust_nodes_1_and_2(setting: Setting, peer: IPCPeer) -> None:
    await trust_node_1(setting, peer)
    setting.node.trust._table.trusted[NodeId(2)] = TrustedPeer(
        NodeId(2), 1795459925, "QwiCW1NWbNLz8ObLsL1yedBVb7+I/F9EeILEIpSk7c8=", mutual=True
    )


async def set_policy(_setting: Setting, peer: IPCPeer) -> None:
    assert (await peer.ask(0x23, POLICY))[0] == 0x24


async def verify_once(setting: Setting, peer: IPCPeer) -> None:
    await trust_node_1(setting, peer)
    request = bytes.fromhex(VECTORS["verify-ok"]["request"][0])
    assert (await peer.ask(request[4], request[5:]))[0] == 0x36


async def request_and_have_the_answer_relayed(setting: Setting, peer: IPCPeer) -> None:
    assert (await peer.ask(0x0F, b"\x01" + struct.pack("!I", 2)))[0] == 0x10
    setting.registry.answers["poll_handshakes"] = lambda _f: {
        "requests": [],
        "responses": [{"from_node_id": 2, "accept": True, "timestamp": 1795459925}],
    }


async def open_a_connection(_setting: Setting, peer: IPCPeer) -> None:
    assert (await peer.ask(0x03, struct.pack("!HIH", 0, 3, 7)))[0] == 0x04


PREPARATIONS: dict[str, Callable[[Setting, IPCPeer], Awaitable[None]]] = {
    "trusted-empty": trust_node_1,
    "trusted-one": trust_nodes_1_and_2,
    "hs-revoke": trust_nodes_1_and_2,
    "policy-get": set_policy,
    "managed-status": set_policy,
    "managed-status-any": set_policy,
    "managed-cycle": set_policy,
    "managed-reconcile": set_policy,
    "verify-ok": trust_node_1,
    "verify-ok-cached-standing": verify_once,
    "verify-tampered": trust_node_1,
    "verify-stale": trust_node_1,
    "verify-bad-b64": trust_node_1,
    "wait-wakes": request_and_have_the_answer_relayed,
    "info-member": open_a_connection,
}


def shape(value: Any) -> Any:
    """Return keys and types, without values. Integers and floats are one type: JSON clients see numbers."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__


def masked(vector_id: str, frame: bytes) -> tuple[int, Any]:
    body = json.loads(frame[5:])
    if vector_id in ("info", "info-member"):
        assert set(body["features"]) <= {"reply_window", "dial_awaits_key", "key_request", "dgram_confirm"}
    if vector_id == "info-member":
        body["peer_list"] = []
        for row in body["conn_list"]:  # ours says the path too; the recorded one does not
            row.pop("relay", None)
            row.pop("relay_reason", None)
    return frame[4], shape(body)


def replayed_plainly() -> list[str]:
    return [name for name in VECTORS if name not in SUBSTITUTED]


def test_every_vector_is_replayed() -> None:
    assert len(VECTORS) == 162
    assert set(SUBSTITUTED) <= set(VECTORS)
    assert set(PREPARATIONS) <= set(VECTORS)
    assert set(MASKS) <= set(VECTORS)


@pytest.mark.parametrize("vector_id", replayed_plainly())
async def test_vector(vector_id: str, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    vector = VECTORS[vector_id]
    async with node_for(vector_id, tmp_path) as setting:
        peer = await connect(setting.listener)
        if vector_id in PREPARATIONS:
            await PREPARATIONS[vector_id](setting, peer)
        async with trio.open_nursery() as nursery:
            for request in vector["request"]:
                await send_request(nursery, peer, bytes.fromhex(request))
            if vector_id == "half-close":
                await peer.stream.send_eof()
            for expected in vector["replies"]:
                frame = await peer.receive()
                check_reply(vector_id, frame, expected)
            nursery.cancel_scope.cancel()
        if "EOF" not in vector["replies"]:
            await nothing_more(peer)


async def send_request(nursery: trio.Nursery, peer: IPCPeer, request: bytes) -> None:
    """Send bytes; those of the oversize exchange do not all fit, because the daemon stops reading at the length."""

    async def send() -> None:
        try:
            await peer.stream.send_all(request)
        except trio.BrokenResourceError:
            assert len(request) > 1 << 20 or b"\xff\xff\xff\xff" in request

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()


def check_reply(vector_id: str, frame: bytes | None, expected: str) -> None:
    if expected == "EOF":
        assert frame is None
        return
    assert frame is not None, "end of stream instead of a reply"
    recorded = bytes.fromhex(expected)
    if vector_id == "prefer-direct-known":
        assert masked(vector_id, frame) == masked(vector_id, recorded)
        assert json.loads(frame[5:])["resolve_error"] == ""
    elif VECTORS[vector_id].get("volatile") and recorded[4] != 0x0A:
        assert masked(vector_id, frame) == masked(vector_id, recorded)
        if vector_id.startswith("verify-"):  # deterministic under the recorded clock
            assert frame == recorded
    else:
        assert frame == recorded, (frame[5:], recorded[5:])


async def nothing_more(peer: IPCPeer) -> None:
    """Ask for health: its answer has to be the next frame, or a reply too many was sent."""
    code, _ = await peer.ask(0x21)
    assert code == 0x22


def recorded_reply(vector_id: str, index: int = 0) -> bytes:
    return bytes.fromhex(VECTORS[vector_id]["replies"][index])


def with_conn(frame: bytes, conn_id: int) -> bytes:
    return frame[:5] + struct.pack("!I", conn_id) + frame[9:]


async def test_streams_and_datagrams_by_self_dial(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with node_for("bind", tmp_path) as setting:
        listener, dialler = await connect(setting.listener), await connect(setting.listener)

        async def exchange(peer: IPCPeer, vector_id: str) -> bytes:
            await peer.stream.send_all(bytes.fromhex(VECTORS[vector_id]["request"][0]))
            return await peer.receive() or b""

        assert await exchange(listener, "bind") == recorded_reply("bind")
        assert await exchange(listener, "bind-again") == recorded_reply("bind-again")

        dialled = await exchange(dialler, "dial")
        here = int.from_bytes(dialled[5:], "big")
        assert dialled == with_conn(recorded_reply("dial"), here)
        accepted = await listener.receive() or b""
        recorded = recorded_reply("accept-push")
        there = int.from_bytes(accepted[7:11], "big")
        assert accepted[:7] == recorded[:7]
        assert accepted[11:17] == bytes.fromhex("000000000001")  # we are the dialling node, too
        assert len(accepted) == len(recorded)

        await dialler.stream.send_all(with_conn(bytes.fromhex(VECTORS["stream-data"]["request"][0]), here))
        assert await listener.receive() == with_conn(recorded_reply("stream-data"), there)
        await listener.stream.send_all(with_conn(bytes.fromhex(VECTORS["stream-data-back"]["request"][0]), there))
        assert await dialler.receive() == with_conn(recorded_reply("stream-data-back"), here)

        await listener.stream.send_all(with_conn(bytes.fromhex(VECTORS["close-local"]["request"][0]), there))
        for index in range(2):
            assert await listener.receive() == with_conn(recorded_reply("close-local", index), there)
        assert await dialler.receive() == with_conn(recorded_reply("close-remote"), here)

        here = int.from_bytes((await exchange(dialler, "dial-2"))[5:], "big")
        there = int.from_bytes((await listener.receive() or b"")[7:11], "big")
        assert await exchange(listener, "unbind") == recorded_reply("unbind")
        await dialler.stream.send_all(with_conn(bytes.fromhex(VECTORS["data-after-unbind"]["request"][0]), here))
        assert await listener.receive() == with_conn(recorded_reply("data-after-unbind"), there)

        request = bytearray.fromhex(VECTORS["sendto-confirm"]["request"][0])
        request[10] = 1  # node 1 instead of node 2
        await dialler.stream.send_all(request)
        received = [await listener.receive() or b"", await dialler.receive() or b"", await dialler.receive() or b""]
        assert recorded_reply("sendto-confirm") in received
        pushes = [frame for frame in received if frame[4] == 0x0C]
        for push, expected in zip(pushes, VECTORS["recvfrom-push"]["replies"], strict=True):
            recorded = bytes.fromhex(expected)
            assert push[:11] == recorded[:11]
            assert push[13:] == recorded[13:]  # all but the source port
        for peer in (listener, dialler):
            await nothing_more(peer)


async def test_cancelled_dial(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with node_for("cancel-dial", tmp_path) as setting:
        setting.registry.held.add("resolve")  # node 3 is known but never answers
        peer = await connect(setting.listener)
        await peer.stream.send_all(b"".join(map(bytes.fromhex, VECTORS["cancel-dial"]["request"])))
        assert await peer.receive() == recorded_reply("cancel-dial")
        await nothing_more(peer)
