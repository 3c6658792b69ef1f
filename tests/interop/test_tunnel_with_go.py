"""Tunnels between our node and real 1.18.0 daemons: keys, pings, restarts; on our rendezvous, over loopback."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from pilot_trio.config import Config, RegistryConfig
from pilot_trio.daemon.node import Node, serve_node
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import MemoryTransportListener
from tests.interop.go import GoDaemon, GoHome, open_go_daemon
from tests.interop.rendezvous import Restartable, open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PATIENCE = 30.0  # seconds for what takes milliseconds on an idle machine

MakeHome = Callable[[Endpoint, Endpoint], GoHome]


@asynccontextmanager
async def our_node(rendezvous: Restartable, home: Path) -> AsyncIterator[Node]:
    handle = rendezvous.handle
    assert handle.registry is not None
    assert handle.beacon is not None
    config = Config(
        home=home,
        identity=home / "identity.json",
        registry=RegistryConfig(endpoint=handle.registry),
        beacon=(handle.beacon,),
        listen=Endpoint("127.0.0.1", 0),
        public=True,
    )
    async with trio.open_nursery() as nursery:
        node: Node = await nursery.start(partial(serve_node, config, listener=MemoryTransportListener()))
        await node.enrolment.announced.wait()
        yield node
        nursery.cancel_scope.cancel()


def go_home(make_go_home: MakeHome, rendezvous: Restartable) -> GoHome:
    assert rendezvous.handle.registry is not None
    assert rendezvous.handle.beacon is not None
    return make_go_home(rendezvous.handle.registry, rendezvous.handle.beacon)


def established(go: GoDaemon) -> int:
    return sum('msg="encrypted tunnel established"' in line for line in go.log)


async def test_each_answers_the_others_pings(
    make_go_home: MakeHome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pilot_trio.tunnel")
    async with (
        open_rendezvous() as rendezvous,
        our_node(rendezvous, tmp_path) as node,
        open_go_daemon(go_home(make_go_home, rendezvous), "-public") as go,
    ):
        with trio.fail_after(PATIENCE):
            for _ in range(20):
                await node.tunnel.ping(go.node_id)
            await go.wait_for_log("encrypted tunnel established", f"peer_node_id={node.state.node_id}", "auth=true")
        assert established(go) == 1
        assert len([r for r in caplog.records if r.getMessage() == "encrypted tunnel established"]) == 1
        (row,) = (await go.ctl("info")).data["peer_list"]
        assert row == {"node_id": node.state.node_id, "authenticated": True, "encrypted": True, "relay": False}
        (ours,) = node.tunnel.peer_rows()
        assert (ours["node_id"], ours["endpoint"]) == (go.node_id, go.endpoint)
        assert set(node.tunnel.statistics().drops) <= {"punch"}


async def test_first_contact_may_come_from_the_other_side(make_go_home: MakeHome, tmp_path: Path) -> None:
    async with (
        open_rendezvous() as rendezvous,
        our_node(rendezvous, tmp_path) as node,
        open_go_daemon(go_home(make_go_home, rendezvous), "-public") as go,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(go.ctl, "ping", str(node.state.address), "--count", "1"))
            with trio.fail_after(PATIENCE):
                await node.tunnel.wait_for_session(go.node_id)
                await node.tunnel.ping(go.node_id)
            nursery.cancel_scope.cancel()
        assert established(go) == 1


@pytest.mark.parametrize("asked_by", ["us", "them"])
async def test_tunnel_outlives_a_peer_that_is_killed(make_go_home: MakeHome, tmp_path: Path, asked_by: str) -> None:
    """A killed daemon comes back with the same identity, another X25519 key and another port."""
    async with open_rendezvous() as rendezvous, our_node(rendezvous, tmp_path) as node:
        home = go_home(make_go_home, rendezvous)
        async with open_go_daemon(home, "-public") as go:
            number = go.node_id
            with trio.fail_after(PATIENCE):
                await node.tunnel.ping(number)
            await go.stop(signal.SIGKILL)
        async with open_go_daemon(home, "-public") as go:
            assert go.node_id == number
            async with trio.open_nursery() as nursery:
                if asked_by == "them":
                    nursery.start_soon(partial(go.ctl, "ping", str(node.state.address), "--count", "1"))
                    with trio.fail_after(PATIENCE):
                        await go.wait_for_log("encrypted tunnel established")
                else:
                    await node.tunnel.reset_path(number)
                with trio.fail_after(PATIENCE):
                    await node.tunnel.ping(number)
                nursery.cancel_scope.cancel()
            assert node.tunnel.peer_rows()[0]["endpoint"] == go.endpoint


async def test_they_hear_us_again_after_our_restart(make_go_home: MakeHome, tmp_path: Path) -> None:
    """Ours comes back with the same identity, another X25519 key and another port, at once."""
    async with (
        open_rendezvous() as rendezvous,
        open_go_daemon(go_home(make_go_home, rendezvous), "-public") as go,
    ):
        numbers = set()
        for _ in range(3):
            async with our_node(rendezvous, tmp_path) as node:
                numbers.add(node.state.node_id)
                with trio.fail_after(PATIENCE):
                    await node.tunnel.ping(go.node_id)
        assert len(numbers) == 1
        assert established(go) == 1
        assert sum("peer rekeyed (auth), re-establishing tunnel" in line for line in go.log) == 2
