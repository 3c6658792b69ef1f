"""Every method of the real Python SDK 1.18.0 that needs no second node, on our node and on the real daemon alike.

Each test hands a script to another process. The same assertions hold for both daemons; that is the point.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from pilot_trio.config import RendezvousConfig
from pilot_trio.crypto.identity import Identity
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import SystemNetwork
from pilot_trio.testing import open_node
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame
from pilot_trio.wire.registry import decode_message, register_text
from tests.interop.go import GoHome, GoPrograms, open_go_daemon
from tests.interop.rendezvous import ADMIN_TOKEN, ANY_PORT, open_rendezvous
from tests.interop.sdk import run_sdk

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]


@attrs.frozen
class Daemon:
    """A daemon under test: where its clients and its registry's are answered."""

    socket: Path
    registry: Endpoint

    async def run(self, script: str) -> dict[str, Any]:
        """Run a script in which `driver` is connected; return what it put into `results`."""
        return await run_sdk(self.socket, script)

    async def ask_registry(self, **request: Any) -> dict[str, Any]:
        """Ask the registry directly, as an administrator does."""
        decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        async with await trio.open_tcp_stream(*self.registry) as stream:
            await stream.send_all(encode_frame(canonical_json.dumps({"admin_token": ADMIN_TOKEN, **request})))
            while (body := decoder.next_frame()) is None:
                decoder.feed(await stream.receive_some())
        return decode_message(body)

    async def register_stranger(self) -> int:
        """Register a node that nobody runs; return its id."""
        identity = Identity.generate()
        at, key = "127.0.0.1:1", identity.public_key_b64
        signature = identity.sign_text(register_text(at, key))
        answer = await self.ask_registry(type="register", listen_addr=at, public_key=key, signature=signature)
        assert answer["type"] == "register_ok", answer
        return int(answer["node_id"])

    async def create_network(self, owner: int, name: str, *, token: str = "") -> int:
        """Create a network, for those who know `token` if there is one; return its id."""
        rule = "token" if token else "open"
        answer = await self.ask_registry(
            type="create_network", node_id=owner, name=name, join_rule=rule, token=token, enterprise=True
        )
        assert answer["type"] == "create_network_ok", answer
        return int(answer["network_id"])


@pytest.fixture(params=["ours", "original"])
async def daemon(
    request: pytest.FixtureRequest, go_programs: GoPrograms, make_go_home: MakeHome
) -> AsyncGenerator[Daemon]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "ours":
            yield await stack.enter_async_context(_open_ours())
        else:
            yield await stack.enter_async_context(_open_original(make_go_home))


@contextlib.asynccontextmanager
async def _open_ours() -> AsyncGenerator[Daemon]:
    rendezvous = RendezvousConfig(registry=ANY_PORT, beacon=ANY_PORT, admin_token=ADMIN_TOKEN)
    async with open_node(
        network=SystemNetwork(),
        transport="socket",
        rendezvous=rendezvous,
        hostname="alpha",
        public=True,
        admin_token=ADMIN_TOKEN,
    ) as node:
        yield Daemon(node.handle.socket, node.handle.registry)


@contextlib.asynccontextmanager
async def _open_original(make_go_home: MakeHome) -> AsyncGenerator[Daemon]:
    async with open_rendezvous() as rendezvous:
        registry, beacon = rendezvous.handle.registry, rendezvous.handle.beacon
        assert registry is not None
        assert beacon is not None
        home = make_go_home(registry, beacon)
        async with open_go_daemon(home, "-public", "-hostname", "alpha", "-admin-token", ADMIN_TOKEN):
            yield Daemon(home.socket, registry)


async def test_info_and_health(daemon: Daemon) -> None:
    results = await daemon.run("""
        results["info"] = driver.info()
        results["health"] = driver.health()
    """)
    info, health = results["info"], results["health"]
    assert (info["node_id"], info["address"], info["hostname"]) == (1, "0:0000.0000.0001", "alpha")
    assert (info["version"], info["ports"], info["connections"]) == ("1.18.0", 4, 0)
    assert (info["networks"], info["peer_list"], info["conn_list"]) == (None, [], [])
    assert len(info) == 33
    assert (health["status"], health["connections"]) == ("ok", 0)
    assert len(health) == 14


async def test_names_tags_visibility_webhook(daemon: Daemon) -> None:
    results = await daemon.run("""
        results["resolved"] = driver.resolve_hostname("alpha")
        results["unknown"] = error(driver.resolve_hostname, "nobody")
        results["renamed"] = driver.set_hostname("beta")
        results["invalid"] = error(driver.set_hostname, "-no-")
        results["cleared"] = driver.set_hostname("")
        results["private"] = driver.set_visibility(False)
        results["public"] = driver.set_visibility(True)
        results["tags"] = driver.set_tags(["a", "b"])
        results["too many"] = error(driver.set_tags, ["a", "b", "c", "d"])
        results["webhook"] = driver.set_webhook("http://127.0.0.1:1/hook")
        results["bad webhook"] = error(driver.set_webhook, "ftp://x/")
        results["no webhook"] = driver.set_webhook("")
    """)
    assert (results["resolved"]["node_id"], results["resolved"]["address"]) == (1, "0:0000.0000.0001")
    assert "resolve_hostname: registry: " in results["unknown"]
    assert results["renamed"]["hostname"] == "beta"
    assert "set_hostname: registry: " in results["invalid"]
    assert results["cleared"]["hostname"] == ""
    assert results["private"]["type"] == results["public"]["type"] == "set_visibility_ok"
    assert results["tags"]["tags"] == ["a", "b"]
    assert "set_tags: maximum 3 tags allowed" in results["too many"]
    assert results["webhook"] == {"webhook": "http://127.0.0.1:1/hook"}
    assert 'URL must use http or https scheme, got "ftp"' in results["bad webhook"]
    assert results["no webhook"] == {"webhook": ""}


async def test_keys_and_registration(daemon: Daemon) -> None:
    results = await daemon.run("""
        results["before"] = driver.info()["public_key"]
        results["rotated"] = driver.rotate_key()
        results["again"] = driver.rotate_identity()
        time.sleep(0.25)  # one info body serves everybody for 200 ms
        results["after"] = driver.info()["public_key"]
        results["gone"] = driver.deregister()
        results["health"] = driver.health()["status"]
    """)
    assert results["rotated"]["public_key"] != results["again"]["public_key"] == results["after"]
    assert results["before"] != results["after"]
    assert results["gone"]["type"] == "deregister_ok"
    assert results["health"] == "ok"


async def test_trust(daemon: Daemon) -> None:
    results = await daemon.run("""
        results["pending"] = driver.pending_handshakes()
        results["trusted"] = driver.trusted_peers()
        results["approved"] = driver.approve_handshake(77)
        results["rejected"] = driver.reject_handshake(77, "no")
        results["revoked"] = error(driver.revoke_trust, 77)
        results["sent"] = error(driver.handshake, 77, "please")
        results["waited"] = driver.wait_for_trust(77, 120)
    """)
    assert results["pending"] == {"pending": []}
    assert results["trusted"] == {"trusted": []}
    assert results["approved"] == {"node_id": 77, "status": "approved"}
    assert results["rejected"] == {"node_id": 77, "status": "rejected"}
    assert "handshake revoke: node 77 was not trusted" in results["revoked"]
    assert "handshake request: handshake relay: registry: " in results["sent"]
    assert results["waited"] is False


async def test_networks(daemon: Daemon) -> None:
    stranger = await daemon.register_stranger()
    created = await daemon.create_network(stranger, "club", token="sesame")
    own = await daemon.create_network(1, "own")
    results = await daemon.run(f"""
        network = {created}
        results["joined"] = driver.network_join(network, "sesame")
        results["list"] = driver.network_list()
        results["wrong"] = error(driver.network_join, network + 1, "x")
        results["again"] = error(driver.network_join, network, "sesame")
        results["members"] = driver.network_members(network)
        results["invites"] = driver.network_poll_invites()
        results["answered"] = error(driver.network_respond_invite, network + 1, False)
        results["invited"] = error(driver.network_invite, network, 4242)
        results["tags"] = driver.member_tags_set(network, 1, ["x"])
        results["tagged"] = driver.member_tags_get(network, 1)
        results["left"] = driver.network_leave(network)
        results["stuck"] = error(driver.network_leave, {own})
    """)
    assert (results["joined"]["network_id"], results["joined"]["type"]) == (created, "join_network_ok")
    assert {0, created, own} <= {network["id"] for network in results["list"]["networks"]}
    assert "network join: registry: " in results["wrong"]
    assert "network join: registry: " in results["again"]
    assert {member["node_id"] for member in results["members"]["nodes"]} == {1, stranger}
    assert results["invites"]["invites"] == []
    assert "network respond-invite: registry: " in results["answered"]
    assert "network invite: registry: " in results["invited"]
    assert results["tags"]["tags"] == results["tagged"]["tags"] == ["x"]
    assert results["left"]["network_id"] == created
    assert "network leave: registry: cannot leave network: owner must transfer ownership first" in results["stuck"]


async def test_managed_networks_and_policies(daemon: Daemon) -> None:
    results = await daemon.run("""
        results["status"] = error(driver.managed_status, 9)
        results["cycle"] = error(driver.managed_force_cycle, 9)
        results["reconcile"] = error(driver.managed_reconcile, 9)
        results["policy"] = driver.policy_get(9)
        results["set"] = error(driver.policy_set, 9, {"version": 1, "rules": []})
    """)
    assert "managed: no active managed networks" in results["status"]
    assert "managed: no active managed networks" in results["cycle"]
    assert "managed: no active policy runner for network" in results["reconcile"]
    assert results["policy"] == {"engine": "none", "network_id": 9, "type": "managed_policy_ok"}
    assert "managed policy set: " in results["set"]


async def test_streams(daemon: Daemon) -> None:
    results = await daemon.run("""
        address = driver.info()["address"]
        listener = driver.listen(5000)
        results["bound"] = error(driver.listen, 5000)
        near = driver.dial(address + ":5000")
        far = listener.accept()
        near.write(b"hello")
        results["read"] = far.read(100)
        far.write(b"x" * 300_000)
        results["bulk"] = len(near.read_full(300_000))
        far.set_read_deadline(time.time() + 0.05)
        results["late"] = error(far.read, 1)
        far.set_read_deadline(None)
        near.close()
        results["end"] = error(far.read, 1)
        far.close()
        results["refused"] = error(driver.dial, address + ":9999")
        results["unknown"] = error(driver.dial, "0:0000.0000.1092:7", 5.0)
        with driver.dial(address + ":7") as echo:
            echo.write(b"anybody there?")
            results["echo"] = echo.read(100)
        doomed = driver.dial(address + ":5000")
        other = listener.accept()
        time.sleep(0.25)
        rows = driver.info()["conn_list"]
        ids = [row["id"] for row in rows if row["remote_port"] == 5000 and row["state"] == "ESTABLISHED"]
        results["rows"] = len(ids)
        driver.disconnect(ids[0])
        results["disconnected"] = error(other.read, 1)
        listener.close()
        results["still bound"] = error(driver.listen, 5000)
    """)
    assert results["read"] == "hello"
    assert results["bulk"] == 300_000
    assert "port 5000 already bound" in results["bound"]
    assert "i/o timeout" in results["late"]
    assert results["end"] == results["disconnected"] == "EOF"
    assert "connection refused" in results["refused"]
    assert "resolve node 4242: registry: " in results["unknown"]
    assert results["echo"] == "anybody there?"
    assert results["rows"] == 1
    assert "port 5000 already bound" in results["still bound"]  # the SDK's listeners never give a port back


async def test_datagrams(daemon: Daemon) -> None:
    own = await daemon.create_network(1, "own")
    results = await daemon.run(f"""
        address = driver.info()["address"]
        driver.send_to(address + ":6000", b"hello")
        results["got"] = driver.recv_from()
        results["wrong token"] = error(driver.broadcast, {own}, 6000, b"x", "wrong")
        results["backbone"] = error(driver.broadcast, 0, 6000, b"x", "{ADMIN_TOKEN}")
        results["broadcast"] = error(driver.broadcast, {own}, 6000, b"x", "{ADMIN_TOKEN}")
    """)
    assert results["got"]["src_addr"] == "0:0000.0000.0001"
    assert (results["got"]["dst_port"], results["got"]["data"]) == (6000, "aGVsbG8=")
    assert results["got"]["src_port"] >= 49_152
    assert "broadcast denied: invalid admin token" in results["wrong token"]
    assert "broadcast not permitted on backbone network" in results["backbone"]
    assert results["broadcast"] == {"no error": "None"}


async def test_a_client_that_just_vanishes_leaves_nothing(daemon: Daemon) -> None:
    await daemon.run("""
        listener = driver.listen(5000)
        near = driver.dial(driver.info()["address"] + ":5000")
        far = listener.accept()
        near.write(b"x")
    """)
    results = await daemon.run("""
        time.sleep(0.25)
        listener = driver.listen(5000)
        results["connections"] = driver.info()["connections"]
    """)
    assert results["connections"] == 0
