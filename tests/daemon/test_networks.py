from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.address import BACKBONE, NetworkId
from pilot_trio.daemon import networks as networks_module
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.networks import ALLOWED_PORTS_MAX, SYNC_INTERVAL, Networks
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import RegistryError, RegistryUnavailable
from tests.daemon.fakes import FakeClient, ShortestWaits, make_state, record_events, refused, unavailable

N3, N5 = NetworkId(3), NetworkId(5)


class Setup:
    def __init__(self, path: Path | None = None, admin_token: str = "") -> None:
        self.state: NodeState = make_state()
        self.client = FakeClient({"lookup": {"type": "lookup_ok", "networks": [0, 3, 5], "public": True}})
        self.events: list[Event] = []
        self.directory: list[list[dict[str, Any]]] = []
        bus = EventBus()
        self.events = record_events(bus)
        self.networks = Networks(
            state=self.state,
            registry=self.client,
            resolver=Resolver(self.client, self.state),
            events=bus,
            admin_token=admin_token,
            path=path,
            on_directory=self.see_directory,
            rng=ShortestWaits(),
        )

    async def see_directory(self, rows: list[dict[str, Any]]) -> None:
        self.directory.append(rows)


async def test_sync_learns_memberships_policies_and_visibility(autojump_clock: MockClock) -> None:
    setup = Setup()
    ports: dict[int, Any] = {0: [], 3: [80, 443, 0, 70000, True, "x"], 5: None}
    setup.client.answers["get_network_policy"] = lambda fields: {"allowed_ports": ports[fields["network_id"]]}
    setup.client.answers["list_networks"] = {"networks": [{"id": 0}, "junk", {"id": 3}]}
    await setup.networks.sync()
    assert setup.state.networks == [3, 5]
    assert setup.state.public
    assert setup.state.allowed_ports == {3: frozenset({80, 443})}
    assert setup.state.port_allowed(N3, 80)
    assert not setup.state.port_allowed(N3, 81)
    assert setup.state.port_allowed(N5, 81)
    assert setup.client.types == ["lookup", *["get_network_policy"] * 3, "list_networks"]
    assert [call.fields["network_id"] for call in setup.client.of("get_network_policy")] == [0, 3, 5]
    assert setup.directory == [[{"id": 0}, {"id": 3}]]


async def test_visibility_is_learnt_at_the_start_only(autojump_clock: MockClock) -> None:
    for first, second in ((True, False), (False, True)):
        setup = Setup()
        setup.client.answers["lookup"] = {"networks": [], "public": first}
        await setup.networks.sync()
        setup.client.answers["lookup"] = {"networks": [], "public": second}
        await trio.sleep(2)
        await setup.networks.sync()
        assert setup.state.public is first


async def test_memberships_from_a_confused_registry_are_filtered(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["lookup"] = {"networks": [5, 5, "3", -1, 0, 70000, True, None], "public": "yes"}
    await setup.networks.sync()
    assert setup.state.networks == [5]
    assert not setup.state.public
    setup.client.answers["lookup"] = {"networks": None}
    await trio.sleep(2)
    await setup.networks.sync()
    assert setup.state.networks == [5]


@pytest.mark.parametrize(("memberships", "followed"), [(2, 2), (3, 3), (4, 3)])
async def test_number_of_memberships_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, memberships: int, followed: int
) -> None:
    monkeypatch.setattr(networks_module, "MEMBERSHIPS_MAX", 3)
    setup = Setup()
    setup.client.answers["lookup"] = {"networks": list(range(1, memberships + 1))}
    await setup.networks.sync()
    assert len(setup.state.networks) == followed


async def test_refused_policy_is_tried_three_times_and_the_old_one_stays(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.state.allowed_ports[N3] = frozenset({80})
    setup.client.answers["get_network_policy"] = refused()
    await setup.networks.refresh(N3)
    assert [call.at for call in setup.client.calls] == pytest.approx([0, 0.2, 0.4])
    assert setup.state.allowed_ports == {3: frozenset({80})}
    assert setup.events == [Event("network.policy_load_failed", {"net_id": 3, "had_prior": True})]


async def test_policy_of_an_absent_registry_is_not_asked_for_again(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["get_network_policy"] = unavailable()
    with pytest.raises(RegistryUnavailable):
        await setup.networks.refresh(BACKBONE)
    assert len(setup.client.calls) == 1
    await setup.networks.sync()  # is quiet about it


async def test_policy_that_was_lifted_admits_all_ports_again(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["get_network_policy"] = {"allowed_ports": [80]}
    await setup.networks.refresh(N3)
    setup.client.answers["get_network_policy"] = {"allowed_ports": []}
    await setup.networks.refresh(N3)
    assert setup.state.port_allowed(N3, 81)


async def test_sync_repeats_every_five_minutes_whatever_happens(autojump_clock: MockClock) -> None:
    setup = Setup()
    with trio.move_on_after(1):
        await setup.networks.run()
    setup.client.answers["lookup"] = unavailable()
    setup.client.calls.clear()
    with trio.move_on_after(3 * SYNC_INTERVAL + 1):
        await setup.networks.run()
    assert len(setup.client.of("lookup")) == 4
    assert setup.state.networks == [3, 5]


async def test_joining_and_leaving_take_effect_at_once(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["get_network_policy"] = {"allowed_ports": [80]}
    await setup.networks.joined(N5, {"type": "join_network_ok", "network_id": 5, "rules": {"links": 3}})
    await setup.networks.joined(N5, {})
    assert setup.state.networks == [5]
    assert not setup.state.port_allowed(N5, 81)
    await setup.networks.left(N5)
    await setup.networks.left(N5)
    assert setup.state.networks == []
    assert setup.state.port_allowed(N5, 81)
    assert setup.events[0] == Event("network.joined", {"network_id": 5, "rules": {"links": 3}})
    assert setup.events[-1] == Event("network.left", {"network_id": 5})


async def test_joining_counts_even_if_the_policy_cannot_be_fetched(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["get_network_policy"] = unavailable()
    await setup.networks.joined(N5, {})
    assert setup.state.networks == [5]


async def test_sync_under_way_does_not_undo_a_join(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["lookup"] = {"networks": []}
    setup.client.delay = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.networks.sync)
        await trio.sleep(0.5)
        nursery.start_soon(setup.networks.joined, N5, {})
    assert setup.state.networks == [5]


async def test_configured_networks_are_joined_with_token_and_signature(autojump_clock: MockClock) -> None:
    setup = Setup(admin_token="secret")
    setup.client.answers["join_network"] = lambda fields: refused() if fields["network_id"] == 8 else {}
    await setup.networks.join_configured([3, 8, 9])
    assert [call.fields["network_id"] for call in setup.client.of("join_network")] == [8, 9]
    assert setup.client.of("join_network")[0].fields["admin_token"] == "secret"
    assert setup.state.networks == [3, 5, 9]
    assert setup.events == [Event("network.auto_joined", {"network_id": 9})]
    setup.client.answers["join_network"] = unavailable()
    with pytest.raises(RegistryUnavailable):
        await setup.networks.join_configured([10])


async def test_no_configured_networks_cost_no_request(autojump_clock: MockClock) -> None:
    setup = Setup()
    await setup.networks.join_configured([])
    assert setup.client.calls == []


async def test_members_are_listed_with_the_admin_token_if_there_is_one(autojump_clock: MockClock) -> None:
    rows = [
        {"node_id": 1},
        {"node_id": "2"},
        "junk",
        {},
        {"node_id": 0},
        {"node_id": True},
        {"node_id": 4, "offline": True},
    ]
    for token, fields in (("", {"network_id": 3}), ("t", {"network_id": 3, "admin_token": "t"})):
        setup = Setup(admin_token=token)
        setup.client.answers["list_nodes"] = {"nodes": rows}
        assert await setup.networks.members(N3) == [1, 4]
        assert setup.client.calls[0].fields == fields
    setup.client.answers["list_nodes"] = refused()
    with pytest.raises(RegistryError):
        await setup.networks.members(N3)


async def test_snapshot_is_stored_beside_the_identity(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "networks.json")
    await setup.networks.sync()
    stored = json.loads((tmp_path / "networks.json").read_bytes())
    assert stored["networks"] == [0, 3, 5]
    assert "T" in stored["synced_at"]


async def test_snapshot_that_cannot_be_stored_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    setup = Setup(tmp_path / "file" / "networks.json")
    await setup.networks.sync()
    assert setup.state.networks == [3, 5]
    assert "cannot save networks" in caplog.text


async def test_of_a_policy_with_very_many_ports_the_first_count(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["get_network_policy"] = {"allowed_ports": list(range(1, 65_536))}
    await setup.networks.refresh(N3)
    assert setup.state.allowed_ports == {3: frozenset(range(1, ALLOWED_PORTS_MAX + 1))}
