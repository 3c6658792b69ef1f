"""The real pilotctl 1.18.0 on our node: the commands about the node, its trust and its networks (`spec/cli.md` §6).

Two nodes of ours, or one of ours and a real daemon, make friends through the relay of our rendezvous.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio

import pilot_trio
from pilot_trio import Config
from pilot_trio.config import RegistryConfig
from pilot_trio.daemon.commands.state import INFO_CACHE
from pilot_trio.daemon.mailbox import POLL_GAP
from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import START_TIMEOUT, CtlResult, GoHome, open_go_daemon
from tests.interop.rendezvous import ADMIN_TOKEN, Restartable, open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]


@attrs.frozen
class OurNode:
    """A node of ours whose socket is where the pilotctl of `home` looks for it."""

    home: GoHome

    async def ctl(self, *arguments: str, timeout: float = 20) -> CtlResult:
        return await self.home.ctl(*arguments, timeout=timeout)

    async def data(self, *arguments: str) -> Any:
        return (await self.ctl(*arguments)).data

    async def failure(self, *arguments: str) -> str:
        result = await self.ctl(*arguments)
        assert result.returncode == 1, result
        return str(result.envelope["message"])


def home_for(make: MakeHome, rendezvous: Restartable) -> GoHome:
    assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
    return make(rendezvous.handle.registry, rendezvous.handle.beacon)


@contextlib.asynccontextmanager
async def our_node(make: MakeHome, rendezvous: Restartable, **settings: Any) -> AsyncGenerator[OurNode, None]:
    home = home_for(make, rendezvous)
    assert rendezvous.handle.beacon is not None
    config = Config(
        home=home.root,
        socket=home.socket,
        registry=RegistryConfig(endpoint=rendezvous.handle.registry),
        beacon=(rendezvous.handle.beacon,),
        listen="127.0.0.1:0",
        **settings,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pilot_trio.serve, config))
        yield OurNode(home)
        nursery.cancel_scope.cancel()


async def test_the_node_itself(make_go_home: MakeHome) -> None:
    async with open_rendezvous() as rendezvous, our_node(make_go_home, rendezvous) as node:
        info = await node.data("info")
        assert (info["node_id"], info["address"], info["ports"]) == (1, "0:0000.0000.0001", 4)
        assert (await node.data("health"))["status"] == "ok"
        assert await node.data("set-hostname", "alpha") == {"hostname": "alpha", "node_id": 1}
        assert (await node.data("find", "alpha"))["node_id"] == 1
        assert (await node.data("set-public"))["visibility"] == "public"
        assert (await node.data("set-private"))["visibility"] == "private"
        assert (await node.data("extras", "set-tags", "a", "b"))["tags"] == ["a", "b"]
        assert (await node.data("clear-hostname"))["hostname"] == ""
        old_key = info["public_key"]
        assert (await node.data("extras", "rotate-key"))["public_key"] != old_key
        assert (await node.data("prefer-direct", "1"))["node_id"] == 1
        assert (await node.data("extras", "set-webhook", "http://127.0.0.1:9/x"))["applied"] is True
        assert (node.home.root / "webhook_url").read_text() == "http://127.0.0.1:9/x"
        assert (await node.data("extras", "clear-webhook"))["applied"] is True
        assert (await node.data("deregister"))["type"] == "deregister_ok"


async def test_signed_requests(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(make_go_home, rendezvous) as signer,
        our_node(make_go_home, rendezvous) as verifier,
    ):
        signed = await signer.data("sign-request", "--audience", "svc", "--body", "hi")
        proof = ("--envelope", signed["envelope"], "--signature", signed["signature"])
        verified = await verifier.data("verify-request", *proof, "--standing")
        assert verified["valid"] is True
        assert (verified["node_id"], verified["trusted"], verified["network_member"]) == (1, False, True)
        assert (await signer.data("verify-request", *proof))["verified_via"] == "cache"
        forged = signed["envelope"].replace("|svc", "|abc")
        refused = await verifier.ctl("verify-request", "--envelope", forged, "--signature", signed["signature"])
        assert refused.returncode == 1
        assert "signature verification failed" in refused.output + refused.errors


async def test_networks(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(make_go_home, rendezvous) as node,
        our_node(make_go_home, rendezvous) as other,
    ):
        created = await rendezvous.ask(
            type="create_network", node_id=1, name="lab", join_rule="token", token="tok", admin_token=ADMIN_TOKEN
        )
        network = created["network_id"]
        assert [row["name"] for row in (await node.data("network", "list"))["networks"]] == ["backbone", "lab"]
        assert "invalid token" in await other.failure("network", "join", str(network), "--token", "no")
        joined = await other.data("network", "join", str(network), "--token", "tok")
        assert joined["network_id"] == network
        members = (await other.data("network", "members", str(network)))["nodes"]
        assert {row["node_id"] for row in members} == {1, 2}
        assert (await other.data("info"))["networks"] == [
            {"network_id": network, "address": f"{network}:{network:04X}.0000.0002"}
        ]
        assert (await node.data("network", "invites"))["invites"] == []
        tags = await other.data("member-tags", "get", "--net", str(network), "--node", "2")
        assert tags["target_node_id"] == 2
        assert (await other.data("policy", "get", "--net", str(network)))["engine"] == "none"
        assert "no active managed networks" in await other.failure("managed", "status")
        await other.data("network", "leave", str(network))
        await trio.sleep(INFO_CACHE)
        assert (await other.data("info"))["networks"] is None


async def test_two_of_our_nodes_make_friends(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(make_go_home, rendezvous) as one,
        our_node(make_go_home, rendezvous) as two,
    ):
        assert (await one.data("handshake", "2", "let us talk"))["status"] == "sent"
        (pending,) = (await two.data("pending"))["pending"]
        assert (pending["node_id"], pending["justification"]) == (1, "let us talk")
        assert (await two.data("approve", "1"))["status"] == "approved"
        await trusts(one, 2, mutual=True)
        await trusts(two, 1, mutual=False)
        await one.data("untrust", "2")
        assert (await one.data("trust"))["trusted"] == []
        assert "node 2 was not trusted" in await one.failure("untrust", "2")
        assert "node 99: node not found" in await one.failure("handshake", "99")


async def test_our_node_asks_a_real_daemon(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(make_go_home, rendezvous) as ours,
        open_go_daemon(home_for(make_go_home, rendezvous)) as real,
    ):
        assert (await ours.data("handshake", "2", "from <trio> & friends"))["status"] == "sent"
        (pending,) = (await real.ctl("pending")).data["pending"]
        assert (pending["node_id"], pending["justification"]) == (1, "from <trio> & friends")
        async with trio.open_nursery() as nursery:
            # The real daemon first tries half a minute to tell us directly, and its pilotctl waits for that.
            nursery.start_soon(partial(real.ctl, "approve", "1", timeout=60))
            await trusts(ours, 2, mutual=True)
            nursery.cancel_scope.cancel()


async def test_a_real_daemon_asks_our_node(make_go_home: MakeHome) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(make_go_home, rendezvous) as ours,
        open_go_daemon(home_for(make_go_home, rendezvous)) as real,
    ):
        assert (await real.ctl("handshake", "1", "hello")).data["status"] == "sent"
        (pending,) = (await ours.data("pending"))["pending"]
        assert (pending["node_id"], pending["justification"]) == (2, "hello")
        await ours.data("approve", "2")
        with trio.fail_after(START_TIMEOUT):  # its log says which way the approval came, and there are several
            while not (found := (await real.ctl("trust")).data["trusted"]):  # noqa: ASYNC110 - it is another process
                await trio.sleep(0.1)
        (trusted,) = found
        assert (trusted["node_id"], trusted["mutual"]) == (1, True)
        await ours.data("untrust", "2")
        with trio.fail_after(10):
            while (await real.ctl("trust")).data["trusted"]:  # noqa: ASYNC110 - it is another process; we told it over the tunnel
                await trio.sleep(0.1)
        # Our rejection of a second request reaches the real daemon through its mailbox.
        assert (await real.ctl("handshake", "1", "again")).data["status"] == "sent"
        await trio.sleep(POLL_GAP)
        assert len((await ours.data("pending"))["pending"]) == 1
        assert (await ours.data("reject", "2", "no")).get("status") == "rejected"
        await real.wait_for_log("relayed handshake rejection received")


async def trusts(node: OurNode, peer: int, *, mutual: bool) -> None:
    """Wait until pilotctl shows the peer as trusted, its key known."""
    with trio.fail_after(10):
        while True:
            rows = (await node.data("trust"))["trusted"]
            if [row for row in rows if row["node_id"] == peer and row["mutual"] is mutual and row["public_key"]]:
                return
            await trio.sleep(0.2)
