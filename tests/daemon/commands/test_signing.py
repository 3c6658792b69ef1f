"""Badges, recovery, signed requests (`spec/ipc.md` §5.8); the replies are in `tests/daemon/test_ipc_vectors.py`."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
import trio.testing

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.daemon.commands import signing
from pilot_trio.errors import RegistryError
from pilot_trio.proto.envelope import Envelope
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import NOW, AssembledNode, IPCPeer, ScriptedRegistry, assembled

SIGNER = Identity.from_seed(bytes([9]) * 32)
HASH = hashlib.sha256(b"hi").hexdigest()


def envelope(node: int = 9, at: float = NOW, network: int = 0) -> str:
    return str(Envelope(Address(NetworkId(network), NodeId(node)), int(at), "0" * 16, HASH, "svc"))


def lookup(**fields: Any) -> ScriptedRegistry:
    record = {"public_key": SIGNER.public_key_b64, "networks": [0], **fields}

    def answer(asked: dict[str, Any]) -> Message:
        if not 9 <= asked["node_id"] < 5000:
            raise RegistryError("request failed")
        return record

    return ScriptedRegistry({"lookup": answer})


async def check(peer: IPCPeer, text: str, signature: str | None = None, **options: Any) -> dict[str, Any]:
    request = {"envelope": text, "signature": signature or SIGNER.sign_text(text), **options}
    code, body = await peer.ask(0x35, json.dumps(request).encode())
    assert code == 0x36, body
    record: dict[str, Any] = json.loads(body)
    assert record.pop("type") == "verify_envelope_ok"
    return record


class TestSign:
    async def sign(self, node: AssembledNode, **request: Any) -> tuple[int, Any]:
        peer = await node.connect()
        code, body = await peer.ask(0x33, json.dumps(request).encode())
        return code, json.loads(body) if code == 0x34 else body[2:].decode()

    async def test_an_envelope_is_signed_for_our_address_and_now(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            code, reply = await self.sign(node, audience="svc", body_b64="aGk=")
            assert code == 0x34
            signed = Envelope.parse(reply["envelope"])
            assert (signed.address.node, signed.timestamp, signed.body_hash) == (1, int(NOW), HASH)
            key = node.state.identity.public_key
            assert verify(key, base64.b64decode(reply["signature"]), reply["envelope"].encode())
            _, again = await self.sign(node, audience="svc", body_b64="aGk=")
            assert again["envelope"] != reply["envelope"]  # a fresh nonce
            code, reply = await self.sign(node, audience="svc", body_hash=HASH)
            assert Envelope.parse(reply["envelope"]).body_hash == HASH

    async def test_a_node_without_address_signs_nothing(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            node.state.node_id = NodeId(0)
            reply = await self.sign(node, audience="svc", body_hash=HASH)
            assert reply == (0x0A, "sign_envelope: daemon not registered (no address)")

    async def test_wrong_types_are_refused(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            code, text = await self.sign(node, audience=7)
            assert code == 0x0A
            assert text.startswith("sign_envelope: bad payload: json: ")


class TestVerify:
    async def test_the_key_is_asked_for_once(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            for via in ("registry", "cache", "cache"):
                assert await check(peer, envelope()) == {
                    "valid": True,
                    "node_id": 9,
                    "address": "0:0000.0000.0009",
                    "trusted": False,
                    "verified_via": via,
                }
            assert len(node.registry.asked("lookup")) == 1

    async def test_our_own_envelopes_need_no_registry(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            peer = await node.connect()
            text = envelope(node=1)
            reply = await check(peer, text, node.state.identity.sign_text(text))
            assert (reply["valid"], reply["trusted"], reply["verified_via"]) == (True, True, "cache")
            assert not (await check(peer, text))["valid"]
            assert node.registry.requests == []

    async def test_a_replaced_key_is_noticed(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            await check(peer, envelope())
            fresh = Identity.from_seed(bytes([10]) * 32)
            node.registry.answers["lookup"] = lambda _f: {"public_key": fresh.public_key_b64}
            assert (await check(peer, envelope(), fresh.sign_text(envelope())))["verified_via"] == "registry"
            assert await check(peer, envelope()) == {"valid": False, "reason": "reqsig: signature verification failed"}

    @pytest.mark.parametrize(
        ("window", "age", "text"),
        [
            (0, 300, None),
            (0, 301, "±5m0s"),
            (10, 10, None),
            (10, 11, "±10s"),
            (7200, 7201, "±2h0m0s"),
            (-5, 301, "±5m0s"),
        ],
    )
    async def test_windows(
        self, window: int, age: int, text: str | None, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            reply = await check(peer, envelope(at=NOW - age), max_skew_secs=window)
            assert reply["valid"] is (text is None)
            if text is not None:
                assert reply["reason"] == f"reqsig: envelope timestamp outside {text} window"

    @pytest.mark.parametrize("window", [1e300, 1 << 70, 9_223_372_036])
    async def test_a_window_may_be_as_wide_as_time(self, window: float, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            assert (await check(peer, envelope(at=0), max_skew_secs=window))["valid"]

    @pytest.mark.parametrize(
        ("record", "network", "standing"),
        [
            ({"networks": None}, 0, {}),
            ({"networks": [0, 7]}, 7, {"network_member": True}),
            ({"networks": [0]}, 7, {"network_member": False}),
            (
                {"networks": None, "last_seen_unix": int(NOW) - 180},
                0,
                {"last_seen_unix": int(NOW) - 180, "online": True},
            ),
            (
                {"networks": None, "last_seen_unix": int(NOW) - 181},
                0,
                {"last_seen_unix": int(NOW) - 181, "online": False},
            ),
            ({"networks": None, "key_generation": 0}, 0, {"key_generation": 0}),
        ],
    )
    async def test_standing_is_what_the_registry_says(
        self, record: Message, network: int, standing: Message, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with assembled(registry=lookup(**record)) as node:
            peer = await node.connect()
            reply = await check(peer, envelope(network=network), check_standing=True)
            for key in ("valid", "node_id", "address", "trusted", "verified_via"):
                del reply[key]
            assert reply == standing

    async def test_without_the_registry_there_is_no_standing(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            await check(peer, envelope())
            node.registry.answers.clear()
            reply = await check(peer, envelope(), check_standing=True)
            assert reply["valid"]
            assert "network_member" not in reply

    async def test_a_record_without_a_usable_key(self, autojump_clock: trio.testing.MockClock) -> None:
        for key, size in ((None, 0), ("!", 0), ("AAAA", 3)):
            async with assembled(registry=lookup(public_key=key)) as node:
                peer = await node.connect()
                assert await check(peer, envelope()) == {
                    "valid": False,
                    "reason": f"reqsig: bad public key size {size}",
                }

    @pytest.mark.parametrize("skew", ["x", True, []])
    async def test_wrong_types_are_refused(self, skew: Any, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            peer = await node.connect()
            request = {"envelope": "x", "signature": "y", "max_skew_secs": skew}
            assert (await peer.error(0x35, json.dumps(request).encode())).startswith("verify_envelope: bad payload: ")

    async def test_the_keys_kept_are_bounded(
        self, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
    ) -> None:
        monkeypatch.setattr(signing, "KEYS_MAX", 3)
        async with assembled(registry=lookup()) as node:
            peer = await node.connect()
            for number in (9, 10, 11):
                await check(peer, envelope(number))
            assert (await check(peer, envelope(9)))["verified_via"] == "cache"
            await check(peer, envelope(12))  # pushes out 10, the one unused for longest
            assert (await check(peer, envelope(9)))["verified_via"] == "cache"
            assert (await check(peer, envelope(10)))["verified_via"] == "registry"


class TestAttestations:
    async def test_both_are_handed_on_signed(self, autojump_clock: trio.testing.MockClock) -> None:
        registry = ScriptedRegistry({"submit_badge": lambda _f: {}, "enroll_recovery": lambda _f: {}})
        async with assembled(registry=registry) as node:
            peer = await node.connect()
            assert (await peer.ask(0x2F, b'{"badge":"b:1","badge_sig":"s"}'))[0] == 0x30
            enrollment = "pilotenroll:v1:1:github:c0ffee:1795459925:rec-v1"
            request = {"enrollment": enrollment, "enrollment_sig": "s"}
            assert (await peer.ask(0x31, json.dumps(request).encode()))[0] == 0x32
            for type_, text in (
                ("submit_badge", "submit_badge:1:b:1"),
                ("enroll_recovery", "enroll_recovery:1:c0ffee"),
            ):
                (asked,) = registry.asked(type_)
                signature = base64.b64decode(asked["signature"])
                assert verify(node.state.identity.public_key, signature, text.encode())
            assert registry.asked("enroll_recovery")[0]["enrollment"] == enrollment

    async def test_the_registry_may_refuse(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            peer = await node.connect()
            text = await peer.error(0x2F, b'{"badge":"b","badge_sig":"s"}')
            assert text == "submit_badge: registry: request failed"
