"""Badges, enrolment and recovery, signed by issuers of our own."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.directory import DirectorySettings
from pilot_trio.proto.directory.badges import CLAIM_MAX, NONCES_MAX
from tests.proto.directory.world import IDENTITIES, START, TOKEN, World

ISSUER = Identity.from_seed(b"i" * 32)
COLD = Identity.from_seed(b"c" * 32)
NOW = int(START)
NEW = IDENTITIES[9].public_key_b64


@pytest.fixture
def world() -> World:
    badge_keys, recovery_keys = {"b1": ISSUER.public_key_b64}, {"r1": COLD.public_key_b64}
    world = World(DirectorySettings(admin_token=TOKEN, badge_keys=badge_keys, recovery_keys=recovery_keys))
    world.nodes(2)
    return world


def submit(world: World, badge: str, issuer: Identity = ISSUER, **fields: Any) -> Any:
    return world.ask("submit_badge", **({"node_id": 1, "badge": badge, "badge_sig": issuer.sign_text(badge)} | fields))


def enroll(world: World, text: str = f"pilotenroll:v1:1:github:c0ffee:{NOW}:b1", issuer: Identity = ISSUER) -> Any:
    commitment = (text.split(":") + [""] * 5)[4]
    signature = world.keys[1].sign_text(f"enroll_recovery:1:{commitment}")
    return world.send(
        {
            "type": "enroll_recovery",
            "node_id": 1,
            "enrollment": text,
            "enrollment_sig": issuer.sign_text(text),
            "signature": signature,
        }
    )


def recovery(key: str = NEW, commitment: str = "c0ffee", expiry: int = NOW + 600, nonce: str = "n1") -> str:
    return f"pilotrecover:v1:1:{key}:{commitment}:{expiry}:{nonce}:r1"


def recover(world: World, text: str, issuer: Identity = COLD, **fields: Any) -> Any:
    message = {"type": "recover_identity", "node_id": 1, "recovery": text, "new_public_key": NEW}
    return world.send(message | {"recovery_sig": issuer.sign_text(text)} | fields)


@pytest.mark.parametrize("subject", ["", ":octocat"])
def test_badge_shows_in_lookups_until_the_key_rotates(world: World, subject: str) -> None:
    badge = f"pilotbadge:v1:1:github:{NOW - 5}:0:b1{subject}"
    assert submit(world, badge) == {"type": "submit_badge_ok", "node_id": 1, "provider": "github"}
    world.restart()
    record = world.ok("lookup", node_id=1)
    assert (record["verified"], record["badge"], record["verification_provider"]) == (True, badge, "github")
    assert record["verified_at"] == "2026-11-23T18:46:17Z"
    world.ok("rotate_key", node_id=1, new_public_key=NEW)
    assert "badge" not in world.ok("lookup", node_id=1)


@pytest.mark.parametrize(
    "badge",
    [
        f"pilotbadge:v1:2:github:{NOW}:0:b1",
        f"pilotbadge:v1:01:github:{NOW}:0:b1",
        f"pilotbadge:v1:1:github:0{NOW}:0:b1",
        "pilotbadge:v1:1:github:x:0:b1",
        f"pilotbadge:v1:1:github:{NOW}:{NOW}:b1",
        f"pilotbadge:v2:1:github:{NOW}:0:b1",
        f"pilotbadge:v1:1:github:{NOW}:0:b2",
        f"pilotbadge:v1:1:github:{NOW}:b1",
        f"pilotbadge:v1:1:github:{NOW}:0:b1:s:more",
        f"pilotenroll:v1:1:github:c:{NOW}:b1",
        f"pilotbadge:v1:1:{'g' * CLAIM_MAX}:{NOW}:0:b1",
        "",
    ],
)  # fmt: skip
def test_badges_that_are_not_this_nodes(world: World, badge: str) -> None:
    assert submit(world, badge)["type"] == "error"
    assert "badge" not in world.ok("lookup", node_id=1)


def test_badge_needs_both_signatures(world: World) -> None:
    badge = f"pilotbadge:v1:1:github:{NOW}:{NOW + 9}:b1"
    text = "badge verification failed: badgeverify: badge signature verification failed"
    assert submit(world, badge, COLD)["error"] == text
    assert submit(world, badge, badge_sig="!")["error"].startswith(
        "badge verification failed: invalid signature encoding"
    )
    assert submit(world, badge, signature="QUJD")["error"] == "signature verification failed"
    assert submit(world, badge)["type"] == "submit_badge_ok"


def test_recovery_gives_the_id_to_a_new_key(world: World) -> None:
    badge = f"pilotbadge:v1:1:github:{NOW}:0:b1"
    submit(world, badge)
    assert enroll(world) == {"type": "enroll_recovery_ok", "node_id": 1}
    world.restart()
    answer = recover(world, recovery())
    assert answer == {
        "type": "recover_identity_ok", "node_id": 1, "address": "0:0000.0000.0001", "public_key": NEW,
    }  # fmt: skip
    assert "badge" not in world.ok("lookup", node_id=1)
    assert world.register(IDENTITIES[9])["node_id"] == 1
    assert world.register(0)["node_id"] == 3


def test_recovery_works_while_the_node_is_gone(world: World) -> None:
    enroll(world)
    world.ok("deregister", node_id=1)
    assert recover(world, recovery())["type"] == "recover_identity_ok"
    assert world.register(IDENTITIES[9])["node_id"] == 1


def test_recovery_is_used_once(world: World) -> None:
    enroll(world)
    first = recover(world, recovery())
    assert recover(world, recovery()) == first  # the answer was lost: asked again
    world.restart()
    world.keys[1] = IDENTITIES[9]
    world.ok("rotate_key", node_id=1, new_public_key=IDENTITIES[10].public_key_b64)
    assert recover(world, recovery())["type"] == "error"  # a replay after the key moved on


def test_lost_key_can_repeat_nothing_after_recovery(world: World) -> None:
    enroll(world)
    recover(world, recovery())
    signature = IDENTITIES[0].sign_text(f"rotate:1:{NEW}")
    answer = world.send({"type": "rotate_key", "node_id": 1, "new_public_key": NEW, "signature": signature})
    assert answer["type"] == "error"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (recovery(commitment="other"), {}),
        (recovery(commitment=""), {}),
        (recovery(key="x"), {}),
        (recovery(nonce=""), {}),
        (recovery(expiry=NOW), {}),
        (recovery(expiry=NOW + 1801), {}),
        (recovery(), {"node_id": 2}),
        (recovery(), {"new_public_key": "QUJD"}),
        (recovery(), {"recovery_sig": "QUJD"}),
        (recovery().replace(":r1", ":b1"), {}),
        (recovery(key=IDENTITIES[1].public_key_b64), {"new_public_key": IDENTITIES[1].public_key_b64}),
        (recovery().replace("v1:1:", "v1:9:"), {"node_id": 9}),
    ],
)
def test_recoveries_that_prove_nothing(world: World, text: str, fields: dict[str, Any]) -> None:
    enroll(world)
    assert recover(world, text, **fields)["type"] == "error"
    assert world.ok("lookup", node_id=1)["public_key"] == IDENTITIES[0].public_key_b64


def test_recovery_is_valid_for_thirty_minutes_at_most(world: World) -> None:
    enroll(world)
    assert recover(world, recovery(expiry=NOW + 1800))["type"] == "recover_identity_ok"


def test_recovery_without_enrolment(world: World) -> None:
    assert recover(world, recovery())["error"] == "recovery verification failed: invalid commitment"


@pytest.mark.parametrize(
    "text", [f"pilotenroll:v1:2:github:c:{NOW}:b1", f"pilotenroll:v1:1:github::{NOW}:b1", "pilotenroll:v1:1", ""]
)
def test_enrolments_that_are_not_this_nodes(world: World, text: str) -> None:
    assert enroll(world, text)["type"] == "error"


def test_spent_nonces_are_forgotten_when_they_could_not_be_used_anyway(world: World) -> None:
    enroll(world)
    nonces = world.directory._tables.nonces
    nonces.update({f"x{number}": START + 60 for number in range(NONCES_MAX)})
    assert recover(world, recovery())["error"] == "too many recoveries, retry later"
    world.now += 61
    assert recover(world, recovery())["type"] == "recover_identity_ok"
    assert list(nonces) == ["n1"]
