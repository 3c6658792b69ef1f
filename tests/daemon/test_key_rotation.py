"""Whenever the node or the registry dies during a rotation, the key that counts is found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.address import NodeId
from pilot_trio.config import Config, RegistryConfig
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.homedir import open_home
from pilot_trio.daemon.key_rotation import KeyRotation, dump_next_key, load_next_key, parse_next_key
from pilot_trio.daemon.state import NextKey
from pilot_trio.errors import CommandError, IdentityError, RegistryError, RegistryUnavailable
from pilot_trio.net import files
from tests.daemon.fakes import FakeClient, make_state, refused, unavailable


class Setup:
    def __init__(self, path: Path | None = None) -> None:
        self.state = make_state(7)
        self.old = self.state.identity
        self.registered = self.old.public_key_b64
        self.client = FakeClient({"rotate_key": self.rotate, "lookup": lambda _: {"public_key": self.registered}})
        self.rotation = KeyRotation(self.state, self.client, path)

    def rotate(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.registered = fields["new_public_key"]
        return {"type": "rotate_key_ok", "node_id": 7, "public_key": self.registered}

    def rotate_and_lose_the_answer(self, fields: dict[str, Any]) -> Exception:
        self.rotate(fields)
        return unavailable("recv: EOF")

    def rotate_twice(self, fields: dict[str, Any]) -> Exception:
        self.rotate(fields)
        return refused("signature verification failed")


async def test_new_key_is_used_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    setup = Setup(path)
    answer = await setup.rotation.rotate()
    assert answer["public_key"] == setup.registered == setup.state.identity.public_key_b64 != setup.old.public_key_b64
    assert await files.load_identity(path) == setup.state.identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.json"]
    assert setup.state.next_key is None


async def test_request_that_was_carried_out_twice_counts_once(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["rotate_key"] = setup.rotate_twice
    answer = await setup.rotation.rotate()
    assert answer == {
        "type": "rotate_key_ok",
        "node_id": 7,
        "address": "0:0000.0000.0007",
        "public_key": setup.registered,
    }
    assert setup.state.identity.public_key_b64 == setup.registered


async def test_refused_key_is_discarded(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "identity.json")
    setup.client.answers["rotate_key"] = refused("no")
    with pytest.raises(RegistryError, match="registry: no"):
        await setup.rotation.rotate()
    assert setup.state.identity is setup.old
    assert list(tmp_path.iterdir()) == []


async def test_refusal_is_reported_even_if_the_registry_then_goes_away(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers.update(rotate_key=refused("no"), lookup=unavailable())
    with pytest.raises(RegistryError, match="registry: no"):
        await setup.rotation.rotate()
    assert setup.state.next_key is not None


@pytest.mark.parametrize("carried_out", [True, False])
async def test_unanswered_rotation_is_settled_later(tmp_path: Path, carried_out: bool) -> None:
    path = tmp_path / "identity.json"
    await files.save(path, make_state().identity.dump())
    setup = Setup(path)
    setup.client.answers["rotate_key"] = setup.rotate_and_lose_the_answer if carried_out else unavailable()
    with pytest.raises(RegistryUnavailable):
        await setup.rotation.rotate()
    assert setup.state.identity is setup.old
    await setup.rotation.settle()
    assert (setup.state.identity is setup.old) is not carried_out
    assert setup.state.identity.public_key_b64 == setup.registered
    assert await files.load_identity(path) == setup.state.identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("carried_out", [True, False])
async def test_killed_node_finds_the_key_that_counts(tmp_path: Path, carried_out: bool) -> None:
    config = Config(home=tmp_path, registry=RegistryConfig(endpoint="127.0.0.1:9000"))
    assert config.identity is not None
    old, new = Identity.generate(), Identity.generate()
    await files.save(config.identity, old.dump())
    await files.save(tmp_path / "identity.json.next", dump_next_key(NextKey(NodeId(7), new)))
    home = await open_home(config)
    assert home.identity == old
    assert home.next_key == NextKey(NodeId(7), new)

    setup = Setup(config.identity)
    setup.state.identity, setup.state.next_key, setup.state.node_id = home.identity, home.next_key, NodeId(0)
    setup.registered = (new if carried_out else old).public_key_b64
    await setup.rotation.settle()
    assert setup.client.calls[0].fields == {"node_id": 7}
    assert setup.state.identity.public_key_b64 == setup.registered
    assert (await open_home(config)).next_key is None


async def test_doubt_is_kept_while_the_registry_cannot_tell(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["rotate_key"] = unavailable()
    with pytest.raises(RegistryUnavailable):
        await setup.rotation.rotate()
    for answer in (unavailable(), refused("node 7: node not found")):
        setup.client.answers["lookup"] = answer
        with pytest.raises(RegistryError):
            await setup.rotation.settle()
        with pytest.raises(RegistryError):
            await setup.rotation.rotate()  # not a third key on top of two
    for record in ({}, {"public_key": "somebody else's"}, {"public_key": None}):
        setup.client.answers["lookup"] = record
        await setup.rotation.settle()
        assert setup.state.identity is setup.old
        assert setup.state.next_key is not None


async def test_rotations_do_not_overlap(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.delay = 1
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(setup.rotation.rotate)
        nursery.start_soon(setup.rotation.settle)
    assert [call.at for call in setup.client.calls] == [0, 1, 2]
    assert setup.client.types == ["rotate_key"] * 3
    assert setup.state.identity.public_key_b64 == setup.registered


async def test_nothing_open_costs_no_question(autojump_clock: MockClock) -> None:
    setup = Setup()
    await setup.rotation.settle()
    assert setup.client.calls == []


async def test_cancelled_rotation_is_completed(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.delay = 0.5
    with trio.move_on_after(0.1) as scope:
        await setup.rotation.rotate()
    assert scope.cancelled_caught
    assert setup.state.identity.public_key_b64 == setup.registered != setup.old.public_key_b64


async def test_key_that_cannot_be_saved_is_never_shown_to_the_registry(tmp_path: Path) -> None:
    (tmp_path / "identity.json.next.tmp").mkdir()
    setup = Setup(tmp_path / "identity.json")
    with pytest.raises(CommandError, match="generate keypair: cannot save it: "):
        await setup.rotation.rotate()
    assert setup.client.calls == []
    assert setup.state.next_key is None


async def test_key_that_cannot_be_put_in_place_is_used_and_kept_under_its_other_name(tmp_path: Path) -> None:
    (tmp_path / "identity.json.tmp").mkdir()
    setup = Setup(tmp_path / "identity.json")
    await setup.rotation.rotate()
    assert setup.state.identity.public_key_b64 == setup.registered
    left = await load_next_key(tmp_path / "identity.json")
    assert left is not None
    assert left.identity == setup.state.identity


@pytest.mark.parametrize("content", [b"", b"{}", Identity.generate().dump(), b'{"node_id": 7}'])
async def test_unusable_leftovers_are_passed_over(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(IdentityError):
        parse_next_key(content)
    (tmp_path / "identity.json.next").write_bytes(content)
    assert await load_next_key(tmp_path / "identity.json") is None
    assert "key of an interrupted rotation unusable" in caplog.text
