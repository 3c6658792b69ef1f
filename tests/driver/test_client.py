"""The driver's requests: answers, errors, concurrency, cancellation at every point, a daemon that goes away."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from pilot_trio.address import SocketAddress
from pilot_trio.driver import Driver, PilotStream, open_driver
from pilot_trio.driver.links import IDLE_LINKS_MAX, REQUESTS_MAX
from pilot_trio.errors import (
    DaemonError,
    DaemonUnavailable,
    DecodeError,
    DialCancelled,
    DialError,
    DialRefused,
    IPCClosedError,
    LocalProtocolError,
    NoRoute,
    RemoteProtocolError,
)
from pilot_trio.testing import MemoryTransport, MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_frame
from tests.driver.daemon import OWN_ADDRESS, StandIn, open_both, open_daemon


async def test_info_and_health_are_typed_and_keep_the_whole_answer(node: Driver) -> None:
    info = await node.info()
    assert (info.node_id, info.address, info.hostname, info.version) == (1, OWN_ADDRESS, "me", "1.18.0")
    assert (info.uptime, info.peers, info.connections, info.ports) == (3.5, 2, 1, 4)
    assert info.features == {"a", "b"}
    assert info.raw["endpoint"] == info.endpoint == "e:1"
    health = await node.health()
    assert (health.status, health.uptime, health.connections, health.peers) == ("ok", 7, 1, 2)


async def test_names_are_resolved_and_unknown_ones_say_what_the_daemon_says(node: Driver) -> None:
    assert (await node.resolve("me")).address == OWN_ADDRESS
    with pytest.raises(DaemonError) as caught:
        await node.resolve("nobody")
    assert str(caught.value) == "registry: hostname not found"


@pytest.mark.parametrize(
    "call, command, payload",
    [
        (lambda node: node.set_public(True), Code.SET_VISIBILITY, "01"),
        (lambda node: node.set_tags(["a"]), Code.SET_TAGS, b'["a"]'.hex()),
        (lambda node: node.set_webhook("http://h/"), Code.SET_WEBHOOK, b"http://h/".hex()),
        (lambda node: node.rotate_key(), Code.ROTATE_KEY, ""),
        (lambda node: node.prefer_direct(9), Code.PREFER_DIRECT, "00000009"),
        (lambda node: node.trust.request(9, "hi"), Code.HANDSHAKE, "0100000009" + b"hi".hex()),
        (lambda node: node.trust.approve(9), Code.HANDSHAKE, "0200000009"),
        (lambda node: node.trust.reject(9, "no"), Code.HANDSHAKE, "0300000009" + b"no".hex()),
        (lambda node: node.trust.revoke(9), Code.HANDSHAKE, "0600000009"),
        (lambda node: node.trust.is_trusted(9), Code.HANDSHAKE, "070000000900000000"),
        (lambda node: node.trust.wait(9), Code.HANDSHAKE, "070000000900007530"),
        (lambda node: node.networks.list(), Code.NETWORK, "01"),
        (lambda node: node.networks.join(7, "t"), Code.NETWORK, "020007" + b"t".hex()),
        (lambda node: node.networks.leave(7), Code.NETWORK, "030007"),
        (lambda node: node.networks.members(7), Code.NETWORK, "040007"),
        (lambda node: node.networks.invite(7, 9), Code.NETWORK, "05000700000009"),
        (lambda node: node.networks.invitations(), Code.NETWORK, "06"),
        (lambda node: node.networks.accept(7), Code.NETWORK, "07000701"),
        (lambda node: node.networks.decline(7), Code.NETWORK, "07000700"),
        (lambda node: node.managed.status(), Code.MANAGED, "020000"),
        (lambda node: node.managed.cycle(7), Code.MANAGED, "040007"),
        (lambda node: node.managed.reconcile(7), Code.MANAGED, "070007"),
        (lambda node: node.managed.policy(7), Code.MANAGED, "05000007"),
        (lambda node: node.managed.set_policy(7, {}, "t"), Code.MANAGED, "050100070001" + b"t{}".hex()),
        (lambda node: node.managed.member_tags(7), Code.MANAGED, "0600000700000000"),
        (lambda node: node.managed.set_member_tags(7, 9, []), Code.MANAGED, "0601000700000009" + b"[]".hex()),
        (
            lambda node: node.signing.submit_badge("b", "s"),
            Code.SUBMIT_BADGE,
            b'{"badge": "b", "badge_sig": "s"}'.hex(),
        ),
        (
            lambda node: node.signing.enroll_recovery("e", "s"),
            Code.ENROLL_RECOVERY,
            b'{"enrollment": "e", "enrollment_sig": "s"}'.hex(),
        ),
        (
            lambda node: node.signing.sign("a.b", b"body"),
            Code.SIGN_ENVELOPE,
            b'{"audience": "a.b", "body_b64": "Ym9keQ=="}'.hex(),
        ),
        (
            lambda node: node.signing.sign_hash("a.b", "00" * 32, nonce="0" * 16),
            Code.SIGN_ENVELOPE,
            (b'{"audience": "a.b", "body_hash": "%s", "nonce": "%s"}' % (b"0" * 64, b"0" * 16)).hex(),
        ),
        (
            lambda node: node.signing.verify("e", "s", check_standing=True),
            Code.VERIFY_ENVELOPE,
            b'{"envelope": "e", "signature": "s", "max_skew_secs": 0, "check_standing": true}'.hex(),
        ),
    ],
)
async def test_every_command_sends_what_the_protocol_says(
    node: Driver, daemon: StandIn, call: Callable[[Driver], Awaitable[object]], command: Code, payload: str
) -> None:
    with assert_checkpoints():
        await call(node)
    assert daemon.seen == [(command, bytes.fromhex(payload))]


async def test_lists_of_trust_come_without_their_wrapping(node: Driver) -> None:
    assert await node.trust.pending() == [{"node_id": 5}]
    assert await node.trust.trusted() == [{"node_id": 6}]
    assert await node.trust.is_trusted(1) is True


async def test_waiting_for_trust_goes_on_until_there_is_some() -> None:
    async with open_driver_on_listener() as (node, server), trio.open_nursery() as nursery:
        nursery.start_soon(node.trust.wait, 9)
        for trusted in (b"false", b"false", b"true"):
            await wait_all_tasks_blocked()
            assert await server.receive_some(99) == encode_frame(Code.HANDSHAKE, bytes.fromhex("070000000900007530"))
            server.send_nowait(encode_frame(Code.HANDSHAKE_OK, b'{"trusted":%s}' % trusted))


async def test_a_list_of_trust_that_is_none_is_the_daemons_fault() -> None:
    async with open_driver_on_listener() as (node, server), trio.open_nursery() as nursery:

        async def expect_error() -> None:
            with pytest.raises(RemoteProtocolError, match="'pending' = 7"):
                await node.trust.pending()

        nursery.start_soon(expect_error)
        await wait_all_tasks_blocked()
        server.send_nowait(encode_frame(Code.HANDSHAKE_OK, b'{"pending":7}'))


async def test_a_refusal_is_the_daemons_text_unchanged(node: Driver) -> None:
    with pytest.raises(DaemonError) as caught:
        await node.deregister()
    assert str(caught.value) == "deregister: registry: no such node"
    assert (await node.info()).node_id == 1


async def test_any_other_request_can_be_made(node: Driver) -> None:
    assert await node.command(Code.RESOLVE_HOSTNAME, b"me")
    with pytest.raises(LocalProtocolError, match="never answered"):
        await node.command(Code.SEND)


async def test_disconnect_closes_a_stream_of_somebody_else(node: Driver, daemon: StandIn) -> None:
    listener = await node.listen(5000)
    near = await node.dial(OWN_ADDRESS, 5000)
    far = await listener.accept()
    async with open_driver(connect_with=daemon.connect) as other:
        await other.disconnect(near.conn_id)
        await other.disconnect(4_000_000)
    assert await far.receive_some() == b""
    assert await near.receive_some() == b""


# Concurrency


async def test_quick_requests_do_not_wait_for_slow_ones(node: Driver, daemon: StandIn) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(node.set_hostname, f"slow-{number}")
        await wait_all_tasks_blocked()
        assert len(daemon.seen) == 10
        await node.health()
        await node.info()
        assert node.statistics().links == 11
        daemon.release.set()
    await wait_all_tasks_blocked()
    assert node.statistics().links == 1 + IDLE_LINKS_MAX


async def test_each_answer_reaches_its_own_request(node: Driver, daemon: StandIn) -> None:
    results: dict[str, object] = {}

    async def ask(name: str) -> None:
        try:
            results[name] = (await node.set_hostname(name))["hostname"]
        except DaemonError as exc:
            results[name] = str(exc)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(ask, f"bad-{number}" if number % 3 == 0 else f"good-{number}")
        await wait_all_tasks_blocked()
        daemon.release.set()
    assert results == {name: f"set_hostname: {name}" if name.startswith("bad") else name for name in results}
    assert len(results) == 30


@pytest.mark.parametrize("asked", [REQUESTS_MAX - 1, REQUESTS_MAX, REQUESTS_MAX + 1])
async def test_requests_at_once_are_bounded(node: Driver, daemon: StandIn, asked: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(asked):
            nursery.start_soon(node.set_hostname, "x")
        await wait_all_tasks_blocked()
        assert len(daemon.seen) == node.statistics().requests == min(asked, REQUESTS_MAX)
        await node.health()
        daemon.release.set()
    assert len(daemon.seen) == asked


async def test_connections_are_reused(node: Driver) -> None:
    for _ in range(20):
        await node.info()
        await node.resolve("me")
    assert node.statistics().links_opened == 1


# Cancellation


async def test_a_cancelled_request_leaves_its_answer_to_nobody(node: Driver, daemon: StandIn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.set_hostname, "bad, and late")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert node.statistics().answers_owed == 1
    assert (await node.info()).node_id == 1
    daemon.release.set()
    await wait_all_tasks_blocked()
    assert node.statistics().answers_owed == 0
    assert (await node.set_hostname("good"))["hostname"] == "good"


async def test_any_request_may_be_cancelled_at_any_moment(node: Driver, daemon: StandIn) -> None:
    """Cancel after every possible number of loop turns; what follows on the same driver is answered rightly."""
    daemon.release.set()
    for turns in range(12):
        async with trio.open_nursery() as nursery:
            for name in ("one", "bad two", "three"):
                nursery.start_soon(_ignore_daemon_error, node.set_hostname, name)
            nursery.start_soon(_ignore_daemon_error, node.deregister)
            nursery.start_soon(node.health)
            nursery.start_soon(node.send_datagram, OWN_ADDRESS, b"x", 9)
            nursery.start_soon(_ignore_daemon_error, node.resolve, "nobody")
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert (await node.set_hostname("right"))["hostname"] == "right"
        assert (await node.health()).status == "ok"
        assert await node.send_datagram(OWN_ADDRESS, b"y", 9)
        with pytest.raises(DaemonError, match="no such node"):
            await node.deregister()
    await wait_all_tasks_blocked()
    statistics = node.statistics()
    assert statistics.answers_owed == statistics.requests == 0
    assert statistics.links <= 1 + IDLE_LINKS_MAX
    assert daemon.server.client_count == statistics.links


async def _ignore_daemon_error(call: Callable[..., Awaitable[object]], *args: object) -> None:
    with contextlib.suppress(DaemonError):
        await call(*args)


async def test_a_cancelled_dial_leaves_no_stream(node: Driver, daemon: StandIn) -> None:
    """Cancel after every possible number of loop turns: the stream exists nowhere, or the dial has returned it."""
    listener = await node.listen(5000)
    outcomes = set()
    for turns in range(15):
        dialled: list[PilotStream] = []

        async def dial(into: list[PilotStream]) -> None:
            into.append(await node.dial(OWN_ADDRESS, 5000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, dialled)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for stream in dialled:
            await stream.aclose()
        outcomes.add(bool(dialled))
        await wait_all_tasks_blocked()
        while listener._waiting:
            async with await listener.accept() as far:
                assert await far.receive_some() == b""
        await wait_all_tasks_blocked()
        assert daemon.streams.statistics().connections == 0
        assert node.statistics().links == 2
    assert outcomes == {False, True}


async def test_a_dial_that_hangs_is_called_off_at_the_daemon(node: Driver, daemon: StandIn) -> None:
    daemon.resolver.hold = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.dial, 3, 7)
        await wait_all_tasks_blocked()
        assert daemon.server.statistics().in_flight == 1
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert daemon.server.statistics().in_flight == 0
    assert node.statistics().links == 1


# Dialling


@pytest.mark.parametrize(
    "target, port",
    [
        (OWN_ADDRESS, 5000),
        (SocketAddress(OWN_ADDRESS, 5000), None),  # type: ignore[arg-type]
        ("0:0000.0000.0001", 5000),
        ("0:0000.0000.0001:5000", None),
        ("1", 5000),
        ("1:5000", None),
        (1, 5000),
        ("me", 5000),
        ("me:5000", None),
    ],
)
async def test_a_target_can_be_named_in_many_ways(node: Driver, target: str, port: int | None) -> None:
    listener = await node.listen(5000)
    async with await node.dial(target, port) as near:
        assert near.remote == (OWN_ADDRESS, 5000)
        await listener.accept()


@pytest.mark.parametrize("port", [-1, 65_536])
async def test_ports_have_sixteen_bits(node: Driver, port: int) -> None:
    for call in (node.dial(OWN_ADDRESS, port), node.listen(port), node.send_datagram(OWN_ADDRESS, b"", port)):
        with pytest.raises(DecodeError, match="is not a port"):
            await call
    with pytest.raises(DecodeError, match="is not a port"):
        node.datagrams(port)


async def test_a_refused_dial_says_why_and_costs_nothing(node: Driver, daemon: StandIn) -> None:
    with pytest.raises(DialRefused, match=r"^connection refused$"):
        await node.dial(OWN_ADDRESS, 9999)
    with pytest.raises(NoRoute, match=r"^resolve node 7777: registry: request failed$"):
        await node.dial(7777, 7)
    with pytest.raises(NoRoute, match="no tunnel to node 3"):
        await node.dial(3, 7)
    await wait_all_tasks_blocked()
    assert node.statistics().links == daemon.server.client_count == 1


async def test_dial_errors_are_dial_errors(node: Driver) -> None:
    with pytest.raises(DialError) as caught:
        await node.dial(OWN_ADDRESS, 9999)
    assert isinstance(caught.value.__cause__, DaemonError)
    assert not isinstance(caught.value, DialCancelled)


# The daemon's presence


async def test_without_a_daemon_the_error_says_what_to_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("none") / "pilot.sock"
    with pytest.raises(
        DaemonUnavailable, match=r"pilot\.sock: No such file or directory; start one with `pilot-trio up`"
    ):
        async with open_driver(path):
            raise AssertionError


async def test_when_the_daemon_leaves_every_caller_learns_it() -> None:
    async with open_driver_on_listener() as (node, server):

        async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(IPCClosedError, match="daemon disconnected"):
                await call()

        server.send_nowait(encode_frame(0x7F))  # it has said something, so it is not a full house
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, node.info)
            nursery.start_soon(expect_closed, node.health)
            await wait_all_tasks_blocked()
            server.close()
        await expect_closed(node.info)
        await expect_closed(node.health)
        await expect_closed(lambda: node.send_datagram(1, b"", 7))
        with pytest.raises(IPCClosedError, match="daemon disconnected"):
            node.datagrams()
        assert node.statistics().links == 0


async def test_a_daemon_that_closes_at_once_is_probably_full() -> None:
    async with open_driver_on_listener() as (node, server):
        server.close()
        with pytest.raises(IPCClosedError, match="serves 1,024 clients already"):
            await node.info()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x00\x10\x00\x01", id="frame too large"),
        pytest.param(encode_frame(Code.RECV, b"\x00"), id="short Recv"),
        pytest.param(encode_frame(Code.RECV_FROM, b"\x00"), id="short RecvFrom"),
        pytest.param(encode_frame(Code.CLOSE_OK, b"\x00"), id="short CloseOK"),
    ],
)
async def test_nonsense_from_the_daemon_ends_the_connection(sent: bytes) -> None:
    async with open_driver_on_listener(datagrams=True) as (node, server):
        async with trio.open_nursery() as nursery:

            async def expect_closed() -> None:
                with pytest.raises(IPCClosedError):
                    await node.info()

            nursery.start_soon(expect_closed)
            await wait_all_tasks_blocked()
            server.send_nowait(sent)
        with pytest.raises(trio.BrokenResourceError):
            server.send_nowait(b"x")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nonsense", b"{}", b'{"node_id":"1","address":"0:0000.0000.0001"}', b'{"node_id":1,"address":"x"}'],
)
async def test_an_answer_that_makes_no_sense_is_the_daemons_fault(body: bytes) -> None:
    async with open_driver_on_listener() as (node, server), trio.open_nursery() as nursery:

        async def expect_error() -> None:
            with pytest.raises(RemoteProtocolError, match="the daemon's answer"):
                await node.info()

        nursery.start_soon(expect_error)
        await wait_all_tasks_blocked()
        server.send_nowait(encode_frame(Code.INFO_OK, body))


async def test_unknown_pushes_and_empty_frames_are_ignored() -> None:
    async with open_driver_on_listener() as (node, server), trio.open_nursery() as nursery:
        server.send_nowait(bytes(8) + encode_frame(0x77, b"news") + encode_frame(Code.CLOSE_OK, bytes(4)))
        server.send_nowait(encode_frame(Code.RECV, bytes(9)) + encode_frame(Code.INFO_OK, b"{}"))
        nursery.start_soon(node.info)
        await wait_all_tasks_blocked()
        server.send_nowait(encode_frame(Code.INFO_OK, b'{"node_id":1,"address":"0:0000.0000.0001"}'))


async def test_answers_may_come_byte_by_byte() -> None:
    async with open_driver_on_listener() as (node, server), trio.open_nursery() as nursery:
        nursery.start_soon(node.info)
        await wait_all_tasks_blocked()
        for byte in encode_frame(Code.INFO_OK, b'{"node_id":1,"address":"0:0000.0000.0001"}'):
            server.send_nowait(bytes([byte]))
            await wait_all_tasks_blocked()


async def test_requests_wait_for_a_daemon_that_is_slow_to_read_and_stay_whole() -> None:
    """The socket takes a few bytes at a time; cancelled requests must not tear frames."""
    async with open_driver_on_listener(capacity=7) as (node, server):
        got = bytearray()

        async def ask_and_give_up() -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as asking:
                    asking.start_soon(node.resolve, "a-rather-long-hostname")
                    await wait_all_tasks_blocked()
                    scope.cancel()

        await ask_and_give_up()
        await ask_and_give_up()
        while True:
            with trio.move_on_after(0):
                got += await server.receive_some(5)
            before = len(got)
            await wait_all_tasks_blocked()
            if before == len(got) and not server._incoming:
                break
        frame = encode_frame(Code.RESOLVE_HOSTNAME, b"a-rather-long-hostname")
        assert got == frame


# Leaving


async def test_an_exception_of_the_block_comes_out_as_it_is(daemon: StandIn) -> None:
    async def fail() -> None:
        async with open_driver(connect_with=daemon.connect) as node:
            await node.info()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        await fail()
    assert caught.value.__cause__ is None


async def test_leaving_closes_everything_that_was_opened(daemon: StandIn) -> None:
    async with open_driver(connect_with=daemon.connect) as node:
        listener = await node.listen(5000)
        near = await node.dial(1, 5000)
        far = await listener.accept()
        datagrams = node.datagrams()
    await wait_all_tasks_blocked()
    assert daemon.server.client_count == 0
    assert daemon.streams.statistics().connections == 0
    for call in (near.receive_some, far.receive_some, listener.accept, datagrams.receive):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    with pytest.raises(IPCClosedError):
        await node.info()


async def test_cancelling_the_block_closes_everything(autojump_clock: MockClock) -> None:
    async with open_daemon() as daemon:
        with trio.move_on_after(1) as scope:
            async with open_driver(connect_with=daemon.connect) as node:
                await (await node.listen(5000)).accept()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert daemon.server.client_count == 0


async def test_the_statistics_count(node: Driver) -> None:
    listener = await node.listen(5000)
    near = await node.dial(1, 5000)
    far = await listener.accept()
    await near.send_all(b"abc")
    await wait_all_tasks_blocked()
    statistics = node.statistics()
    assert (statistics.links, statistics.links_opened, statistics.streams, statistics.unread) == (3, 3, 2, 3)
    assert far.unread == 3
    assert "3 connections" in repr(node)


async def test_many_tasks_share_one_driver() -> None:
    async with open_both() as (_daemon, node):
        listener = await node.listen(5000)

        async def echo(stream: trio.abc.Stream) -> None:
            async for chunk in stream:
                await stream.send_all(chunk)

        async def talk(number: int) -> None:
            async with await node.dial(1, 5000) as stream:
                message = str(number).encode() * 1000
                await stream.send_all(message)
                got = b""
                while len(got) < len(message):
                    got += await stream.receive_some()
                assert got == message

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            async with trio.open_nursery() as talking:
                for number in range(60):  # the daemon lets 64 streams wait on a port
                    talking.start_soon(talk, number)
            nursery.cancel_scope.cancel()


class open_driver_on_listener:  # noqa: N801 - reads as the context manager that it is
    """A driver whose daemon is the test: gives the server's end of its main connection."""

    def __init__(self, capacity: int = 65_536, *, datagrams: bool = False) -> None:
        self.listener = MemoryTransportListener(capacity)
        self.datagrams = datagrams
        self.driver = open_driver(connect_with=self.listener.open_transport)

    async def __aenter__(self) -> tuple[Driver, MemoryTransport]:
        node = await self.driver.__aenter__()
        (server,) = await self.listener.accept_some()
        assert isinstance(server, MemoryTransport)
        return node, server

    async def __aexit__(self, *exc_info: object) -> None:
        await self.driver.__aexit__(*exc_info)  # type: ignore[arg-type]
