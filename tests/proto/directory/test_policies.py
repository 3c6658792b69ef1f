"""Port policies and expression policies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proto.directory.world import TOKEN, World

NET = 1
EMPTY = {"network_id": NET, "max_members": 0, "allowed_ports": [], "description": ""}


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes(3)
    world.network("ent", 1, enterprise=True)
    return world


def change(world: World, **fields: Any) -> Any:
    return world.ask("set_network_policy", **({"network_id": NET, "admin_token": TOKEN} | fields))


def test_backbone_and_new_networks_allow_everything(world: World) -> None:
    assert world.ok("get_network_policy", network_id=0) == EMPTY | {"network_id": 0}
    assert world.ok("get_network_policy", network_id=NET) == EMPTY
    assert world.error("get_network_policy", network_id=9) == "network 9: network not found"


def test_only_given_fields_change(world: World) -> None:
    change(world, max_members=5, allowed_ports=[7.0, 1001], description="hi")
    assert change(world) == {"type": "set_network_policy_ok"} | EMPTY | {
        "max_members": 5, "allowed_ports": [7, 1001], "description": "hi",
    }  # fmt: skip
    assert change(world, description="")["allowed_ports"] == [7, 1001]
    assert change(world, allowed_ports=None)["allowed_ports"] == []
    world.restart()
    assert world.ok("get_network_policy", network_id=NET)["max_members"] == 5


@pytest.mark.parametrize("value", [0, 1, 10_000])
def test_limits_of_members(world: World, value: int) -> None:
    assert change(world, max_members=value)["max_members"] == value


@pytest.mark.parametrize("value", [-1, 10_001, 1.5, "5", None, True])
def test_impossible_limits_of_members(world: World, value: object) -> None:
    assert change(world, max_members=value)["error"] == "invalid max_members (must be integer 0-10000)"


def test_limit_below_the_present_members(world: World) -> None:
    for node in (2, 3):
        world.ok("join_network", node_id=node, network_id=NET)
    assert change(world, max_members=3)["max_members"] == 3
    assert change(world, max_members=2)["error"] == "cannot set max_members to 2: network already has 3 members"
    assert change(world, max_members=0)["max_members"] == 0


@pytest.mark.parametrize("ports", [[1], [65_535], list(range(1, 101))])
def test_allowed_ports(world: World, ports: list[int]) -> None:
    assert change(world, allowed_ports=ports)["allowed_ports"] == ports


@pytest.mark.parametrize("ports", [[0], [65_536], [7.5], ["7"], [True], "7", 7, {"7": 7}])
def test_impossible_ports(world: World, ports: object) -> None:
    text = "invalid port number in allowed_ports (must be integer 1-65535)"
    assert change(world, allowed_ports=ports)["error"] == text


def test_bounds_of_a_policy(world: World) -> None:
    assert change(world, allowed_ports=list(range(1, 102)))["error"] == "too many allowed_ports (max 100)"
    assert change(world, description="d" * 256)["description"] == "d" * 256
    assert change(world, description="d" * 257)["error"] == "policy description too long (max 256 chars)"


def test_a_bad_field_changes_none(world: World) -> None:
    change(world, max_members=4, allowed_ports=[0])
    assert world.ok("get_network_policy", network_id=NET) == EMPTY


def test_port_policy_is_an_enterprise_feature(world: World) -> None:
    world.network()
    assert change(world, network_id=2)["error"] == "enterprise feature: requires enterprise network"


@pytest.mark.parametrize("as_text", [True, False])
def test_expression_policy_comes_back_as_an_object(world: World, as_text: bool) -> None:
    policy = {"version": 1, "rules": [{"name": "r"}]}
    given = '{"version": 1, "rules": [{"name": "r"}]}' if as_text else policy
    ask = {"network_id": NET, "admin_token": TOKEN}
    assert world.ok("get_expr_policy", network_id=NET) == {"network_id": NET}
    assert world.ok("set_expr_policy", **ask, expr_policy=given) == {"network_id": NET}
    world.restart()
    assert world.ok("get_expr_policy", network_id=NET) == {"network_id": NET, "expr_policy": policy}
    for nothing in ("", "null", None):
        cleared = world.ok("set_expr_policy", **ask, expr_policy=nothing)
        assert cleared == {"network_id": NET, "cleared": True}
    assert world.ok("get_expr_policy", network_id=NET) == {"network_id": NET}
    assert world.error("set_expr_policy", **ask) == "expr_policy field is required"


def test_expression_policy_of_the_backbone_is_none(world: World) -> None:
    assert world.ok("get_expr_policy", network_id=0) == {"network_id": 0}
    assert world.error("get_expr_policy", network_id=9) == "network 9: network not found"
