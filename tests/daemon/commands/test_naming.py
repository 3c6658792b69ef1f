"""Hostname, visibility, tags, key, webhook, registration (`spec/ipc.md` §5.4)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.daemon.commands.naming import TAGS_MAX
from pilot_trio.errors import RegistryError, RegistryUnavailable
from pilot_trio.wire.registry import Message
from tests.daemon.commands.assembly import ScriptedRegistry, assembled


def echo(fields: dict[str, Any]) -> Message:
    return {key: value for key, value in fields.items() if key != "signature"}


def signed_by(identity: Identity, fields: dict[str, Any], text: str) -> bool:
    return verify(identity.public_key, base64.b64decode(fields["signature"]), text.encode())


@pytest.mark.parametrize(
    ("code", "payload", "type_", "fields"),
    [
        (0x13, b"new-name", "set_hostname", {"hostname": "new-name"}),
        (0x13, b"", "set_hostname", {"hostname": ""}),
        (0x15, b"\x01", "set_visibility", {"public": True}),
        (0x15, b"\x00", "set_visibility", {"public": False}),
        (0x15, b"\x02", "set_visibility", {"public": False}),
        (0x17, b"", "deregister", {}),
        (0x19, b'["a","b","c"]', "set_tags", {"tags": ["a", "b", "c"]}),
        (0x19, b"null", "set_tags", {"tags": []}),
    ],
)
async def test_what_is_asked_of_the_registry_is_signed(
    code: int, payload: bytes, type_: str, fields: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    registry = ScriptedRegistry({type_: echo})
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        answered, body = await peer.ask(code, payload)
        assert (answered, json.loads(body)) == (code + 1, {"type": f"{type_}_ok", "node_id": 1, **fields})
        (asked,) = registry.asked(type_)
        assert signed_by(node.state.identity, asked, f"{type_}:1")
        assert {key: asked[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("code", "payload", "prefix"),
    [
        (0x11, b"x", "resolve_hostname: "),
        (0x13, b"x", "set_hostname: "),
        (0x15, b"\x01", "set_visibility: "),
        (0x17, b"", "deregister: "),
        (0x19, b"[]", "set_tags: "),
        (0x25, b"", "rotate_key: registry: "),
        (0x1F, b"\x01", "network list: "),
        (0x1F, b"\x06", "network poll-invites: "),
    ],
)
async def test_refusals_are_passed_on(
    code: int, payload: bytes, prefix: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with assembled() as node:
        peer = await node.connect()
        assert await peer.error(code, payload) == f"{prefix}registry: request failed"


async def test_what_was_set_is_remembered_only_if_the_registry_agreed(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry({"set_hostname": echo, "set_visibility": echo})
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        await peer.ask(0x13, b"new")
        await peer.ask(0x15, b"\x01")
        assert (node.state.hostname, node.state.public) == ("new", True)
        registry.answers.clear()
        await peer.error(0x13, b"newer")
        await peer.error(0x15, b"\x00")
        assert (node.state.hostname, node.state.public) == ("new", True)


async def test_a_changed_name_is_not_answered_from_the_cache(autojump_clock: trio.testing.MockClock) -> None:
    registry = ScriptedRegistry(
        {
            "set_hostname": echo,
            "resolve_hostname": lambda f: {"node_id": 2, "address": "0:0000.0000.0002", "hostname": f["hostname"]},
        }
    )
    async with assembled(registry=registry) as node:
        peer = await node.connect()
        for name, asked in ((b"x", 1), (b"x", 1)):
            await peer.ask(0x11, name)
            assert len(registry.asked("resolve_hostname")) == asked
        await peer.ask(0x13, b"x")
        await peer.ask(0x11, b"x")
        assert len(registry.asked("resolve_hostname")) == 2


@pytest.mark.parametrize("count", [TAGS_MAX - 1, TAGS_MAX, TAGS_MAX + 1])
async def test_tags_are_few(count: int, autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=ScriptedRegistry({"set_tags": echo})) as node:
        peer = await node.connect()
        code, body = await peer.ask(0x19, json.dumps(["t"] * count).encode())
        if count > TAGS_MAX:
            assert (code, body[2:]) == (0x0A, b"set_tags: maximum 3 tags allowed")
        else:
            assert code == 0x1A


async def test_an_error_key_in_a_success_is_not_passed_on(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=ScriptedRegistry({"deregister": lambda _f: {"error": None, "x": 1}})) as node:
        peer = await node.connect()
        assert json.loads((await peer.ask(0x17))[1]) == {"type": "deregister_ok", "x": 1}


async def test_an_answer_that_json_has_no_form_for_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=ScriptedRegistry({"deregister": lambda _f: {"x": float("inf")}})) as node:
        peer = await node.connect()
        assert (await peer.error(0x17)).startswith("deregister: reply cannot be encoded: ")
        assert node.server.statistics().crashes == 0


async def test_an_oversize_answer_is_an_error_and_not_the_end(autojump_clock: trio.testing.MockClock) -> None:
    async with assembled(registry=ScriptedRegistry({"deregister": lambda _f: {"x": "y" * (1 << 20)}})) as node:
        peer = await node.connect()
        text = await peer.error(0x17)
        assert text.startswith("deregister: reply too large: ")
        assert (await peer.ask(0x21))[0] == 0x22


class TestRotateKey:
    """The key that the registry knows must never be lost."""

    def registry(self, outcome: Exception | None = None) -> ScriptedRegistry:
        def rotate(fields: dict[str, Any]) -> Message:
            if outcome is not None:
                raise outcome
            return {"node_id": fields["node_id"], "public_key": fields["new_public_key"], "address": "x"}

        return ScriptedRegistry({"rotate_key": rotate})

    async def test_the_old_key_vouches_for_the_new_one(self, tmp_path: Path) -> None:
        registry = self.registry()
        async with assembled(registry=registry, home=tmp_path) as node:
            old = node.state.identity
            peer = await node.connect()
            assert (await peer.ask(0x25))[0] == 0x26
            new = node.state.identity
            (asked,) = registry.asked("rotate_key")
            assert asked["new_public_key"] == new.public_key_b64 != old.public_key_b64
            assert signed_by(old, asked, f"rotate:1:{new.public_key_b64}")
            assert Identity.parse((tmp_path / "identity.json").read_bytes()) == new
            assert (tmp_path / "identity.json").stat().st_mode & 0o777 == 0o600
            assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]

    async def test_a_refused_key_is_thrown_away(self, tmp_path: Path) -> None:
        registry = self.registry(RegistryError("no"))
        async with assembled(registry=registry, home=tmp_path) as node:
            old = node.state.identity
            registry.answers["lookup"] = lambda _: {"public_key": old.public_key_b64}
            peer = await node.connect()
            assert await peer.error(0x25) == "rotate_key: registry: registry: no"
            assert node.state.identity == old
            assert list(tmp_path.iterdir()) == []

    async def test_without_an_answer_both_keys_are_kept(self, tmp_path: Path) -> None:
        async with assembled(registry=self.registry(RegistryUnavailable("gone")), home=tmp_path) as node:
            old = node.state.identity
            peer = await node.connect()
            await peer.error(0x25)
            assert node.state.identity == old
            assert [path.name for path in tmp_path.iterdir()] == ["identity.json.next"]

    async def test_a_client_that_leaves_does_not_stop_it_half_way(self, tmp_path: Path) -> None:
        registry = self.registry()
        async with assembled(registry=registry, home=tmp_path) as node:
            old = node.state.identity
            peer = await node.connect()
            await peer.send(0x25)
            while not registry.asked("rotate_key"):  # noqa: ASYNC110  (there is no event for it)
                await trio.sleep(0.001)
            await peer.stream.aclose()
            with trio.fail_after(5):
                while node.state.identity == old:  # noqa: ASYNC110  (there is no event for it)
                    await trio.sleep(0.001)
            assert Identity.parse((tmp_path / "identity.json").read_bytes()) == node.state.identity

    async def test_a_linked_identity_file_is_replaced_where_it_is(self, tmp_path: Path) -> None:
        home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
        home.mkdir()
        elsewhere.mkdir()
        (home / "identity.json").symlink_to(elsewhere / "key")
        async with assembled(registry=self.registry(), home=home) as node:
            peer = await node.connect()
            assert (await peer.ask(0x25))[0] == 0x26
            assert (home / "identity.json").is_symlink()
            assert Identity.parse((elsewhere / "key").read_bytes()) == node.state.identity

    async def test_a_node_without_files_rotates_too(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled(registry=self.registry()) as node:
            old = node.state.identity
            peer = await node.connect()
            assert (await peer.ask(0x25))[0] == 0x26
            assert node.state.identity != old


class TestWebhook:
    """SetWebhook."""

    async def test_it_is_set_and_stored_and_cleared(self, tmp_path: Path) -> None:
        async with assembled(home=tmp_path) as node:
            peer = await node.connect()
            stored = tmp_path / "webhook_url"
            assert (await peer.ask(0x1B, b"http://127.0.0.1:9/x"))[0] == 0x1C
            assert (stored.read_text(), node.webhook.url) == ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x")
            assert stored.stat().st_mode & 0o777 == 0o600
            assert await peer.error(0x1B, b"ftp://x") == 'URL must use http or https scheme, got "ftp"'
            assert node.webhook.url == "http://127.0.0.1:9/x"
            assert (await peer.ask(0x1B))[0] == 0x1C
            assert (await peer.ask(0x1B))[0] == 0x1C
            assert not stored.exists()
            assert node.webhook.url == ""

    async def test_a_full_disk_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "webhook_url").mkdir()
        async with assembled(home=tmp_path) as node:
            peer = await node.connect()
            text = await peer.error(0x1B, b"http://127.0.0.1:9/x")
            assert text.startswith("webhook is set but not stored: ")


class TestPreferDirect:
    """PreferDirect."""

    async def test_a_route_is_asked_for_anew(self, autojump_clock: trio.testing.MockClock) -> None:
        registry = ScriptedRegistry({"resolve": lambda _f: {"real_addr": "127.0.0.1:4000"}})
        async with assembled(registry=registry) as node:
            peer = await node.connect()
            for _ in range(2):
                code, body = await peer.ask(0x2D, b"\x00\x00\x00\x02")
                assert (code, json.loads(body)["resolve_error"]) == (0x2E, "")
            assert len(registry.asked("resolve")) == 2

    async def test_one_does_not_resolve_oneself(self, autojump_clock: trio.testing.MockClock) -> None:
        async with assembled() as node:
            peer = await node.connect()
            _, body = await peer.ask(0x2D, b"\x00\x00\x00\x01")
            assert json.loads(body)["resolve_error"] == ""
            assert node.registry.requests == []
