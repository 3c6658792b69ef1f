"""A whole rendezvous: what it opens, keeps, gives back, and how it ends."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
import trio.testing

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import ConfigError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import Network, SystemNetwork
from pilot_trio.rendezvous.endpoint_table import ENTRY_TTL
from pilot_trio.rendezvous.registrar import LAST_SEEN_INTERVAL, REAP_INTERVAL
from pilot_trio.rendezvous.serve import RendezvousHandle, certificate_path, serve_rendezvous
from pilot_trio.rendezvous.settings import RendezvousConfig
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.wire.beacon import Discover, decode
from tests.rendezvous.raw_client import (
    ALPHA,
    BETA,
    RawClient,
    about_oneself,
    frame,
    heartbeat,
    register,
    request_handshake,
    resolve,
)

ANY_PORT = Endpoint("127.0.0.1", 0)
CHILD = Path(__file__).with_name("rendezvous_child.py")


def make_settings(**fields: Any) -> RendezvousConfig:
    defaults = {"registry": ANY_PORT, "beacon": ANY_PORT, "admin_token": "admin"}
    return RendezvousConfig(**(defaults | fields))


@contextlib.asynccontextmanager
async def open_rendezvous(network: Network, **fields: Any) -> AsyncGenerator[RendezvousHandle, None]:
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(serve_rendezvous, make_settings(**fields), network=network))
        yield handle
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["memory", "system"])
def network(request: pytest.FixtureRequest) -> Network:
    return MemoryNetwork() if request.param == "memory" else SystemNetwork()


async def test_nodes_register_find_each_other_and_learn_their_address(network: Network) -> None:
    async with open_rendezvous(network) as handle:
        client = await RawClient.connect(network, handle.registry)
        assert (await client.ask(register(ALPHA)))["node_id"] == 1
        assert (await client.ask(register(BETA, "127.0.0.1:4002")))["node_id"] == 2
        await client.ask(about_oneself("set_visibility", 2, BETA, public=True))
        assert (await client.ask(resolve(1, 2, ALPHA)))["real_addr"] == "127.0.0.1:4002"
        assert handle.beacon is not None
        node = await network.open_udp(ANY_PORT)
        node.send_nowait(Discover(1).encode(), handle.beacon)  # type: ignore[arg-type]
        assert decode((await node.receive())[0]).port == node.endpoint.port  # type: ignore[union-attr]
        # It moves as often as it registers anew.
        for _ in range(3):
            node.close()
            node = await network.open_udp(ANY_PORT)
            await client.ask(register(ALPHA, str(node.endpoint)))
            node.send_nowait(Discover(NodeId(1)).encode(), handle.beacon)
            await node.receive()
        # A handshake for node 1 is announced where the beacon saw it.
        await client.ask(request_handshake(2, 1, BETA))
        assert (await node.receive())[0] == b"\x0a\x01"
        statistics = handle.statistics()
        assert (statistics.directory.nodes, statistics.registry.connections) == (2, 1)
        assert statistics.beacon is not None and statistics.beacon.notifies == 1
        node.close()
        await client.aclose()


@pytest.mark.parametrize("allowed", [False, True])
async def test_daemons_that_do_not_sign_are_taken_where_the_operator_says_so(allowed: bool) -> None:
    network = MemoryNetwork()
    unsigned = {key: value for key, value in register(ALPHA).items() if key != "signature"}
    async with open_rendezvous(network, allow_unsigned=allowed) as handle:
        client = await RawClient.connect(network, handle.registry)
        answer = await client.ask(unsigned)
        assert answer.get("node_id") == 1 if allowed else answer["error"] == "registration: signature required"
        assert (await client.ask(register(ALPHA)))["node_id"] == 1
        # Whoever has signed once can be nobody else from then on.
        assert "error" in await client.ask(unsigned)
        await client.aclose()


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    network, store = MemoryNetwork(), tmp_path / "rendezvous.db"
    async with open_rendezvous(network, store=store) as handle:
        client = await RawClient.connect(network, handle.registry)
        await client.ask(register(ALPHA))
        await client.ask(about_oneself("set_hostname", 1, ALPHA, hostname="alpha"))
        await client.ask({"type": "create_network", "node_id": 1, "name": "lab", "admin_token": "admin"})
    async with open_rendezvous(network, store=store) as handle:
        client = await RawClient.connect(network, handle.registry)
        lookup = await client.ask({"type": "lookup", "node_id": 1})
        assert (lookup["hostname"], lookup["networks"]) == ("alpha", [0, 1])
        assert (await client.ask(heartbeat(1)))["type"] == "heartbeat_ok"
        assert (await client.ask(register(BETA)))["node_id"] == 2
        assert handle.statistics().store.persistent


async def test_tls_is_a_second_door_to_the_same_registry(network: Network, tmp_path: Path) -> None:
    store = tmp_path / "rendezvous.db"
    async with open_rendezvous(network, tls=ANY_PORT, store=store) as handle:
        plain = await RawClient.connect(network, handle.registry)
        await plain.ask(register(ALPHA))
        assert handle.tls is not None and len(handle.fingerprint) == 64
        assert certificate_path(store).exists()
        await plain.aclose()


async def test_a_registry_may_speak_tls_only_and_have_no_beacon() -> None:
    network = MemoryNetwork()
    async with open_rendezvous(network, registry=None, tls=ANY_PORT, beacon=None) as handle:
        assert (handle.registry, handle.beacon, handle.http) == (None, None, "")
        assert handle.statistics().beacon is None


async def test_relay_only_nodes_are_listed_under_the_beacon() -> None:
    network = MemoryNetwork()
    for fields, expected in (({}, None), ({"beacon_advertise": "beacon.example:9001"}, "beacon.example:9001")):
        async with open_rendezvous(network, **fields) as handle:
            client = await RawClient.connect(network, handle.registry)
            await client.ask(register(ALPHA, relay_only=True))
            await client.ask(about_oneself("set_visibility", 1, ALPHA, public=True))
            lookup = await client.ask({"type": "lookup", "node_id": 1})
            assert lookup["real_addr"] == (expected or str(handle.beacon))


async def test_silent_nodes_are_reaped_and_keep_their_id(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    settings = make_settings(stale_threshold=60.0)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_rendezvous, settings, network=network, clock=lambda: 1e9 + trio.current_time())
        handle = await nursery.start(serve)
        client = await RawClient.connect(network, handle.registry)
        await client.ask(register(ALPHA))
        await client.ask(register(BETA))
        for _ in range(4):
            await trio.sleep(20)
            await client.ask(heartbeat(2, BETA))
        await trio.sleep(REAP_INTERVAL)
        assert (await client.ask(heartbeat(1)))["error"] == "node 1: node not found"
        assert handle.statistics().directory.nodes == 1
        assert (await client.ask(register(ALPHA)))["node_id"] == 1
        nursery.cancel_scope.cancel()


async def test_when_nodes_were_heard_of_is_noted_now_and_then(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    network = MemoryNetwork()
    autojump_clock.autojump_threshold = 0.01  # the store works in a thread
    async with open_rendezvous(network, store=tmp_path / "rendezvous.db") as handle:
        client = await RawClient.connect(network, handle.registry)
        await client.ask(register(ALPHA))
        before = handle.statistics().store.transactions
        await client.ask(heartbeat(1))
        assert handle.statistics().store.transactions == before  # a heartbeat costs no disk …
        await trio.sleep(LAST_SEEN_INTERVAL + 3 * REAP_INTERVAL)
        assert handle.statistics().store.transactions > before  # … but what it says is written now and then


async def test_a_taken_endpoint_is_an_error_and_everything_else_is_given_back(network: Network) -> None:
    async with open_rendezvous(network) as handle:
        for fields in ({"registry": handle.registry}, {"tls": handle.registry}, {"beacon": handle.beacon}):
            settings = make_settings(**fields)
            with pytest.RaisesGroup(OSError, flatten_subgroups=True, allow_unwrapped=True):
                await serve_rendezvous(settings, network=network)
    async with open_rendezvous(network, registry=handle.registry, beacon=handle.beacon):
        pass


async def test_files_that_cannot_be_used_are_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database at all" * 100)
    for fields in (
        {"store": tmp_path / "broken.db"},
        {"tls": ANY_PORT, "tls_certificate": tmp_path / "none", "tls_key": tmp_path / "none"},
    ):
        with pytest.RaisesGroup(ConfigError, flatten_subgroups=True, allow_unwrapped=True):
            await serve_rendezvous(make_settings(**fields), network=MemoryNetwork())


async def test_one_store_belongs_to_one_rendezvous(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with open_rendezvous(network, store=tmp_path / "rendezvous.db"):
        with pytest.RaisesGroup(ConfigError, flatten_subgroups=True, allow_unwrapped=True):
            await serve_rendezvous(make_settings(store=tmp_path / "rendezvous.db"), network=network)


async def test_endpoints_the_beacon_has_seen_are_forgotten_in_time(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with open_rendezvous(network) as handle:
        client = await RawClient.connect(network, handle.registry)
        await client.ask(register(ALPHA))
        node = await network.open_udp(ANY_PORT)
        assert handle.beacon is not None
        node.send_nowait(Discover(1).encode(), handle.beacon)  # type: ignore[arg-type]
        await node.receive()
        statistics = handle.statistics().beacon
        assert statistics is not None and statistics.endpoints == 1
        await trio.sleep(ENTRY_TTL)
        statistics = handle.statistics().beacon
        assert statistics is not None and statistics.endpoints == 0


async def test_pages_show_the_living_registry() -> None:
    network = SystemNetwork()
    async with open_rendezvous(network, http=ANY_PORT) as handle:
        client = await RawClient.connect(network, handle.registry)
        await client.ask(register(ALPHA))
        await client.ask(about_oneself("set_hostname", 1, ALPHA, hostname="alpha"))
        async with httpx.AsyncClient(base_url=handle.http, trust_env=False) as web:
            assert "alpha" in (await web.get("/")).text
            (row,) = (await web.get("/api/nodes")).json()["nodes"]
            assert (row["hostname"], row["public"]) == ("alpha", False)
            assert "pilot_nodes 1.0" in (await web.get("/metrics")).text
        await client.aclose()


def test_a_rendezvous_without_pages_loads_no_web_server() -> None:
    program = """
import sys, trio
from functools import partial
from pilot_trio.rendezvous.serve import serve_rendezvous
from pilot_trio.rendezvous.settings import RendezvousConfig
from pilot_trio.net.endpoint import Endpoint
async def main():
    at = Endpoint("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_rendezvous, RendezvousConfig(registry=at, beacon=at)))
        nursery.cancel_scope.cancel()
trio.run(main)
print(sorted({"hypercorn", "starlette", "prometheus_client", "h11", "anyio"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


# --- faults over real sockets ---


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting, not naming


@attrs.define
class Baseline:
    files: int
    tasks: int

    @classmethod
    def now(cls) -> Baseline:
        return cls(open_files(), trio.lowlevel.current_statistics().tasks_living)

    @classmethod
    def clean(cls) -> Baseline:
        """Like `now`, without what earlier tests left to the garbage collector."""
        gc.collect()
        return cls.now()

    def has_come_back(self) -> bool:
        """Say whether there is nothing more than then; a thread of an earlier test may have let go of some file."""
        now = self.now()
        return now.tasks == self.tasks and now.files <= self.files


@pytest.mark.slow
async def test_a_thousand_connections_and_a_mob_leave_nothing_behind() -> None:
    network = SystemNetwork()
    before = Baseline.clean()
    async with open_rendezvous(network) as handle:
        await trio.testing.wait_all_tasks_blocked()
        serving = Baseline.now()
        bystander = await RawClient.connect(network, handle.registry)
        await bystander.ask(register(ALPHA))
        clients = [await RawClient.connect(network, handle.registry) for _ in range(1000)]
        for number, client in enumerate(clients):
            match number % 5:
                case 0:
                    await client.send(frame(type="lookup", node_id=1))  # and never reads
                case 1:
                    await client.send(b"\x00\x00")  # half a length
                case 2:
                    await client.send(b"\x00\x00\x01\x00{")  # half a request
                case 3:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await client.send(os.urandom(64))
        with trio.fail_after(10):
            for _ in range(20):
                assert (await bystander.ask(heartbeat(1)))["type"] == "heartbeat_ok"
        statistics = handle.statistics().registry
        assert statistics.accepted == 1001 and statistics.connections >= 700
        for client in clients:
            await client.aclose()
        with trio.fail_after(10):
            while handle.statistics().registry.connections > 1:
                await trio.testing.wait_all_tasks_blocked()
        await bystander.aclose()
        with trio.move_on_after(10):
            while not serving.has_come_back():
                await trio.testing.wait_all_tasks_blocked()
        assert serving.has_come_back()
        assert handle.statistics().registry.held_bytes == 0
    assert before.has_come_back()


async def test_a_client_that_resets_disturbs_nobody() -> None:
    network = SystemNetwork()
    async with open_rendezvous(network) as handle:
        assert handle.registry is not None
        bystander = await RawClient.connect(network, handle.registry)
        await bystander.ask(register(ALPHA))
        for payload in (b"", b"\x00", frame(type="lookup", node_id=1) * 50):
            rude = socket.create_connection(handle.registry)
            rude.sendall(payload)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            rude.close()
        with trio.fail_after(5):
            while handle.statistics().registry.connections > 1:
                await bystander.ask(heartbeat(1))
        await bystander.aclose()


async def test_stopping_is_quick_whatever_clients_do() -> None:
    network = SystemNetwork()
    async with trio.open_nursery() as nursery:
        settings = make_settings(http=ANY_PORT, tls=ANY_PORT)
        handle = await nursery.start(partial(serve_rendezvous, settings, network=network))
        clients = [await RawClient.connect(network, handle.registry) for _ in range(5)]
        clients += [await RawClient.connect(network, handle.tls) for _ in range(5)]
        for client in clients:
            await client.send(b"\x00")
        web = await trio.open_tcp_stream("127.0.0.1", httpx.URL(handle.http).port or 0)
        await web.send_all(b"GET / HTT")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for client in clients:
                    assert await client.is_closed()
                    await client.aclose()
                await trio.aclose_forcefully(web)


@contextlib.asynccontextmanager
async def open_child(store: Path) -> AsyncGenerator[tuple[trio.Process, Endpoint], None]:
    """Run a rendezvous in another process; kill it at the end, if that has not happened."""
    process = await trio.lowlevel.open_process([sys.executable, str(CHILD), str(store)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with process.stdout:
            line = b""
            with trio.fail_after(120):
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some()
            yield process, Endpoint("127.0.0.1", int(line))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def register_for_ever(to: Endpoint, confirmed: dict[int, str], *, enough: int, then: trio.Process) -> None:
    """Register new nodes over one connection until it breaks; kill the server in the middle of the others' requests."""
    client = await RawClient.connect(SystemNetwork(), to)
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            identity = Identity.generate()
            await client.send(frame(**register(identity)))
            answer = await client.receive()
            if answer is None:
                break
            assert confirmed.setdefault(answer["node_id"], identity.public_key_b64) == identity.public_key_b64
            if len(confirmed) >= enough:
                then.kill()
    await client.aclose()


@pytest.mark.slow
async def test_killed_in_the_middle_of_requests_it_has_lost_nothing_it_confirmed(tmp_path: Path) -> None:
    store, confirmed = tmp_path / "rendezvous.db", dict[int, str]()
    for round_number in range(1, 4):
        async with open_child(store) as (process, endpoint), trio.open_nursery() as nursery:
            for _ in range(4):
                task = partial(register_for_ever, enough=40 * round_number, then=process)
                nursery.start_soon(task, endpoint, confirmed)
    async with open_child(store) as (_, endpoint):
        client = await RawClient.connect(SystemNetwork(), endpoint)
        assert len(confirmed) >= 120
        for node_id, public_key in confirmed.items():
            assert (await client.ask({"type": "lookup", "node_id": node_id}))["public_key"] == public_key
        newcomer = await client.ask(register(ALPHA))
        assert newcomer["node_id"] > max(confirmed)
        await client.aclose()
