"""Our driver on the real 1.18.0 daemon: what it says, what it refuses, and that cancelling never confuses the two."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio
import trio.lowlevel

from pilot_trio.address import BACKBONE, Address, NodeId
from pilot_trio.driver import Driver, PilotStream, open_driver
from pilot_trio.driver.link import STREAM_BUFFER
from pilot_trio.errors import DaemonError, DialRefused, NoRoute, PilotError, PortInUse
from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoDaemon, GoHome, open_go_daemon
from tests.interop.rendezvous import ADMIN_TOKEN, Restartable, open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

SELF = Address(BACKBONE, NodeId(1))


@pytest.fixture
async def rendezvous() -> AsyncGenerator[Restartable]:
    async with open_rendezvous() as rendezvous:
        yield rendezvous


@pytest.fixture
async def daemon(
    make_go_home: Callable[[Endpoint, Endpoint], GoHome], rendezvous: Restartable
) -> AsyncGenerator[GoDaemon]:
    assert rendezvous.handle.registry is not None
    assert rendezvous.handle.beacon is not None
    home = make_go_home(rendezvous.handle.registry, rendezvous.handle.beacon)
    async with open_go_daemon(home, "-public", "-hostname", "alpha", "-admin-token", ADMIN_TOKEN) as daemon:
        yield daemon


@pytest.fixture
async def node(daemon: GoDaemon) -> AsyncGenerator[Driver]:
    async with open_driver(daemon.home.socket) as node:
        with trio.fail_after(50):
            yield node


async def make_pair(node: Driver, port: int) -> tuple[PilotStream, PilotStream]:
    listener = await node.listen(port)
    near = await node.dial(SELF, port)
    far = await listener.accept()
    await listener.aclose()
    return near, far


async def test_it_tells_of_itself(node: Driver) -> None:
    info = await node.info()
    assert (info.node_id, info.address, info.hostname, info.version) == (1, SELF, "alpha", "1.18.0")
    assert "dgram_confirm" in info.features
    assert (await node.health()).status == "ok"
    resolved = await node.resolve("alpha")
    assert (resolved.node_id, resolved.address) == (1, SELF)


async def test_streams_carry_bulk_both_ways(node: Driver) -> None:
    near, far = await make_pair(node, 5000)
    assert near.remote == (SELF, 5000)
    data = random.Random(1).randbytes(300_000)

    async def send(stream: PilotStream) -> None:
        await stream.send_all(data)

    async def receive(stream: PilotStream) -> None:
        received = bytearray()
        while len(received) < len(data):
            received += await stream.receive_some()
        assert received == data

    async with trio.open_nursery() as nursery:
        for stream in (near, far):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    await near.aclose()
    assert await far.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await far.send_all(b"x")
    await far.aclose()


async def test_echo_and_serve_listeners(node: Driver) -> None:
    async with await node.dial("alpha", 7) as stream:
        await stream.send_all(b"anybody there?")
        assert await stream.receive_some() == b"anybody there?"

    async def shout(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.send_all((await stream.receive_some()).upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [await node.listen(5000)])
        for _ in range(5):
            async with await node.dial("alpha:5000") as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"HELLO"
        nursery.cancel_scope.cancel()


async def test_refusals_have_their_classes(node: Driver) -> None:
    with pytest.raises(DialRefused):
        await node.dial(SELF, 9999)
    with pytest.raises(NoRoute, match="resolve node 4242: registry: "):
        await node.dial(4242, 7)
    with pytest.raises(PortInUse):
        await node.listen(7)
    with pytest.raises(DaemonError, match=r"^sendto: resolve node 4242: registry: "):
        await node.send_datagram(4242, b"x", 7)
    with pytest.raises(DaemonError, match=r"^resolve_hostname: registry: "):
        await node.resolve("nobody")


async def test_a_closed_port_can_be_bound_again(node: Driver) -> None:
    for _ in range(3):
        near, far = await make_pair(node, 5000)
        await near.send_all(b"after the listener")
        assert await far.receive_some() == b"after the listener"
        await near.aclose()
        await far.aclose()


async def test_datagrams(node: Driver) -> None:
    async with node.datagrams(6000) as datagrams:
        for number in range(20):
            assert await node.send_datagram(SELF, b"datagram %d" % number, 6000)
        got = {(await datagrams.receive()).data for _ in range(20)}
    assert got == {b"datagram %d" % number for number in range(20)}
    with pytest.raises(DaemonError, match="invalid admin token"):
        await node.broadcast(0, 6000, b"x", "wrong")


async def test_commands(node: Driver) -> None:
    assert (await node.set_hostname("beta"))["hostname"] == "beta"
    assert (await node.set_tags(["a", "b"]))["tags"] == ["a", "b"]
    await node.set_public(False)
    assert (await node.set_webhook(""))["webhook"] == ""
    assert (await node.prefer_direct(1))["node_id"] == 1
    assert await node.trust.pending() == []
    assert await node.trust.trusted() == []
    assert await node.trust.is_trusted(1)
    assert not await node.trust.is_trusted(2)
    assert (await node.trust.approve(77))["status"] == "approved"
    assert (await node.trust.reject(77, "no"))["status"] == "rejected"
    with pytest.raises(DaemonError, match="was not trusted"):
        await node.trust.revoke(77)
    assert [network["id"] for network in (await node.networks.list())["networks"]] == [0]
    assert (await node.networks.invitations())["invites"] == []
    with pytest.raises(DaemonError, match="network join: registry: "):
        await node.networks.join(7, "token")
    with pytest.raises(DaemonError, match="no active managed networks"):
        await node.managed.status()
    with pytest.raises(DaemonError, match="no active policy runner"):
        await node.managed.reconcile(7)
    assert (await node.managed.policy(7))["engine"] == "none"
    before = await node.info()
    await node.rotate_key()
    await trio.sleep(0.3)  # one info body serves everybody for 200 ms
    assert (await node.info()).public_key != before.public_key


async def test_signatures_verify(node: Driver) -> None:
    signed = await node.signing.sign("api.example", b"body")
    checked = await node.signing.verify(signed["envelope"], signed["signature"])
    assert (checked["valid"], checked["node_id"]) == (True, 1)
    forged = await node.signing.verify(signed["envelope"].replace("api", "bpi"), signed["signature"])
    assert forged["valid"] is False


async def test_a_health_does_not_wait_for_a_wait(node: Driver) -> None:
    async with trio.open_nursery() as nursery:
        for stranger in range(50, 60):
            nursery.start_soon(node.trust.wait, stranger)
        with trio.fail_after(15):  # half of what the others wait
            for _ in range(20):
                await node.health()
            await node.info()
        nursery.cancel_scope.cancel()
    assert (await node.info()).node_id == 1


async def test_cancelling_anything_anywhere_confuses_nothing(node: Driver) -> None:
    """Real sockets, real daemon: cancel a crowd of different requests after 0 to 8 ms; the next answers are right."""
    listener = await node.listen(5000)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: node.set_hostname("alpha"),
        lambda: node.resolve("nobody"),
        lambda: node.trust.wait(50),
        lambda: node.networks.list(),
        lambda: node.send_datagram(4242, b"x", 9),
        lambda: node.send_datagram(SELF, b"x", 9),
        lambda: node.health(),
        lambda: node.dial(SELF, 5000),
        lambda: node.dial(SELF, 9999),
        lambda: node.listen(5001),
    ]

    async def ignore_refusals(call: Callable[[], Awaitable[object]]) -> None:
        try:
            found = await call()
        except PilotError:
            return
        if isinstance(found, trio.abc.AsyncResource):
            with trio.CancelScope(shield=True):
                await found.aclose()

    async def drain() -> None:
        while True:
            async with await listener.accept() as stream:
                await stream.receive_some()

    async with trio.open_nursery() as draining:
        draining.start_soon(drain)
        for round_number in range(25):
            with trio.move_on_after(round_number % 9 / 1000):
                async with trio.open_nursery() as nursery:
                    for call in calls:
                        nursery.start_soon(ignore_refusals, call)
            assert (await node.health()).status == "ok"
            assert (await node.resolve("alpha")).node_id == 1
            assert await node.send_datagram(SELF, b"y", 9)
            with pytest.raises(DaemonError, match="resolve_hostname"):
                await node.resolve("nobody")
            with pytest.raises(DaemonError, match=r"^sendto: resolve node 4242"):
                await node.send_datagram(4242, b"x", 9)
        draining.cancel_scope.cancel()
    assert node.statistics().links <= 4  # main, listener, two idle ones
    assert node.statistics().streams == 0
    await (await node.listen(5001)).aclose()


@pytest.mark.real_time
async def test_an_unread_stream_outlives_the_daemons_write_deadline(node: Driver) -> None:
    """The daemon cuts a client that takes nothing for ten seconds. A program may think for longer than that."""
    near, far = await make_pair(node, 5000)

    async def flood() -> None:
        # Whichever is first: the daemon's word of the other end, or our own close.
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await near.send_all(bytes(64 << 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await trio.sleep(12)
        assert far.unread > STREAM_BUFFER
        assert await far.receive_some(1000) == bytes(1000)
        await far.aclose()
        await trio.lowlevel.checkpoint()
        await near.aclose()
        nursery.cancel_scope.cancel()
    assert (await node.health()).status == "ok"
