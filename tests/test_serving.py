"""The whole program in one call: on real sockets and files, and in memory."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import pilot_trio
from pilot_trio import (
    Config,
    ConfigError,
    DaemonError,
    Endpoint,
    NodeHandle,
    RegistryConfig,
    RendezvousConfig,
    RendezvousHandle,
    StartupError,
    WebhookConfig,
)
from pilot_trio.testing import MemoryNetwork, MemoryTransportListener
from pilot_trio.wire.ipc import Code

SHUTDOWN = 2.0  # seconds that a shutdown may take, whatever hangs
ANY = Endpoint("127.0.0.1", 0)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory whose path is short enough for a Unix socket."""
    path = Path(tempfile.mkdtemp(prefix="pt"))
    yield path
    shutil.rmtree(path)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def config_in(home: Path, name: str = "node", **settings: Any) -> Config:
    settings.setdefault("rendezvous", RendezvousConfig(registry=ANY, beacon=ANY, store=home / "store" / "r.db"))
    return Config(home=home / name, socket=home / f"{name}.sock", **settings)


@asynccontextmanager
async def serving(config: Config, **options: Any) -> AsyncIterator[NodeHandle]:
    async with trio.open_nursery() as nursery:
        handle: NodeHandle = await nursery.start(partial(pilot_trio.serve, config, **options))
        yield handle
        nursery.cancel_scope.cancel()
        started = trio.current_time()
    assert trio.current_time() - started < SHUTDOWN


async def test_node_with_its_own_rendezvous_is_ready_and_gone_cleanly(home: Path) -> None:
    descriptors = open_files()
    async with serving(config_in(home, hostname="node-x")) as handle:
        assert handle.registered
        assert handle.node_id == 1
        assert str(handle.address) == str(await handle.wait_registered()) == "0:0000.0000.0001"
        assert handle.socket == home / "node.sock"
        assert handle.rendezvous is not None
        assert handle.registry == handle.rendezvous.registry
        assert handle.beacon == handle.rendezvous.beacon
        assert handle.statistics().streams.ports == 4
        async with pilot_trio.open_driver(handle.socket) as driver:
            assert (await driver.resolve("node-x")).node_id == 1
            async with await driver.dial(str(handle.address), 7) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
    assert not (home / "node.sock").exists()
    assert open_files() <= descriptors + 1  # Trio keeps what its worker threads need


async def test_node_keeps_its_id_and_name_over_restarts_of_everything(home: Path) -> None:
    async with serving(config_in(home, hostname="node-x")) as first:
        key = first.statistics(), first.address
    async with serving(config_in(home)) as second:
        assert second.address == key[1]
        async with pilot_trio.open_driver(second.socket) as driver:
            assert (await driver.info()).hostname == "node-x"


async def test_second_node_on_the_socket_is_refused_with_the_pid(home: Path) -> None:
    async with serving(config_in(home)) as handle:
        with pytest.raises(StartupError, match=rf"node\.sock.*pid {os.getpid()}"):
            await pilot_trio.serve(config_in(home))
        async with pilot_trio.open_driver(handle.socket) as driver:
            await driver.health()


async def test_second_rendezvous_on_the_port_is_refused_with_the_remedy(home: Path) -> None:
    async with serving(config_in(home)) as handle:
        taken = RendezvousConfig(registry=handle.registry, beacon=ANY)
        with pytest.raises(StartupError, match=r"embedded rendezvous: .*join it by naming it as the registry"):
            await pilot_trio.serve(config_in(home, "other", rendezvous=taken))


async def test_two_nodes_share_a_rendezvous(home: Path) -> None:
    async with serving(config_in(home)) as first:
        settings = RegistryConfig(endpoint=first.registry)
        other = config_in(home, "other", registry=settings, beacon=[first.beacon], rendezvous=None)
        async with serving(other) as second:
            assert second.node_id == 2
            assert second.rendezvous is None
            assert second.beacon == first.beacon


async def test_unreachable_registry_is_no_reason_not_to_start(home: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", sock.getsockname()[1])
        async with serving(config_in(home, registry=RegistryConfig(endpoint=endpoint), rendezvous=None)) as handle:
            assert not handle.registered
            assert handle.node_id == 0
            async with pilot_trio.open_driver(handle.socket) as driver:
                await driver.health()


async def test_end_does_not_wait_for_a_registry_and_a_webhook_that_hang(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint("127.0.0.1", silent.getsockname()[1])
        webhook = WebhookConfig(url=f"http://{endpoint}/")
        registry = RegistryConfig(endpoint=endpoint)
        config = config_in(home, registry=registry, rendezvous=None, webhook=webhook)
        async with (
            serving(config) as handle,
            pilot_trio.open_driver(handle.socket) as driver,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(driver.resolve, "nobody")
            await driver.health()
            nursery.cancel_scope.cancel()
        with silent.accept()[0]:
            pass


async def test_start_that_fails_raises_its_reason_bare(home: Path) -> None:
    config = config_in(home)
    assert config.identity is not None
    config.identity.parent.mkdir()
    config.identity.write_bytes(b"{}")
    config.identity.chmod(0o644)
    with pytest.raises(StartupError, match=r"^load identity: identity file has loose permissions"):
        await pilot_trio.serve(config)
    config.identity.chmod(0o600)
    with pytest.raises(StartupError, match=r"^load identity: unmarshal identity"):
        await pilot_trio.serve(config)
    (home / "store" / "blocked").mkdir(parents=True)
    bad_store = RendezvousConfig(registry=ANY, beacon=ANY, store=home / "store" / "blocked")
    with pytest.raises((StartupError, ConfigError), match="blocked"):
        await pilot_trio.serve(config_in(home, rendezvous=bad_store))


async def test_state_is_private(home: Path) -> None:
    async with serving(config_in(home)):
        pass
    for path in home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    account = json.loads((home / "node" / "account.json").read_bytes())
    assert account["email"].endswith("@nodes.pilotprotocol.network")


async def test_everything_runs_in_memory_under_virtual_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    network, listener = MemoryNetwork(), MemoryTransportListener()
    config = Config(home=tmp_path, identity=None, rendezvous=RendezvousConfig(registry=ANY, beacon=ANY))
    async with serving(config, network=network, listener=listener) as handle:
        await handle.wait_registered()
        await trio.sleep(3600)
        async with pilot_trio.open_driver(connect_with=listener.open_transport) as driver:
            assert (await driver.info()).node_id == 1
        assert handle.statistics().enrolment.heartbeats >= 58
        assert handle.statistics().enrolment.failed_heartbeats == 0
        assert handle.statistics().beacon.replies >= 58
    assert network.statistics().tcp_refused == 0


async def test_friends_find_each_other_by_name_on_any_connection(autojump_clock: MockClock, tmp_path: Path) -> None:
    network = MemoryNetwork()
    first_listener, second_listener = MemoryTransportListener(), MemoryTransportListener()
    rendezvous = RendezvousConfig(registry=ANY, beacon=ANY)
    first_config = Config(home=tmp_path, identity=None, hostname="first", rendezvous=rendezvous)
    async with serving(first_config, network=network, listener=first_listener) as first:
        await first.wait_registered()
        assert first.beacon is not None
        registry = RegistryConfig(endpoint=first.registry)
        second_config = Config(home=tmp_path, identity=None, registry=registry, beacon=first.beacon)
        async with (
            serving(second_config, network=network, listener=second_listener) as second,
            pilot_trio.open_driver(connect_with=first_listener.open_transport) as one,
            pilot_trio.open_driver(connect_with=second_listener.open_transport) as two,
        ):
            await second.wait_registered()
            with pytest.raises(DaemonError, match='hostname "first" not found'):
                await two.resolve("first")
            asked = json.loads(await two.command(Code.HANDSHAKE, b"\x01" + first.node_id.to_bytes(4, "big") + b"hello"))
            assert asked["status"] == "sent"
            # It may have looked into its mailbox a moment ago, and then does so again after a few seconds.
            while not (pending := json.loads(await one.command(Code.HANDSHAKE, b"\x04"))["pending"]):  # noqa: ASYNC110
                await trio.sleep(1)
            assert [(row["node_id"], row["justification"]) for row in pending] == [(second.node_id, "hello")]
            await one.command(Code.HANDSHAKE, b"\x02" + second.node_id.to_bytes(4, "big"))
            waited = await two.command(Code.HANDSHAKE, b"\x07" + first.node_id.to_bytes(4, "big") + b"\0\0\x27\x10")
            assert json.loads(waited) == {"node_id": first.node_id, "trusted": True}
            found: list[int] = []

            async def find() -> None:
                async with pilot_trio.open_driver(connect_with=second_listener.open_transport) as driver:
                    found.append((await driver.resolve("first")).node_id)

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(find)
            assert found == [first.node_id] * 8


async def test_key_rotation_keeps_the_id_over_a_restart(home: Path) -> None:
    async with serving(config_in(home)) as before:
        async with pilot_trio.open_driver(before.socket) as driver:
            key = (await driver.info()).public_key
            await driver.rotate_key()
        address = before.address
    async with serving(config_in(home)) as after, pilot_trio.open_driver(after.socket) as driver:
        assert after.address == address
        assert (await driver.info()).public_key != key


@pytest.mark.parametrize("pinned", [True, False])
async def test_node_talks_tls_to_the_registry_that_it_was_told_to_trust(
    autojump_clock: MockClock, tmp_path: Path, pinned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    network, listener = MemoryNetwork(), MemoryTransportListener()
    settings = RendezvousConfig(registry=None, tls=ANY, beacon=ANY)
    async with trio.open_nursery() as nursery:
        rendezvous: RendezvousHandle = await nursery.start(
            partial(pilot_trio.serve_rendezvous, settings, network=network)
        )
        fingerprint = rendezvous.fingerprint if pinned else "0" * 64
        registry = RegistryConfig(endpoint=rendezvous.tls, tls=True, fingerprint=fingerprint)
        config = Config(home=tmp_path, identity=None, registry=registry)
        async with serving(config, network=network, listener=listener) as handle:
            await trio.sleep(60)
            assert handle.registered is pinned
            mismatch = f"certificate fingerprint mismatch: got {rendezvous.fingerprint}, want {'0' * 64}"
            warnings = [str(kv["error"]) for record in caplog.records if "error" in (kv := getattr(record, "kv", {}))]
            assert any(mismatch in text for text in warnings) is not pinned
        nursery.cancel_scope.cancel()


async def test_an_identity_serves_one_node_at_a_time(home: Path) -> None:
    for _ in range(2):  # free again afterwards
        async with serving(config_in(home)) as first:
            other = RegistryConfig(endpoint=first.registry)
            second = config_in(home, "other", identity=home / "node/identity.json", registry=other, rendezvous=None)
            with pytest.RaisesGroup(
                pytest.RaisesExc(StartupError, match=rf"is in use by a running node \(pid {os.getpid()}\)")
            ):
                async with serving(second):
                    pass
            assert not (home / "other.sock").exists()
