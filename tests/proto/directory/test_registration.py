"""Registering, heartbeats, rotation, leaving and reaping."""

from __future__ import annotations

import base64

import pytest

from pilot_trio.crypto import identity as identity_module
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.directory import DirectorySettings, PeerInfo, auth
from pilot_trio.proto.directory.registration import (
    ENDPOINT_MAX,
    KEY_EXPIRY_WARNING,
    LAN_ADDRESSES_MAX,
    OWNER_MAX,
    REAP_GAP_MAX,
    VERSION_MAX,
)
from tests.proto.directory.world import DAY, IDENTITIES, START, TOKEN, World


@pytest.fixture
def world() -> World:
    return World()


def registration(identity: Identity, listen: str = "203.0.113.9:4000") -> dict[str, object]:
    key = identity.public_key_b64
    signature = identity.sign_text(f"register:{listen}:{key}")
    return {"type": "register", "listen_addr": listen, "public_key": key, "signature": signature}


def error(world: World, message: dict[str, object]) -> object:
    return world.send(message)["error"]


def test_ids_count_from_one(world: World) -> None:
    assert [world.register(n)["node_id"] for n in range(3)] == [1, 2, 3]


def test_a_known_key_keeps_its_id_and_refreshes_its_record(world: World) -> None:
    world.register(0, owner="a", version="1", lan_addrs=["10.0.0.5:1"], relay_only=True)
    world.ok("set_visibility", node_id=1, public=True)
    world.ok("set_hostname", node_id=1, hostname="one")
    answer = world.register(0, "198.51.100.1:7", version="")
    assert answer == {
        "type": "register_ok", "node_id": 1, "address": "0:0000.0000.0001", "network_id": 0, "hostname": "one",
        "public_key": IDENTITIES[0].public_key_b64, "observed_addr": "198.51.100.1:7", "protocol_version": 1,
    }  # fmt: skip
    record = world.ok("lookup", node_id=1)
    assert (record["version"], record["real_addr"], record["hostname"]) == ("1", "198.51.100.1:7", "one")
    assert "relay_only" not in record
    world.register(1)
    resolved = world.ok("resolve", node_id=1, requester_id=2)
    assert "lan_addrs" not in resolved


def test_one_key_in_two_spellings_is_one_key(world: World) -> None:
    world.register(0)
    key = IDENTITIES[0].public_key_b64
    last = key[-2]  # its two low bits are no part of the key
    other = key[:-2] + chr(ord(last) + 1) + "="
    assert base64.b64decode(other) == base64.b64decode(key)
    signature = IDENTITIES[0].sign_text(f"register:1.2.3.4:5:{other}")
    answer = world.send({"type": "register", "listen_addr": "1.2.3.4:5", "public_key": other, "signature": signature})
    assert (answer["node_id"], answer["public_key"]) == (1, key)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"public_key": ""}, "registration requires public_key"),
        ({"public_key": "!"}, "registration: invalid public_key"),
        ({"public_key": "QUJD"}, "registration: invalid public_key"),
        ({"signature": "!"}, "registration: invalid signature encoding"),
        ({"signature": "QUJD"}, "registration: signature verification failed"),
        ({"listen_addr": "203.0.113.9:4001"}, "registration: signature verification failed"),
        ({"signature": ""}, "registration: signature required"),
        ({"signature": "", "public_key": "QUJD"}, "invalid public key: invalid public key size: 3"),
        ({"signature": "", "public_key": "QU!D"}, "invalid public key: illegal base64 data at input byte 2"),
        ({"owner": "o" * (OWNER_MAX + 1)}, "registration: owner too long (max 320 chars)"),
        ({"version": "v" * (VERSION_MAX + 1)}, "registration: version too long (max 64 chars)"),
        ({"listen_addr": "l" * (ENDPOINT_MAX + 1)}, "registration: listen_addr too long (max 261 chars)"),
    ],
)
def test_bad_registrations_are_refused(world: World, change: dict[str, object], text: str) -> None:
    assert error(world, registration(IDENTITIES[0]) | change) == text
    assert world.directory.counts().node_ids == 0


def test_longest_fields_are_taken(world: World) -> None:
    answer = world.register(0, "l" * ENDPOINT_MAX, owner="o" * OWNER_MAX, version="v" * VERSION_MAX)
    assert answer["type"] == "register_ok"


def test_unsigned_registration_where_allowed_does_not_touch_a_proven_key() -> None:
    world = World(DirectorySettings(require_signature=False))
    unsigned = registration(IDENTITIES[0]) | {"signature": ""}
    assert world.send(unsigned)["node_id"] == 1
    assert world.send(unsigned)["node_id"] == 1
    world.register(0)
    text = "node 1: unsigned registration cannot modify a signature-verified key"
    assert error(world, unsigned) == text
    world.ok("deregister", node_id=1)
    world.restart()
    assert error(world, unsigned) == text  # not even after leaving and a restart


def test_several_nodes_may_have_one_owner(world: World) -> None:
    assert [world.register(n, owner="me@example.com")["node_id"] for n in range(2)] == [1, 2]


def test_full_registry_takes_known_keys_only() -> None:
    world = World(DirectorySettings(max_nodes=2))
    world.nodes(2)
    world.ok("deregister", node_id=1)
    assert world.register(2) == {"type": "error", "error": "request failed"}
    assert world.register(0)["node_id"] == 1


def test_ids_end_before_the_broadcast_id(world: World) -> None:
    world.directory._tables.next_node = 0xFFFFFFFE
    assert world.register(0)["node_id"] == 0xFFFFFFFE
    assert world.register(1)["type"] == "error"


@pytest.mark.parametrize(("count", "kept"), [(31, 31), (32, 32), (33, 32)])
def test_lan_addresses_are_bounded(world: World, count: int, kept: int) -> None:
    assert LAN_ADDRESSES_MAX == 32
    world.register(0, lan_addrs=[f"10.0.0.{n}:1" for n in range(count)])
    assert len(world.ok("resolve", node_id=1, requester_id=1)["lan_addrs"]) == kept


def test_lan_addresses_of_other_types_are_ignored(world: World) -> None:
    world.register(0, lan_addrs=["10.0.0.1:1", 7, None, "", "x" * 300, "\ud800"])
    assert world.ok("resolve", node_id=1, requester_id=1)["lan_addrs"] == ["10.0.0.1:1"]
    world.register(0, lan_addrs="10.0.0.1:1")
    assert "lan_addrs" not in world.ok("resolve", node_id=1, requester_id=1)


def test_hostname_in_a_registration_is_a_wish(world: World) -> None:
    assert world.register(0, hostname="one")["hostname"] == "one"
    taken = world.register(1, hostname="one")
    assert taken["type"] == "register_ok"
    assert taken["hostname_error"] == 'hostname "one" already in use by node 1'
    assert "invalid hostname" in world.register(2, hostname="-")["hostname_error"]


def test_registration_proves_who_uses_the_connection(world: World) -> None:
    peer = PeerInfo("192.0.2.1", 1, 1)
    world.register(0, peer=peer)
    assert peer.authenticated_node == 1


# --- heartbeat ---


def test_heartbeat_refreshes_last_seen_only(world: World) -> None:
    world.register(0)
    world.now += 60
    assert world.ok("heartbeat", node_id=1) == {"time": int(world.now)}
    assert world.ok("lookup", node_id=1)["last_seen_unix"] == int(world.now)


def test_heartbeat_of_an_unknown_node_says_the_words_that_make_it_register_again(world: World) -> None:
    assert world.error("heartbeat", node_id=7) == "node 7: node not found"


def test_heartbeat_needs_the_nodes_own_signature(world: World) -> None:
    world.nodes(2)
    assert world.send({"type": "heartbeat", "node_id": 1})["error"] == "signature required for authenticated node"
    for signature, text in (
        (IDENTITIES[1].sign_text("heartbeat:1"), "signature verification failed"),
        (IDENTITIES[0].sign_text("heartbeat:2"), "signature verification failed"),
        ("A", "invalid signature encoding: illegal base64 data at input byte 1"),
        ("\u00e9", "invalid signature encoding: illegal base64 data at input byte 0"),
    ):
        assert world.send({"type": "heartbeat", "node_id": 1, "signature": signature})["error"] == text


def test_repeated_signature_is_not_verified_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.nodes(1)
    verified: list[bytes] = []

    def counting(key: bytes, signature: bytes, text: bytes) -> bool:
        verified.append(text)
        return identity_module.verify(key, signature, text)

    monkeypatch.setattr(auth, "verify", counting)
    for _ in range(5):
        world.ok("heartbeat", node_id=1)
    assert verified == [b"heartbeat:1"]
    other = IDENTITIES[1].sign_text("heartbeat:1")
    assert world.send({"type": "heartbeat", "node_id": 1, "signature": other})["type"] == "error"
    assert len(verified) == 2  # other bytes are verified, as ever


def test_remembered_signature_dies_with_its_key(world: World) -> None:
    world.nodes(1)
    world.ok("heartbeat", node_id=1)
    world.ok("rotate_key", node_id=1, new_public_key=IDENTITIES[9].public_key_b64)
    assert world.error("heartbeat", node_id=1) == "signature verification failed"


def test_many_signed_texts_do_not_pile_up(world: World) -> None:
    world.nodes(1)
    for peer in range(2, 40):
        world.ask("report_trust", node_id=1, peer_id=peer)
    assert len(world.directory._tables.nodes[1].verified_texts) == 8


def test_expiring_keys_warn_and_expired_ones_are_refused(world: World) -> None:
    world.nodes(1)
    world.network("e", 1, enterprise=True)
    expiry = START + 3 * DAY
    world.ok("set_key_expiry", node_id=1, expires_at="2026-11-26T18:46:22Z")
    world.now = expiry - KEY_EXPIRY_WARNING - 1
    assert "key_expiry_warning" not in world.ok("heartbeat", node_id=1)
    world.now += 1
    assert world.ok("heartbeat", node_id=1)["key_expiry_warning"] is True
    world.now = expiry - 1
    world.ok("heartbeat", node_id=1)
    world.now = expiry
    assert world.error("heartbeat", node_id=1) == "node 1: key expired at 2026-11-26T18:46:22Z"


# --- rotation ---


def test_rotation_moves_the_id_to_the_new_key(world: World) -> None:
    world.nodes(1)
    world.now += DAY * 5
    new = IDENTITIES[9]
    answer = world.ok("rotate_key", node_id=1, new_public_key=new.public_key_b64)
    assert answer == {"node_id": 1, "address": "0:0000.0000.0001", "public_key": new.public_key_b64}
    world.keys[1] = new
    world.ok("heartbeat", node_id=1)
    record = world.ok("lookup", node_id=1)
    assert (record["public_key"], record["key_generation"]) == (new.public_key_b64, 1)
    assert world.ok("resolve", node_id=1, requester_id=1)["key_age_days"] == 0
    assert world.register(new)["node_id"] == 1
    assert world.register(0)["node_id"] == 2  # the old key is anybody's


def test_rotation_repeated_because_its_answer_was_lost_succeeds(world: World) -> None:
    world.nodes(1)
    new = IDENTITIES[9].public_key_b64
    first = world.ok("rotate_key", node_id=1, new_public_key=new)
    world.restart()
    assert world.ok("rotate_key", node_id=1, new_public_key=new) == first
    assert world.ok("lookup", node_id=1)["key_generation"] == 1


def test_rotation_takes_url_safe_signatures(world: World) -> None:
    for number in range(40):  # some signature among these has characters in which the alphabets differ
        node_id = world.register(number)["node_id"]
        new = IDENTITIES[number + 50].public_key_b64
        signature = IDENTITIES[number].sign_text(f"rotate:{node_id}:{new}").replace("+", "-").replace("/", "_")
        world.ok("rotate_key", node_id=node_id, new_public_key=new, signature=signature)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"signature": ""}, "rotate_key requires a valid signature"),
        ({"signature": "!"}, "invalid signature encoding: illegal base64 data at input byte 0"),
        ({"signature": "QUJD"}, "signature verification failed"),
        ({"new_public_key": ""}, "rotate_key requires new_public_key"),
        ({"new_public_key": "QUJD"}, "invalid new_public_key: invalid public key size: 3"),
        ({"new_public_key": IDENTITIES[1].public_key_b64}, "new_public_key already belongs to node 2"),
        ({"node_id": 7}, "node 7: node not found"),
    ],
)
def test_bad_rotations_are_refused(world: World, fields: dict[str, object], text: str) -> None:
    world.nodes(2)
    assert (
        world.error("rotate_key", **({"node_id": 1, "new_public_key": IDENTITIES[9].public_key_b64} | fields)) == text
    )
    assert world.ok("lookup", node_id=1)["key_generation"] == 0


# --- leaving ---


def test_deregistered_node_is_gone_but_keeps_id_and_trust(world: World) -> None:
    world.nodes(2)
    number = world.network("lab", 1)
    world.ok("set_hostname", node_id=1, hostname="one")
    world.ok("report_trust", node_id=1, peer_id=2)
    assert world.ok("deregister", node_id=1) == {}
    assert world.ok("deregister", node_id=1) == {}
    assert world.error("lookup", node_id=1) == "node 1: node not found"
    assert world.ok("list_nodes", network_id=number) == {"nodes": []}
    world.ok("set_hostname", node_id=2, hostname="one")
    assert world.register(0)["node_id"] == 1
    assert world.ok("lookup", node_id=1)["networks"] == [0]
    assert world.ok("check_trust", node_id=1, peer_id=2) == {"trusted": True}


def test_deregistering_needs_the_signature_or_the_administrator(world: World) -> None:
    world.nodes(2)
    message = {"type": "deregister", "node_id": 1}
    assert error(world, message) == "signature required for authenticated node"
    assert error(world, message | {"admin_token": "wrong"}) == "signature required for authenticated node"
    assert world.send(message | {"admin_token": TOKEN, "signature": "bad"})["type"] == "deregister_ok"


def test_silent_nodes_are_reaped_and_come_back_private_with_their_memberships(world: World) -> None:
    world.nodes(2)
    number = world.network("lab", 1)
    world.ok("set_hostname", node_id=1, hostname="one")
    world.ok("set_visibility", node_id=1, public=True)
    world.wait(1000)
    world.ok("heartbeat", node_id=2)
    assert world.wait(799.9) == []
    assert world.wait(0.1) == [1]
    listed = world.ok("list_nodes", network_id=number)["nodes"]
    assert listed == [{"node_id": 1, "address": "1:0001.0000.0001", "offline": True, "role": "owner"}]
    world.restart()
    assert "hostname" not in world.register(0)
    record = world.ok("lookup", node_id=1)
    assert (record["public"], record["networks"]) == (False, [0, number])


@pytest.mark.parametrize("jump", [REAP_GAP_MAX, 12 * 3600.0, 10 * 365 * DAY])
def test_nobody_is_reaped_for_time_in_which_nobody_could_be_heard(world: World, jump: float) -> None:
    world.nodes(2)
    world.wait(1000)
    world.now += jump  # the machine slept, or its clock was set
    world.ok("heartbeat", node_id=2)
    assert world.wait(809.8) == []
    assert world.wait(0.4) == [1]  # the thousand seconds before count
    assert world.wait(989) == []
    assert world.wait(20) == [2]


def test_a_clock_that_is_set_back_makes_no_node_immortal(world: World) -> None:
    world.nodes(2)
    world.wait(1000)
    world.now -= 10 * 365 * DAY
    world.ok("heartbeat", node_id=2)
    assert world.wait(1799) == []
    assert sorted(world.wait(12)) == [1, 2]


@pytest.mark.parametrize(("gap", "reaped"), [(59.9, [1]), (60.0, [1]), (60.1, [])])
def test_a_pass_that_comes_late_is_no_sleep(world: World, gap: float, reaped: list[int]) -> None:
    world.nodes(1)
    world.wait(1790)
    assert world.directory.reap(world.now + gap) == reaped


def test_nothing_to_reap_in_an_empty_directory(world: World) -> None:
    assert world.wait(3600) == []
