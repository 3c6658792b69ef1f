"""Lookup, resolve, punch, beacons."""

from __future__ import annotations

from typing import Any

import pytest

from pilot_trio.proto.directory import DirectorySettings
from pilot_trio.proto.directory.routes import BEACONS_MAX
from tests.proto.directory.world import DAY, TOKEN, World

BEACON = "198.51.100.7:9001"


@pytest.fixture
def world() -> World:
    world = World(DirectorySettings(admin_token=TOKEN, beacon_address=BEACON))
    world.nodes(3)
    return world


def test_lookup_of_private_nodes_says_everything_but_where(world: World) -> None:
    record = world.ok("lookup", node_id=1)
    assert record["public_key"] == world.keys[1].public_key_b64
    assert not record.keys() & {"real_addr", "endpoint", "hostname", "tags", "version"}


@pytest.mark.parametrize("node_id", ["1", 1.5, -1, 2**32, True, None, [1], 2**70])
def test_ids_of_other_types_read_as_zero(world: World, node_id: object) -> None:
    assert world.send({"type": "lookup", "node_id": node_id})["error"] == "node 0: node not found"


def test_id_written_as_a_float_is_a_number(world: World) -> None:
    assert world.ok("lookup", node_id=1.0)["node_id"] == 1


def test_resolve_checks_requester_signature_target_visibility_in_this_order(world: World) -> None:
    assert world.error("resolve", requester_id=9, node_id=9) == "request failed"
    unsigned = {"type": "resolve", "requester_id": 1, "node_id": 9}
    assert world.send(unsigned)["error"] == "signature required for authenticated node"
    assert world.error("resolve", requester_id=1, node_id=9) == "node 9: node not found"
    assert world.error("resolve", requester_id=1, node_id=2) == "request failed"
    world.ok("set_visibility", node_id=2, public=True)
    assert world.ok("resolve", requester_id=1, node_id=2)["real_addr"] == "203.0.113.9:4000"


def test_private_nodes_resolve_for_themselves_friends_and_fellow_members(world: World) -> None:
    assert world.ok("resolve", requester_id=1, node_id=1)["node_id"] == 1
    world.ok("report_trust", node_id=2, peer_id=1)
    assert world.ok("resolve", requester_id=1, node_id=2)["node_id"] == 2
    world.ok("revoke_trust", node_id=1, peer_id=2)
    assert world.error("resolve", requester_id=1, node_id=2) == "request failed"
    number = world.network("lab", 2)
    world.ok("join_network", node_id=1, network_id=number)
    assert world.ok("resolve", requester_id=1, node_id=2)["node_id"] == 2


def test_relay_only_nodes_show_the_beacon(world: World) -> None:
    world.register(0, relay_only=True, lan_addrs=["10.0.0.1:1"])
    world.ok("set_visibility", node_id=1, public=True)
    resolved = world.ok("resolve", requester_id=2, node_id=1)
    assert resolved == {"node_id": 1, "real_addr": BEACON, "relay_only": True, "key_age_days": 0}
    record = world.ok("lookup", node_id=1)
    assert (record["real_addr"], record["endpoint"], record["relay_only"]) == (BEACON, BEACON, True)


@pytest.mark.parametrize(("seconds", "days"), [(0, 0), (DAY - 1, 0), (DAY, 1), (-5, 0)])
def test_key_age_in_whole_days(world: World, seconds: float, days: int) -> None:
    world.now += seconds
    assert world.ok("resolve", requester_id=1, node_id=1)["key_age_days"] == days


def test_punch_follows_the_rule_of_resolve(world: World) -> None:
    pair = {"requester_id": 1, "node_a": 1, "node_b": 2}
    assert world.error("punch", **(pair | {"requester_id": 3})) == "request failed"
    assert world.error("punch", **(pair | {"node_b": 9})) == "node 9 not found"
    assert world.send({"type": "punch", **pair})["error"] == "signature required for authenticated node"
    assert world.error("punch", **pair) == "request failed"
    world.ok("set_visibility", node_id=2, public=True)
    assert world.ok("punch", **pair)["node_b_addr"] == "203.0.113.9:4000"


def test_the_beacon_punches_by_the_same_rule_and_never_at_who_hides(world: World) -> None:
    may = world.directory.may_punch
    assert not may(1, 2)
    world.ok("set_visibility", node_id=2, public=True)
    assert may(1, 2)
    assert not may(2, 1)  # it is private still
    world.ok("report_trust", node_id=1, peer_id=2)
    assert may(2, 1)
    assert not may(1, 9)
    assert not may(9, 1)
    world.register(0, relay_only=True)
    assert not may(1, 2)
    assert not may(2, 1)


# --- beacons ---


def announce(world: World, number: int, *, loopback: bool = True, **fields: Any) -> dict[str, Any]:
    message = {"type": "beacon_register", "beacon_id": number, "addr": f"192.0.2.1:{number}", **fields}
    return world.send(message, world.peer(loopback=loopback))


def test_beacons_are_listed_until_they_fall_silent(world: World) -> None:
    announce(world, 2)
    announce(world, 1)
    listed = [{"id": 1, "addr": "192.0.2.1:1"}, {"id": 2, "addr": "192.0.2.1:2"}]
    assert world.ok("beacon_list") == {"beacons": listed}
    world.now += 59.9
    announce(world, 1)
    assert len(world.ok("beacon_list")["beacons"]) == 2
    world.now += 0.1
    assert world.ok("beacon_list") == {"beacons": listed[:1]}


def test_beacons_must_be_local_or_know_the_token(world: World) -> None:
    assert announce(world, 1, loopback=False)["error"] == "invalid admin token"
    assert announce(world, 1, loopback=False, admin_token="no")["error"] == "invalid admin token"
    assert announce(world, 1, loopback=False, admin_token=TOKEN)["type"] == "beacon_register_ok"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"beacon_id": 0}, "beacon_id required"),
        ({"addr": ""}, "addr required"),
        ({"addr": "nowhere"}, "beacon addr invalid: write host:port"),
        ({"addr": ":9001"}, "beacon addr invalid: write host:port"),
        ({"addr": "h:0"}, "beacon addr invalid: write host:port"),
        ({"addr": "h" * 300 + ":1"}, "beacon addr invalid: write host:port"),
    ],
)
def test_bad_beacons_are_refused(world: World, fields: dict[str, Any], text: str) -> None:
    assert announce(world, 1, **fields)["error"] == text


def test_beacons_are_bounded_and_refreshing_needs_no_room(world: World) -> None:
    for number in range(1, BEACONS_MAX + 1):
        assert announce(world, number)["type"] == "beacon_register_ok"
    assert "too many beacons" in str(announce(world, BEACONS_MAX + 1)["error"])
    assert announce(world, 1)["type"] == "beacon_register_ok"
    world.now += 60
    assert announce(world, BEACONS_MAX + 1)["type"] == "beacon_register_ok"
