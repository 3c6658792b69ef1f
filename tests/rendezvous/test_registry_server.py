"""The registry's listeners against clients of every kind, in memory and under virtual time."""

from __future__ import annotations

import contextlib
import errno
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from pilot_trio.address import NodeId
from pilot_trio.errors import StoreError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import StreamListener
from pilot_trio.proto.directory import Change, Directory
from pilot_trio.rendezvous.connection import (
    BATCH_REQUESTS,
    FRAME_TIMEOUT,
    IDLE_TIMEOUT,
    RATE_PATIENCE,
    REQUEST_MAX,
    WRITE_TIMEOUT,
    ByteBudget,
    Ending,
)
from pilot_trio.rendezvous.registrar import Registrar
from pilot_trio.rendezvous.registry_server import ACCEPT_PAUSE, SOURCE_RATE, RegistryServer, connection_limit
from pilot_trio.rendezvous.tls import HANDSHAKE_TIMEOUT, load_tls
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import LENGTH
from pilot_trio.wire.registry_binary import MAGIC, PREAMBLE, BinaryType, Heartbeat, HeartbeatOk, decode_error
from pilot_trio.wire.registry_binary import encode_frame as encode_binary
from tests.rendezvous.raw_client import (
    ALPHA,
    BETA,
    RawClient,
    about_oneself,
    frame,
    heartbeat,
    register,
    request_handshake,
)

ANY_PORT = Endpoint("127.0.0.1", 0)
LOOKUP = {"type": "lookup", "node_id": 1}


class GatedLedger:
    """Keeps nothing; confirms when the gate is open, fails when told to."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.failing = False
        self.changes: list[Change] = []
        self._waiting = 0

    async def commit(self, changes: Sequence[Change]) -> None:
        self.changes += changes
        if not changes and not self._waiting:
            await trio.lowlevel.checkpoint()
            return
        self._waiting += 1
        try:
            await self.gate.wait()
        finally:
            self._waiting -= 1
        if self.failing:
            raise StoreError("disk full")


@attrs.define(eq=False)
class Setup:
    network: MemoryNetwork
    ledger: GatedLedger
    registrar: Registrar
    server: RegistryServer
    endpoint: Endpoint
    notified: list[NodeId]
    nursery: trio.Nursery

    async def connect(self) -> RawClient:
        return await RawClient.connect(self.network, self.endpoint)

    def endings(self, ending: Ending) -> int:
        return self.server.statistics().endings[ending]

    async def settled(self) -> None:
        """Wait until nothing moves any more."""
        await trio.testing.wait_all_tasks_blocked()


@contextlib.asynccontextmanager
async def open_registry(
    *,
    unlimited: bool = True,
    max_connections: int = 1000,
    budget: int = 1 << 24,
    listener_wrapper: Callable[[StreamListener], StreamListener] = lambda listener: listener,
) -> AsyncGenerator[Setup, None]:
    network, ledger, notified = MemoryNetwork(), GatedLedger(), list[NodeId]()
    registrar = Registrar(Directory(now=0.0), ledger, notified.append, clock=lambda: 1000.0)
    server = RegistryServer(registrar, lambda _host: unlimited, max_connections, ByteBudget(budget))
    listener = await network.listen_tcp(ANY_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener_wrapper(listener))
        yield Setup(network, ledger, registrar, server, listener.endpoint, notified, nursery)
        nursery.cancel_scope.cancel()
    statistics = server.statistics()
    assert (statistics.connections, statistics.held_bytes) == (0, 0)
    assert sum(statistics.endings.values()) == statistics.accepted


# --- talking ---


async def test_requests_are_answered_in_order(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        count = 3 * BATCH_REQUESTS + 1
        requests = [register()] + [{"type": "lookup", "node_id": node % 2} for node in range(1, count)]
        await client.send(b"".join(frame(**request) for request in requests))
        answers = [await client.receive() for _ in requests]
        assert answers[0] is not None and answers[0]["node_id"] == 1
        assert [answer and answer["type"] for answer in answers[1:3]] == ["lookup_ok", "error"]
        assert [answer and answer["type"] for answer in answers[1:]] == [
            "lookup_ok" if node % 2 else "error" for node in range(1, count)
        ]
        assert setup.server.statistics().requests == {"register": 1, "lookup": count - 1}


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
async def test_how_a_request_is_cut_into_pieces_makes_no_difference(autojump_clock: object, chunk: int) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        data = frame(**register()) + frame(**LOOKUP)
        for start in range(0, len(data), chunk):
            await client.send(data[start : start + chunk])
        for kind in ("register_ok", "lookup_ok"):
            answer = await client.receive()
            assert answer is not None and answer["type"] == kind


async def test_unknown_types_are_errors_and_the_connection_lives_on(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        for request in ({"type": "make_coffee"}, {}, {"type": 7}):
            assert await client.ask(request) == {"type": "error", "error": "request failed"}
        assert setup.server.statistics().requests == {"other": 3}


async def test_replication_is_refused_and_the_connection_closed(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        answer = await client.ask({"type": "subscribe_replication", "token": "x"})
        assert answer == {"type": "error", "error": "replication not configured"}
        assert await client.is_closed()
        assert setup.endings(Ending.REFUSED) == 1


# --- the binary language ---


@pytest.mark.parametrize("chunk", [1, 4, 6, 1000])
async def test_binary_clients_are_recognised_by_their_first_bytes(autojump_clock: object, chunk: int) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        heartbeat_frame = encode_binary(BinaryType.HEARTBEAT, Heartbeat(NodeId(1), ALPHA.sign(b"heartbeat:1")).encode())
        data = PREAMBLE + encode_binary(BinaryType.JSON, canonical_json.dumps(register())) + heartbeat_frame
        for start in range(0, len(data), chunk):
            await client.send(data[start : start + chunk])
        registered, alive = await client.receive_body(), await client.receive_body()
        assert registered is not None and registered[:1] == b"\x00" and b'"register_ok"' in registered
        assert alive is not None and HeartbeatOk.decode(alive[1:]) == HeartbeatOk(1000)


async def test_an_unknown_binary_version_is_told_so_and_cut(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        await client.send(MAGIC + b"\x02")
        body = await client.receive_body()
        assert body is not None and decode_error(body[1:]) == "unsupported wire version 2"
        assert await client.is_closed()
        assert setup.endings(Ending.REFUSED) == 1


@pytest.mark.parametrize("nonsense", [LENGTH.pack(0), LENGTH.pack(REQUEST_MAX + 1)])
async def test_binary_nonsense_ends_the_connection(autojump_clock: object, nonsense: bytes) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        await client.send(PREAMBLE + nonsense)
        assert await client.is_closed()
        assert setup.endings(Ending.MALFORMED) == 1


# --- nonsense ---


@pytest.mark.parametrize(
    "nonsense",
    [
        LENGTH.pack(0),
        LENGTH.pack(REQUEST_MAX + 1),
        LENGTH.pack(0xFFFF_FFFF),
        LENGTH.pack(7) + b"garbage",
        LENGTH.pack(2) + b"[]",
        LENGTH.pack(4) + b"null",
        LENGTH.pack(2) + b"\xff\xfe",
        LENGTH.pack(200_000) + b"[" * 200_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client on the plaintext port
    ],
)
async def test_nonsense_ends_the_connection_without_an_answer(autojump_clock: object, nonsense: bytes) -> None:
    async with open_registry() as setup:
        bystander, client = await setup.connect(), await setup.connect()
        await client.send(frame(**register()) + nonsense)
        answer = await client.receive()
        assert answer is not None and answer["type"] == "register_ok"  # what came before it counts
        assert await client.is_closed()
        assert setup.endings(Ending.MALFORMED) == 1
        assert (await bystander.ask(LOOKUP))["type"] == "lookup_ok"


async def test_the_largest_request_is_answered(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        body = b'{"type":"lookup"}'
        padded = body + b" " * (REQUEST_MAX - len(body))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, LENGTH.pack(len(padded)) + padded)
            answer = await client.receive()
        assert answer is not None and answer["type"] == "error"


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00\x10", b"\x00\x00\x00\x10{", b"PIL", b"PILT"])
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(autojump_clock: object, data: bytes) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        if data:
            await client.send(data)
        await setup.settled()
        await client.aclose()
        await setup.settled()
        statistics = setup.server.statistics()
        assert (statistics.connections, statistics.held_bytes) == (0, 0)
        assert statistics.endings[Ending.CLIENT_CLOSED] == 1


# --- time ---


async def test_an_idle_client_is_cut_at_its_time_and_not_before(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry() as setup:
        silent, lively = await setup.connect(), await setup.connect()
        await lively.ask(register())
        await trio.sleep(IDLE_TIMEOUT - 1)
        await lively.ask(LOOKUP)
        assert setup.server.statistics().connections == 2
        await trio.sleep(1.001)
        assert setup.endings(Ending.IDLE) == 1
        assert await silent.is_closed()
        assert (await lively.ask(LOOKUP))["type"] == "lookup_ok"


async def test_a_request_that_trickles_in_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in frame(**register()):
                await client.send(bytes([byte]))
                await trio.sleep(1)
        assert FRAME_TIMEOUT <= trio.current_time() - started < FRAME_TIMEOUT + 2
        assert setup.endings(Ending.SLOW_REQUEST) == 1


async def test_a_slow_client_that_finishes_its_requests_is_not_cut(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        data = frame(**LOOKUP)
        # Always in the middle of a request, but each takes less than its time.
        await client.send(data[:5])
        for _ in range(5):
            await trio.sleep(FRAME_TIMEOUT - 1)
            await client.send(data[5:] + data[:5])
            assert await client.receive() is not None
        assert setup.server.statistics().connections == 1


async def test_a_client_that_does_not_read_is_cut_and_delays_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry() as setup:
        deaf, bystander = await setup.connect(), await setup.connect()
        await bystander.ask(register())
        started = trio.current_time()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await deaf.send(frame(**LOOKUP) * 100)
                    sent += 100

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await setup.settled()
            assert trio.current_time() == started
            assert (await bystander.ask(LOOKUP))["type"] == "lookup_ok"
            assert trio.current_time() == started
            await trio.sleep(WRITE_TIMEOUT - 0.01)
            assert setup.endings(Ending.UNREAD) == 0
            assert setup.server.statistics().held_bytes < 1 << 20
            await trio.sleep(0.02)
        assert setup.endings(Ending.UNREAD) == 1
        # Nobody read, so reading stopped: what was taken in is bounded by buffers, not by the flood.
        assert setup.server.statistics().requests["lookup"] < 2000


# --- limits ---


async def test_a_source_over_its_rate_waits_for_its_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry(unlimited=False) as setup:
        client = await setup.connect()
        started = trio.current_time()
        for _ in range(int(SOURCE_RATE)):
            await client.ask(LOOKUP)
        assert trio.current_time() == started
        await client.ask(LOOKUP)
        assert 0 < trio.current_time() - started < 0.2


async def test_a_source_far_over_its_rate_loses_connections(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry(unlimited=False) as setup:
        count = int(SOURCE_RATE * (RATE_PATIENCE + 3))
        clients = [await setup.connect() for _ in range(200)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.send, frame(**LOOKUP) * (count // 200 + 1) * 2)
            await trio.sleep(2 * RATE_PATIENCE)
            assert setup.endings(Ending.RATE) > 0
            for client in clients:
                await client.aclose()
            nursery.cancel_scope.cancel()
        await trio.sleep(2)
        newcomer = await setup.connect()
        await newcomer.ask(LOOKUP)


async def test_one_source_may_have_a_share_of_the_connections(autojump_clock: object) -> None:
    async with open_registry(unlimited=False, max_connections=12) as setup:
        clients = [await setup.connect() for _ in range(3)]
        for client in clients:
            await client.ask(LOOKUP)
        refused = await setup.connect()
        assert await refused.is_closed()
        assert setup.server.statistics().refused == 1
        await clients[0].aclose()
        await setup.settled()
        welcome = await setup.connect()
        await welcome.ask(LOOKUP)


async def test_connections_are_bounded_in_all(autojump_clock: object) -> None:
    async with open_registry(max_connections=3) as setup:
        clients = [await setup.connect() for _ in range(3)]
        for client in clients:
            await client.ask(LOOKUP)
        refused = await setup.connect()
        assert await refused.is_closed()
        statistics = setup.server.statistics()
        assert (statistics.connections, statistics.accepted, statistics.refused) == (3, 3, 1)


async def test_half_requests_share_a_bound_and_only_the_one_that_passes_it_is_cut(autojump_clock: object) -> None:
    async with open_registry(budget=1000) as setup:
        patient, greedy = await setup.connect(), await setup.connect()
        await patient.send(LENGTH.pack(2000) + bytes(596))
        await setup.settled()
        assert setup.server.statistics().held_bytes == 600
        await greedy.send(LENGTH.pack(2000) + bytes(396))
        await setup.settled()
        assert setup.server.statistics().held_bytes == 1000
        assert setup.endings(Ending.MEMORY) == 0
        await greedy.send(b"x")
        assert await greedy.is_closed()
        assert setup.endings(Ending.MEMORY) == 1
        assert setup.server.statistics().held_bytes == 600
        await patient.aclose()
        await setup.settled()
        assert setup.server.statistics().held_bytes == 0


def test_the_limit_of_connections_leaves_descriptors_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((1024, 960), (64, 1), (1 << 30, 200_000), (-1, 200_000)):
        monkeypatch.setattr("resource.getrlimit", lambda _what, soft=soft: (soft, soft))
        assert connection_limit() == expected


class StumblingListener(StreamListener):
    """Fails with each of `errors` before it works."""

    def __init__(self, inner: StreamListener, errors: list[OSError]) -> None:
        self._inner = inner
        self._errors = errors

    @property
    def endpoint(self) -> Endpoint:
        return self._inner.endpoint

    async def accept(self) -> trio.abc.Stream:
        if self._errors:
            await trio.lowlevel.checkpoint()
            raise self._errors.pop(0)
        return await self._inner.accept()

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_want_of_descriptors_passes(autojump_clock: trio.testing.MockClock) -> None:
    errors = [OSError(number, "no") for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)]
    async with open_registry(listener_wrapper=lambda listener: StumblingListener(listener, errors)) as setup:
        started = trio.current_time()
        client = await setup.connect()
        await client.ask(LOOKUP)
        assert trio.current_time() - started == pytest.approx(3 * ACCEPT_PAUSE)
        assert setup.server.statistics().starved == 3


async def test_a_broken_listener_is_no_secret(autojump_clock: object) -> None:
    errors = [OSError(errno.EBADF, "bad")]
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="bad"), flatten_subgroups=True):
        async with open_registry(listener_wrapper=lambda listener: StumblingListener(listener, errors)):
            await trio.sleep_forever()


# --- promises ---


async def test_an_answer_waits_until_its_change_is_safe(autojump_clock: object) -> None:
    async with open_registry() as setup:
        setup.ledger.gate = trio.Event()
        first, again, reader = await setup.connect(), await setup.connect(), await setup.connect()
        answered: list[str] = []

        async def ask(name: str, client: RawClient, request: dict[str, Any]) -> None:
            await client.ask(request)
            answered.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "first", first, register())
            await setup.settled()
            # It changes nothing, but it promises what the first one is still writing.
            nursery.start_soon(ask, "again", again, about_oneself("deregister", 99))
            nursery.start_soon(ask, "reader", reader, LOOKUP)
            await setup.settled()
            assert answered == ["reader"]
            setup.ledger.gate.set()
        assert sorted(answered) == ["again", "first", "reader"]


async def test_nothing_is_confirmed_that_could_not_be_stored(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_registry() as setup:
        setup.ledger.failing = True
        with caplog.at_level(logging.INFO, "pilot_trio.registry"):
            for _ in range(3):
                client = await setup.connect()
                await client.send(frame(**register()))
                assert await client.is_closed()
            assert setup.endings(Ending.UNSAVED) == 3
            assert caplog.text.count("store failed") == 1
            setup.ledger.failing = False
            client = await setup.connect()
            assert (await client.ask(register()))["node_id"] == 1
        assert caplog.text.count("store works again") == 1


async def test_who_gets_mail_is_poked_after_it_is_safe(autojump_clock: object) -> None:
    async with open_registry() as setup:
        client = await setup.connect()
        await client.ask(register(ALPHA))
        await client.ask(register(BETA))
        setup.ledger.gate = trio.Event()
        await client.send(frame(**request_handshake(2, 1, BETA)))
        await setup.settled()
        assert setup.notified == []
        setup.ledger.gate.set()
        await client.receive()
        assert setup.notified == [1]


async def test_a_client_that_leaves_while_its_change_is_written_disturbs_nothing(autojump_clock: object) -> None:
    async with open_registry() as setup:
        setup.ledger.gate = trio.Event()
        client = await setup.connect()
        await client.send(frame(**register()))
        await setup.settled()
        await client.aclose()
        setup.ledger.gate.set()
        await setup.settled()
        other = await setup.connect()
        assert (await other.ask(LOOKUP))["public_key"] == ALPHA.public_key_b64


# --- failures of our own, and the end ---


async def test_a_crash_ends_one_connection_only(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_registry() as setup:
        bystander, unlucky = await setup.connect(), await setup.connect()
        await bystander.ask(register())
        with monkeypatch.context() as patch:
            patch.setattr(setup.registrar, "clock", lambda: 1 / 0)
            await unlucky.send(frame(**LOOKUP))
            assert await unlucky.is_closed()
        assert setup.endings(Ending.FAILED) == 1
        assert "ZeroDivisionError" in caplog.text
        assert (await bystander.ask(heartbeat(1)))["type"] == "heartbeat_ok"


async def test_cancelling_ends_connections_in_every_state(autojump_clock: trio.testing.MockClock) -> None:
    async with open_registry(unlimited=False) as setup:
        idle, half, deaf, writing = [await setup.connect() for _ in range(4)]
        await half.send(b"\x00\x00")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deaf.send, frame(**LOOKUP) * 5000)
            await setup.settled()
            setup.ledger.gate = trio.Event()
            await writing.send(frame(**register()))
            await setup.settled()
            started = trio.current_time()
            setup.nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for client in (idle, half, writing):
                    assert await client.is_closed()
            assert trio.current_time() == started
            nursery.cancel_scope.cancel()
        assert setup.endings(Ending.STOPPED) == 4


# --- TLS ---


async def test_tls_clients_are_served_and_others_are_cut(autojump_clock: trio.testing.MockClock) -> None:
    tls = load_tls(None, None, None)
    network = MemoryNetwork()
    registrar = Registrar(Directory(now=0.0), GatedLedger(), lambda _node: None, clock=lambda: 1000.0)
    server = RegistryServer(registrar, lambda _host: True, 10)
    listener = await network.listen_tcp(ANY_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener, tls.context)
        encrypted = RawClient(
            trio.SSLStream(await network.open_tcp(listener.endpoint), client_context(), https_compatible=True)
        )
        assert (await encrypted.ask(register()))["node_id"] == 1
        plain = await RawClient.connect(network, listener.endpoint)
        await plain.send(frame(**register()))
        while await plain.receive_body() is not None:
            pass  # an alert, which is no frame of ours, or nothing
        silent = await RawClient.connect(network, listener.endpoint)
        started = trio.current_time()
        assert await silent.is_closed()
        assert trio.current_time() - started == pytest.approx(HANDSHAKE_TIMEOUT)
        assert server.statistics().endings[Ending.TLS] == 2
        assert (await encrypted.ask(LOOKUP))["type"] == "lookup_ok"
        nursery.cancel_scope.cancel()


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
