"""The real pilotctl and two real daemons manage networks on our registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoDaemon, GoHome, open_go_daemon
from tests.interop.rendezvous import ADMIN_TOKEN, open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]


async def ctl(daemon: GoDaemon, command: str) -> Any:
    return (await daemon.ctl(*command.split(), admin_token=ADMIN_TOKEN)).data


async def test_networks_from_creation_to_deletion(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous:
        registry, beacon = rendezvous.handle.registry, rendezvous.handle.beacon
        assert registry is not None and beacon is not None
        async with (
            open_go_daemon(make_go_home(registry, beacon), "-public", "-hostname", "alpha") as alpha,
            open_go_daemon(make_go_home(registry, beacon), "-hostname", "beta") as beta,
        ):
            owner, member = alpha.node_id, beta.node_id
            created = await ctl(alpha, f"network create --name lab --join-rule open --node-id {owner}")
            assert (created["network_id"], created["enterprise"]) == (1, False)
            invited = f"network create --name inv --join-rule invite --enterprise --node-id {owner}"
            assert (await ctl(alpha, invited))["network_id"] == 2
            assert [row["name"] for row in (await ctl(beta, "network list"))["networks"]] == ["backbone", "lab", "inv"]

            assert (await ctl(beta, "network join 1"))["address"] == f"1:0001.0000.{member:04X}"
            roles = {row["hostname"]: row["role"] for row in (await ctl(beta, "network members 1"))["nodes"]}
            assert roles == {"alpha": "owner", "beta": "member"}
            await ctl(alpha, f"extras member-tags set --net 1 --node {member} --tags svc")
            assert (await ctl(beta, f"extras member-tags get --net 1 --node {member}"))["tags"] == ["svc"]

            await ctl(alpha, f"network invite 2 {member}")
            assert [row["network_id"] for row in (await ctl(beta, "network invites"))["invites"]] == [2]
            assert (await ctl(beta, "network accept 2"))["accepted"] is True
            for command, role in (("promote", "admin"), ("demote", "member")):
                assert (await ctl(alpha, f"network {command} 2 {member}"))["role"] == role
                assert (await ctl(beta, f"network role 2 {member}"))["role"] == role
            await ctl(alpha, "network policy 2 set --max-members 5 --allowed-ports 7,1001")
            policy = await ctl(beta, "network policy 2")
            assert (policy["max_members"], policy["allowed_ports"]) == (5, [7, 1001])
            await ctl(alpha, f"network kick 2 {member}")

            await ctl(beta, "network leave 1")
            for number in (1, 2):
                await ctl(alpha, f"network delete {number}")
            assert [row["name"] for row in (await ctl(beta, "network list"))["networks"]] == ["backbone"]


async def test_names_keys_and_leaving(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous:
        registry, beacon = rendezvous.handle.registry, rendezvous.handle.beacon
        assert registry is not None and beacon is not None
        async with open_go_daemon(make_go_home(registry, beacon), "-hostname", "alpha") as daemon:
            node = daemon.node_id
            before = await rendezvous.ask(type="lookup", node_id=node)
            assert (await ctl(daemon, "extras set-tags web search"))["tags"] == ["web", "search"]
            rotated = await ctl(daemon, "rotate-key")
            after = await rendezvous.ask(type="lookup", node_id=node)
            assert (after["key_generation"], after["public_key"]) == (1, rotated["public_key"])
            assert after["public_key"] != before["public_key"]
            assert (after["hostname"], after["tags"]) == ("alpha", ["web", "search"])
            await ctl(daemon, "set-public")  # signed with the new key
            assert (await rendezvous.ask(type="lookup", node_id=node))["public"] is True
            await ctl(daemon, "deregister")
            refused = await daemon.ctl("set-private")
            assert f"set_visibility: registry: node {node}: node not found" in refused.envelope["message"]
