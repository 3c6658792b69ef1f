"""Age and expiry of keys."""

from __future__ import annotations

import pytest

from tests.proto.directory.world import IDENTITIES, TOKEN, World


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes(2)
    world.network("ent", 1, enterprise=True)
    return world


def test_key_info_follows_rotation_and_expiry(world: World) -> None:
    info = {"node_id": 1, "created_at": "2026-11-23T18:46:22Z", "rotate_count": 0, "key_age_days": 0}
    assert world.ok("get_key_info", node_id=1) == info
    world.now += 86_400
    world.ok("rotate_key", node_id=1, new_public_key=IDENTITIES[9].public_key_b64)
    world.keys[1] = IDENTITIES[9]
    world.ok("set_key_expiry", node_id=1, expires_at="2027-01-01T00:00:00+01:00")
    changed = {"rotate_count": 1, "rotated_at": "2026-11-24T18:46:22Z", "expires_at": "2026-12-31T23:00:00Z"}
    assert world.ok("get_key_info", node_id=1) == info | changed
    assert world.error("get_key_info", node_id=9) == "node 9: node not found"


def test_never_takes_the_expiry_away(world: World) -> None:
    world.ok("set_key_expiry", node_id=1, expires_at="2027-01-01T00:00:00Z")
    assert world.ok("set_key_expiry", node_id=1, expires_at="never")["expires_at"] == "never"
    assert "expires_at" not in world.ok("get_key_info", node_id=1)


@pytest.mark.parametrize(
    ("moment", "fits"),
    [
        ("2026-11-23T18:46:22Z", False),
        ("2026-11-23T18:46:23Z", True),
        ("2036-11-20T00:00:00Z", True),
        ("2036-12-01T00:00:00Z", False),
        ("9999-12-31T23:59:59Z", False),
        ("0001-01-01T00:00:00+23:00", False),
        ("2027-01-01", False),
        ("2027-01-01T00:00:00", False),
        ("soon", False),
        ("", False),
    ],
)
def test_expiry_lies_ahead_within_ten_years(world: World, moment: str, fits: bool) -> None:
    answer = world.ask("set_key_expiry", node_id=1, expires_at=moment)
    assert (answer["type"] == "set_key_expiry_ok") == fits
    assert fits or answer["error"].startswith("invalid expires_at")


def test_expiry_is_for_members_of_enterprise_networks(world: World) -> None:
    text = "enterprise feature: key expiry requires enterprise network membership"
    assert world.error("set_key_expiry", node_id=2, expires_at="never") == text
    world.network("plain", 2)
    assert world.error("set_key_expiry", node_id=2, expires_at="never") == text
    message = {"type": "set_key_expiry", "node_id": 1, "expires_at": "never"}
    assert world.send(message)["error"] == "signature required for authenticated node"
    assert world.send(message | {"admin_token": TOKEN})["type"] == "set_key_expiry_ok"


def test_expiry_outlives_the_node(world: World) -> None:
    world.ok("set_key_expiry", node_id=1, expires_at="2027-01-01T00:00:00Z")
    world.ok("deregister", node_id=1)
    world.register(0)
    assert world.ok("get_key_info", node_id=1)["expires_at"] == "2027-01-01T00:00:00Z"
