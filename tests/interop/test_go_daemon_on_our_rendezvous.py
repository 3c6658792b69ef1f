"""Unmodified 1.18.0 daemons and their pilotctl on our rendezvous, all on loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoHome, open_go_daemon
from tests.interop.rendezvous import ADMIN_TOKEN, Restartable, open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]


def home_for(make: MakeHome, rendezvous: Restartable) -> GoHome:
    assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
    return make(rendezvous.handle.registry, rendezvous.handle.beacon)


async def test_daemon_registers_and_is_found(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous), "-public", "-hostname", "alpha") as daemon,
    ):
        assert daemon.node_id == 1
        info = (await daemon.ctl("info")).data
        assert (info["address"], info["hostname"]) == ("0:0000.0000.0001", "alpha")
        lookup = await rendezvous.ask(type="lookup", node_id=1)
        assert (lookup["hostname"], lookup["public"], lookup["version"]) == ("alpha", True, "1.18.0")
        assert lookup["real_addr"] == daemon.endpoint
        assert (await daemon.ctl("lookup", "1")).data["hostname"] == "alpha"
        assert (await daemon.ctl("find", "alpha")).data["address"] == "0:0000.0000.0001"
        # What a daemon logs when the registry does not answer as it should.
        assert not [line for line in daemon.log if "policy load failed" in line or "heartbeat failed" in line]
        beacon = rendezvous.handle.statistics().beacon
        assert beacon is not None and beacon.endpoints == 1


async def test_daemon_keeps_its_id_over_its_own_restart(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous:
        home, other = home_for(make_go_home, rendezvous), home_for(make_go_home, rendezvous)
        async with open_go_daemon(home) as first:
            assert first.node_id == 1
        async with open_go_daemon(other) as stranger, open_go_daemon(home) as again:
            assert (stranger.node_id, again.node_id) == (2, 1)


async def test_daemon_lives_through_our_restart(make_go_home: MakeHome, tmp_path: Path) -> None:
    async with (
        open_rendezvous(tmp_path / "rendezvous.db") as rendezvous,
        open_go_daemon(
            home_for(make_go_home, rendezvous), "-public", "-hostname", "alpha", "-keepalive", "1s"
        ) as daemon,
    ):
        await rendezvous.stop()
        await rendezvous.start()
        # Nothing was lost, so there is nothing to repair: name and visibility are known before the daemon says anything.
        assert rendezvous.requests("register") == 0
        lookup = await rendezvous.ask(type="lookup", node_id=1)
        assert (lookup["hostname"], lookup["public"], lookup["real_addr"]) == ("alpha", True, daemon.endpoint)
        assert (await daemon.ctl("set-hostname", "beta")).data["hostname"] == "beta"
        async with open_go_daemon(home_for(make_go_home, rendezvous)) as newcomer:
            assert newcomer.node_id == 2
        assert daemon.node_id == 1


async def test_daemon_registers_again_when_we_forgot_it(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous), "-hostname", "alpha", "-keepalive", "1s") as daemon,
    ):
        await rendezvous.stop()
        await rendezvous.start()
        await daemon.wait_for_log("re-registered", timeout=60)
        assert rendezvous.requests("register") == 1
        assert rendezvous.requests("heartbeat") >= 1
        assert (await rendezvous.ask(type="lookup", node_id=1))["public_key"]


async def test_private_nodes_agree_to_trust_through_the_relay(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous), "-keepalive", "60s") as asking,
        open_go_daemon(home_for(make_go_home, rendezvous), "-keepalive", "60s") as asked,
    ):
        a, b = str(asking.node_id), str(asked.node_id)
        refused = await asking.ctl("ping", b, "--count", "1", "--timeout", "3s")
        assert refused.returncode != 0
        assert (await asking.ctl("handshake", b, "we", "know", "each", "other")).data["status"] == "sent"
        (pending,) = (await asked.ctl("pending")).data["pending"]
        assert pending["node_id"] == asking.node_id
        assert rendezvous.requests("request_handshake") == 1
        await asked.ctl("approve", a)
        await asking.wait_for_log("trust", timeout=60)
        trusted = (await asking.ctl("trust")).data["trusted"]
        assert [peer["node_id"] for peer in trusted] == [asked.node_id]
        assert rendezvous.handle.statistics().directory.trust_pairs == 1
        # Trust is what opens a private node: the endpoint is resolved, the datagrams go directly.
        results = (await asking.ctl("ping", b, "--count", "2", "--timeout", "30s")).data["results"]
        assert len(results) == 2 and all("rtt_ms" in result for result in results)
        assert (await asking.ctl("untrust", b)).returncode == 0
        assert rendezvous.handle.statistics().directory.trust_pairs == 0


async def test_asked_node_is_poked_through_the_beacon(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous)) as asking,
        open_go_daemon(home_for(make_go_home, rendezvous)) as asked,
    ):
        polls, lines = rendezvous.requests("poll_handshakes"), len(asked.log)
        await asking.ctl("handshake", str(asked.node_id))
        # Its own next poll would come in a minute.
        await asked.wait_for_log("relayed handshake request received", timeout=40, start=lines)
        beacon = rendezvous.handle.statistics().beacon
        assert beacon is not None and beacon.notifies >= 1
        assert rendezvous.requests("poll_handshakes") > polls


async def test_public_nodes_ping_each_other_directly(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous), "-public", "-trust-auto-approve") as one,
        open_go_daemon(
            home_for(make_go_home, rendezvous), "-public", "-trust-auto-approve", "-hostname", "other"
        ) as other,
    ):
        results = (await one.ctl("ping", "other", "--count", "2", "--timeout", "30s")).data["results"]
        assert len(results) == 2
        assert rendezvous.requests("resolve") >= 1
        assert other.node_id == 2


async def test_everyday_commands(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous, open_go_daemon(home_for(make_go_home, rendezvous)) as daemon:
        assert (await daemon.ctl("set-hostname", "alpha")).data["hostname"] == "alpha"
        taken = await daemon.ctl("set-hostname", "Not Valid")
        assert taken.returncode != 0 and "invalid hostname" in taken.envelope["message"]
        assert (await daemon.ctl("set-public")).data["visibility"] == "public"
        assert (await rendezvous.ask(type="lookup", node_id=1))["real_addr"] == daemon.endpoint
        assert (await daemon.ctl("set-private")).data["visibility"] == "private"
        assert "real_addr" not in await rendezvous.ask(type="lookup", node_id=1)
        assert (await daemon.ctl("extras", "set-tags", "web", "search")).data["tags"] == ["web", "search"]
        assert (await daemon.ctl("lookup", "1")).data["tags"] == ["web", "search"]
        assert (await daemon.ctl("extras", "clear-tags")).returncode == 0
        assert "tags" not in (await daemon.ctl("lookup", "1")).data
        assert (await daemon.ctl("clear-hostname")).returncode == 0
        assert "hostname" not in (await daemon.ctl("lookup", "1")).data
        unknown = await daemon.ctl("lookup", "99")
        assert "node 99: node not found" in unknown.envelope["message"]


async def test_rotated_key_is_the_nodes_key_from_then_on(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous:
        home = home_for(make_go_home, rendezvous)
        async with open_go_daemon(home) as daemon:
            before = (await daemon.ctl("lookup", "1")).data["public_key"]
            assert (await daemon.ctl("rotate-key")).returncode == 0
            lookup = (await daemon.ctl("lookup", "1")).data
            assert (lookup["public_key"] != before, lookup["key_generation"]) == (True, 1)
            assert (await daemon.ctl("set-hostname", "alpha")).data["hostname"] == "alpha"  # signed with the new key
        async with open_go_daemon(home) as again:
            assert again.node_id == 1
            assert (await again.ctl("lookup", "1")).data["public_key"] == lookup["public_key"]


async def test_deregistered_node_comes_back_with_its_id(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous:
        home = home_for(make_go_home, rendezvous)
        async with open_go_daemon(home, "-hostname", "alpha") as daemon:
            assert (await daemon.ctl("deregister")).returncode == 0
            gone = await daemon.ctl("lookup", "1")
            assert "node 1: node not found" in gone.envelope["message"]
            assert (await daemon.ctl("find", "alpha")).returncode != 0
        async with open_go_daemon(home) as again:
            assert again.node_id == 1


async def test_networks_are_made_joined_listed_and_left(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(home_for(make_go_home, rendezvous)) as owner,
        open_go_daemon(home_for(make_go_home, rendezvous)) as guest,
    ):
        made = await owner.ctl("network", "create", "--name", "lab", "--node-id", "1", admin_token=ADMIN_TOKEN)
        assert made.data["network_id"] == 1
        names = {network["name"] for network in (await guest.ctl("network", "list")).data["networks"]}
        assert names == {"backbone", "lab"}
        assert (await guest.ctl("network", "join", "1")).data["address"] == "1:0001.0000.0002"
        twice = await guest.ctl("network", "join", "1")
        assert "already in network 1" in twice.envelope["message"]
        members = (await guest.ctl("network", "members", "1")).data["nodes"]
        assert {member["node_id"] for member in members} == {1, 2}
        assert (await guest.ctl("network", "leave", "1")).returncode == 0
        members = (await guest.ctl("network", "members", "1")).data["nodes"]
        assert {member["node_id"] for member in members} == {1}
        wrong = await owner.ctl("network", "create", "--name", "x", "--node-id", "1", admin_token="guess")
        assert "invalid admin token" in wrong.envelope["message"]


async def test_tls_with_a_pinned_certificate_that_survives_our_restart(make_go_home: MakeHome, tmp_path: Path) -> None:
    async with open_rendezvous(tmp_path / "rendezvous.db", tls=True) as rendezvous:
        fingerprint = rendezvous.handle.fingerprint
        await rendezvous.stop()
        await rendezvous.start()
        assert rendezvous.handle.fingerprint == fingerprint
        assert rendezvous.handle.tls is not None and rendezvous.handle.beacon is not None
        home = make_go_home(rendezvous.handle.tls, rendezvous.handle.beacon)
        pin = ("-registry-tls", "-registry-fingerprint")
        async with open_go_daemon(home, *pin, fingerprint) as daemon:
            assert daemon.node_id == 1
            assert (await daemon.ctl("set-hostname", "alpha")).data["hostname"] == "alpha"
        other = make_go_home(rendezvous.handle.tls, rendezvous.handle.beacon)
        async with open_go_daemon(other, *pin, "ab" * 32, ready="certificate fingerprint mismatch"):
            assert rendezvous.handle.statistics().directory.node_ids == 1
