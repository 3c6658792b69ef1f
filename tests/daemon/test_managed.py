"""Managed networks (`spec/services.md` §7.3); what clients see is in `tests/daemon/commands/test_managed.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.managed import CYCLE_TIMEOUT, RECONCILE_INTERVAL, RUNNERS_MAX, ManagedNetworks
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import CommandError, DecodeError, RegistryError
from pilot_trio.wire.registry import Message

RULE = {"name": "r1", "on": "connect", "match": "true", "actions": [{"type": "allow"}]}
POLICY = json.dumps({"version": 1, "rules": [RULE]}).encode()


class Registry:
    def __init__(self) -> None:
        self.members = [1, 2, 3]
        self.takes = 0.0
        self.down = False
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        self.asked.append((type_, fields))
        await trio.sleep(self.takes)
        if self.down:
            raise RegistryError("down")
        if type_ == "get_expr_policy":
            return {"network_id": fields["network_id"], "expr_policy": json.loads(POLICY)}
        return {"nodes": [{"node_id": node} for node in self.members]}


def make(admin_token: str = "") -> tuple[ManagedNetworks, Registry, NodeState]:
    state = NodeState(Identity.from_seed(bytes(32)), 0.0, node_id=NodeId(1))
    registry = Registry()
    return ManagedNetworks(state, registry, admin_token, wall_time=lambda: 1795459500.7), registry, state


async def test_members_are_followed(autojump_clock: trio.testing.MockClock) -> None:
    managed, registry, _ = make("sesame")
    async with trio.open_nursery() as nursery:
        await nursery.start(managed.run)
        await trio.sleep(100)
        assert registry.asked == []
        managed.apply(7, POLICY)
        assert managed.status(0) == {
            "network_id": 7,
            "engine": "policy",
            "peers": 0,
            "cycle_num": 0,
            "joined_at": "2026-11-23T18:45:00Z",
        }
        await trio.sleep(RECONCILE_INTERVAL + 0.1)
        assert managed.status(7)["peers"] == 2
        assert registry.asked == [("list_nodes", {"network_id": 7, "admin_token": "sesame"})]
        registry.down = True
        registry.members.append(4)
        await trio.sleep(RECONCILE_INTERVAL)
        assert managed.status(7)["peers"] == 2  # the last known
        registry.down = False
        await trio.sleep(RECONCILE_INTERVAL)
        assert managed.status(7)["peers"] == 3
        managed.drop(7)
        await trio.sleep(RECONCILE_INTERVAL)
        asked = len(registry.asked)
        await trio.sleep(100)
        assert len(registry.asked) == asked
        nursery.cancel_scope.cancel()


async def test_a_cycle_counts_and_has_its_time(autojump_clock: trio.testing.MockClock) -> None:
    managed, registry, _ = make()
    managed.apply(7, POLICY)
    for number in (1, 2):
        assert (await managed.cycle(7))["cycle_num"] == number
    registry.takes = CYCLE_TIMEOUT + 0.1
    with pytest.raises(CommandError, match=r"^force cycle timed out after 5s$"):
        await managed.cycle(7)
    assert managed.status(7)["cycle_num"] == 2


async def test_networks_without_a_policy() -> None:
    managed, _, _ = make()
    managed.apply(7, POLICY)
    with pytest.raises(CommandError, match="no active managed networks"):
        managed.status(8)
    with pytest.raises(CommandError, match="no active policy runner"):
        await managed.reconcile(8)
    assert managed.policy(8) is None


async def test_a_new_document_replaces_the_old_one_and_keeps_the_counters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    managed, _, _ = make()
    managed.apply(7, POLICY)
    await managed.cycle(7)
    managed.apply(7, POLICY + b"\n")
    assert managed.status(7)["cycle_num"] == 1
    assert caplog.text.count("network policy is not enforced") == 1
    with pytest.raises(DecodeError):
        managed.apply(7, b"{}")
    assert managed.policy(7) == POLICY.decode()


def test_managed_networks_are_bounded() -> None:
    managed, _, _ = make()
    for network in range(1, RUNNERS_MAX + 1):
        managed.apply(network, POLICY)
    with pytest.raises(CommandError, match=f"^{RUNNERS_MAX} networks have a policy already$"):
        managed.apply(RUNNERS_MAX + 1, POLICY)
    managed.apply(1, POLICY)
    managed.drop(1)
    managed.apply(RUNNERS_MAX + 1, POLICY)


@pytest.mark.parametrize("policy", [POLICY.decode(), json.loads(POLICY)])
def test_a_join_may_bring_a_policy_as_text_or_object(policy: object) -> None:
    managed, _, _ = make()
    managed.apply_joined(7, {"expr_policy": policy})
    assert json.loads(managed.policy(7) or "") == json.loads(POLICY)


@pytest.mark.parametrize("reply", [{}, {"expr_policy": ""}, {"expr_policy": None}])
def test_a_join_may_bring_none(reply: Message, caplog: pytest.LogCaptureFixture) -> None:
    managed, _, _ = make()
    managed.apply_joined(7, reply)
    assert managed.policy(7) is None
    assert caplog.text == ""


def test_an_unusable_policy_does_not_spoil_a_join(caplog: pytest.LogCaptureFixture) -> None:
    managed, _, _ = make()
    for policy in ("x", {"version": 2}, 17):
        managed.apply_joined(7, {"expr_policy": policy})
    assert managed.policy(7) is None
    assert caplog.text.count("network policy unusable") == 3


async def test_policies_come_with_the_list_of_networks(autojump_clock: trio.testing.MockClock) -> None:
    managed, registry, state = make()
    state.networks = [NetworkId(7), NetworkId(8)]
    directory: list[dict[str, Any]] = [
        {"id": 7, "has_expr_policy": True},
        {"id": 8},
        {"id": 9, "has_expr_policy": True},
        {"id": [], "has_expr_policy": True},
    ]
    registry.down = True
    await managed.sync(directory)
    assert managed.policy(7) is None
    registry.down = False
    await managed.sync(directory)
    assert managed.policy(7)
    assert managed.policy(8) is managed.policy(9) is None
    asked = len(registry.asked)
    await managed.sync(directory)
    assert len(registry.asked) == asked  # it is known
    state.networks = [NetworkId(8)]
    await managed.sync(directory)
    assert managed.policy(7) is None
