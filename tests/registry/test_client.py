"""The client against registries that answer, refuse, hang, close, restart and talk nonsense. Virtual time, memory only."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.errors import LocalProtocolError, RegistryError, RegistryUnavailable
from pilot_trio.registry import client as client_module
from pilot_trio.registry.client import (
    CALL_TIMEOUT,
    CONNECTIONS,
    DIAL_ATTEMPTS,
    IDLE_MAX,
    INTERACTIVE_TIMEOUT,
    RESPONSE_TIMEOUT,
    RegistryClient,
)
from pilot_trio.registry.connection import DIAL_TIMEOUT
from pilot_trio.testing import MemoryNetwork
from pilot_trio.wire.framing import encode_frame
from pilot_trio.wire.registry import Message
from tests.registry.fake_registry import REGISTRY, Close, FakeRegistry, Hang, accept_all, running


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def reachable() -> list[bool]:
    return []


@pytest.fixture
async def client(network: MemoryNetwork, reachable: list[bool]) -> AsyncIterator[RegistryClient]:
    client = RegistryClient(network, REGISTRY, rng=random.Random(1), on_reachable=reachable.append)
    yield client
    await client.aclose()


async def failure(client: RegistryClient, type_: str = "lookup", **options: Any) -> RegistryUnavailable:
    with pytest.raises(RegistryUnavailable) as caught:
        await client.call(type_, **options)
    return caught.value


# What is sent and what is returned


async def test_call_sends_type_and_fields_and_returns_the_answer(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    def handler(message: Message) -> Message:
        return {"type": "lookup_ok", "node_id": message["node_id"], "hostname": "é"}

    async with running(network, FakeRegistry(handler)) as registry:
        assert await client.call("lookup", node_id=7) == {"type": "lookup_ok", "node_id": 7, "hostname": "é"}
        assert registry.seen[0].message == {"type": "lookup", "node_id": 7}


@pytest.mark.parametrize(
    ("error", "text"),
    [("node 7: node not found", "registry: node 7: node not found"), (5, "registry: 5"), (None, "registry: null")],
)
async def test_answer_with_an_error_key_is_a_refusal_whatever_its_type(
    autojump_clock: MockClock,
    network: MemoryNetwork,
    client: RegistryClient,
    reachable: list[bool],
    error: object,
    text: str,
) -> None:
    async with running(network, FakeRegistry(lambda _: {"type": "lookup_ok", "error": error})):
        with pytest.raises(RegistryError) as caught:
            await client.call("lookup", node_id=7)
        assert type(caught.value) is RegistryError
        assert str(caught.value) == text
        assert caught.value.request == "lookup"
        assert reachable == [True]
        assert client.statistics().open == 1


async def test_answer_without_type_is_malformed(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry(lambda _: {"node_id": 7})):
        with pytest.raises(RegistryError) as caught:
            await client.call("lookup", node_id=7)
        assert str(caught.value) == 'registry: malformed response (missing "type" field)'


async def test_an_endless_refusal_is_cut_before_it_fills_logs_and_clients(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry(lambda _: {"type": "error", "error": "no " * 100_000})):
        with pytest.raises(RegistryError, match=r"^registry: no no .*… \(300000 characters\)$") as caught:
            await client.call("lookup", node_id=1)
        assert len(str(caught.value)) < 600


async def test_request_that_no_frame_can_hold_is_refused_here(
    autojump_clock: MockClock, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REGISTRY_FRAME_MAX", 30)
    with pytest.raises(LocalProtocolError, match="exceeds the limit of 30"):
        await client.call("lookup", x="y" * 30)


# The pool


async def test_sequential_calls_share_one_connection(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()) as registry:
        for _ in range(10):
            await client.call("heartbeat")
        assert registry.accepted == 1


async def test_pool_uses_its_connections_in_turn(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry(delay=1)) as registry:
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(client.call, "heartbeat")
        for _ in range(2 * CONNECTIONS):
            await client.call("heartbeat")
        order = [seen.connection for seen in registry.seen]
        assert sorted(order[:CONNECTIONS]) == [1, 2, 3, 4]
        assert order[CONNECTIONS : 2 * CONNECTIONS] == order[2 * CONNECTIONS :]
        assert sorted(order[CONNECTIONS : 2 * CONNECTIONS]) == [1, 2, 3, 4]


@pytest.mark.parametrize("calls", [CONNECTIONS - 1, CONNECTIONS, CONNECTIONS + 1])
async def test_pool_bounds_what_is_under_way(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient, calls: int
) -> None:
    async with running(network, FakeRegistry(delay=1)) as registry:
        async with trio.open_nursery() as nursery:
            for _ in range(calls):
                nursery.start_soon(client.call, "heartbeat")
            await wait_all_tasks_blocked()
            assert client.statistics().waiting == max(0, calls - CONNECTIONS)
        assert registry.accepted == min(calls, CONNECTIONS)
        assert {seen.at for seen in registry.seen} == ({0.0} if calls <= CONNECTIONS else {0.0, 1.0})


async def test_waiting_calls_are_served_in_order(autojump_clock: MockClock, network: MemoryNetwork) -> None:
    client = RegistryClient(network, REGISTRY, connections=1)
    async with running(network, FakeRegistry(delay=1)) as registry, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(partial(client.call, "lookup", node_id=number))
            await wait_all_tasks_blocked()
    assert [seen.message["node_id"] for seen in registry.seen] == [0, 1, 2, 3, 4]


async def test_number_of_waiting_calls_is_bounded(
    autojump_clock: MockClock, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "WAITING_MAX", 2)
    client = RegistryClient(network, REGISTRY, connections=1)
    async with running(network, FakeRegistry(delay=1)), trio.open_nursery() as nursery:
        for _ in range(3):  # one under way, two waiting
            nursery.start_soon(client.call, "heartbeat")
        await wait_all_tasks_blocked()
        assert str(await failure(client)) == "registry: 2 requests are waiting already"


async def test_idle_connection_is_not_trusted_for_ever(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()) as registry:
        await client.call("heartbeat")
        await trio.sleep(IDLE_MAX - 1)
        await client.call("heartbeat")
        assert registry.accepted == 1
        await trio.sleep(IDLE_MAX)
        await client.call("heartbeat")
        assert registry.accepted == 2
        await wait_all_tasks_blocked()
        assert registry.closed == 1


# Deadlines


async def test_hanging_registry_costs_an_interactive_call_its_deadline(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient, reachable: list[bool]
) -> None:
    def handler(_: Message) -> Message:
        raise Hang

    async with running(network, FakeRegistry(handler)):
        started = trio.current_time()
        error = await failure(client, "heartbeat", timeout=INTERACTIVE_TIMEOUT)
        assert str(error) == "registry: call timed out, connection likely half-open"
        assert trio.current_time() - started == pytest.approx(INTERACTIVE_TIMEOUT)
        assert reachable == [False]
        assert client.statistics().open == 0


async def test_each_answer_has_a_deadline_of_its_own(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    def handler(_: Message) -> Message:
        raise Hang

    async with running(network, FakeRegistry(handler)):
        started = trio.current_time()
        assert str(await failure(client)) == "registry: recv: i/o timeout"
        assert trio.current_time() - started == pytest.approx(RESPONSE_TIMEOUT)


@pytest.mark.parametrize(("delay", "arrives"), [(RESPONSE_TIMEOUT - 0.1, True), (RESPONSE_TIMEOUT + 0.1, False)])
async def test_answer_just_before_and_after_the_deadline(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient, delay: float, arrives: bool
) -> None:
    async with running(network, FakeRegistry(delay=delay)):
        if arrives:
            await client.call("lookup")
        else:
            await failure(client)


async def test_time_spent_waiting_for_a_connection_counts(autojump_clock: MockClock, network: MemoryNetwork) -> None:
    client = RegistryClient(network, REGISTRY, connections=1)
    async with running(network, FakeRegistry(delay=RESPONSE_TIMEOUT - 1)), trio.open_nursery() as nursery:
        nursery.start_soon(client.call, "lookup")
        nursery.start_soon(client.call, "lookup")
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await failure(client, timeout=INTERACTIVE_TIMEOUT)
        assert trio.current_time() - started == pytest.approx(INTERACTIVE_TIMEOUT)
        await failure(client)  # behind two slow ones its own time runs out
        assert trio.current_time() - started == pytest.approx(INTERACTIVE_TIMEOUT + CALL_TIMEOUT, abs=15)


async def test_timeout_drops_idle_connections_on_the_same_path(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    registry = FakeRegistry(delay=1)
    async with running(network, registry):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "lookup")
            nursery.start_soon(client.call, "lookup")
        registry.delay = 100
        await failure(client, timeout=8)
        assert client.statistics().open == 0


# Refusal, loss, restart


async def test_refused_call_outlasts_a_restart(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with trio.open_nursery() as nursery:
        registry = FakeRegistry()

        async def come_up_late() -> None:
            await trio.sleep(2)
            await registry.serve(await network.listen_tcp(REGISTRY))

        nursery.start_soon(come_up_late)
        await client.call("heartbeat")
        assert 2 <= trio.current_time() <= 7.5
        registry.stop()


async def test_refusing_registry_fails_a_call_within_the_dialling_time(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient, reachable: list[bool]
) -> None:
    error = await failure(client)
    assert str(error) == (
        "registry: reconnect failed after 5 attempts: dial tcp 127.0.0.1:9000: connect to 127.0.0.1:9000: connection refused"
    )
    assert 3.75 <= trio.current_time() <= 7.5
    assert client.statistics().dials == DIAL_ATTEMPTS
    assert reachable == [False]


async def test_calls_fail_promptly_once_the_registry_is_known_to_be_down(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    await failure(client)
    started = trio.current_time()
    assert str(await failure(client)).startswith("registry: dial tcp 127.0.0.1:9000: ")
    assert trio.current_time() == started
    async with running(network, FakeRegistry()):
        await client.call("heartbeat")
    await failure(client)  # patient again after a success
    assert trio.current_time() - started > 3


async def test_dial_into_a_black_hole_ends_at_its_deadline(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    network.black_hole(REGISTRY)
    error = await failure(client)
    assert "i/o timeout" in str(error)
    assert trio.current_time() == pytest.approx(DIAL_ATTEMPTS * DIAL_TIMEOUT + 5.6, abs=2)


async def test_lost_answer_is_asked_for_once_more(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    answers = iter([Close, accept_all])

    def handler(message: Message) -> Message:
        step = next(answers)
        if step is Close:
            raise Close
        return accept_all(message)

    async with running(network, FakeRegistry(handler)) as registry:
        assert await client.call("set_hostname", hostname="x") == {"type": "set_hostname_ok"}
        assert registry.types == ["set_hostname", "set_hostname"]
        assert client.statistics().retries == 1


async def test_registry_that_closes_every_connection_is_asked_twice_and_slowly(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    def handler(_: Message) -> Message:
        raise Close

    async with running(network, FakeRegistry(handler)) as registry:
        assert str(await failure(client)) == ("registry: recv: EOF (retried after reconnect; first failure: recv: EOF)")
        assert registry.accepted == 2
        for _ in range(20):
            await failure(client)
        gaps = [b.at - a.at for a, b in zip(registry.seen[-10:], registry.seen[-9:], strict=False)]
        assert all(1 <= gap <= 2 for gap in gaps)


async def test_calls_survive_a_registry_that_restarts(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()):
        await client.call("heartbeat")
    async with running(network, FakeRegistry()) as second:
        await client.call("heartbeat")
        assert second.types == ["heartbeat"]


async def test_registry_that_goes_away_is_reported_with_both_failures(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()):
        await client.call("heartbeat")
    assert str(await failure(client)).startswith(
        "registry: send failed and reconnect failed: send: broken pipe (reconnect: reconnect failed after 5 attempts: dial"
    )


async def test_reset_connections_are_replaced(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()):
        await client.call("heartbeat")
        assert network.break_connections(REGISTRY) == 1
        await client.call("heartbeat")


# Nonsense


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        encode_frame(b"not json"),
        encode_frame(b"[]"),
        encode_frame(b"\xff\xfe"),
        encode_frame(b""),
        encode_frame(b"[" * 100_000),
        encode_frame(b'{"type":"resolve_ok"}'),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_garbage_is_an_unavailable_registry_and_costs_the_connection(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient, garbage: bytes
) -> None:
    async with running(network, FakeRegistry(lambda _: garbage)):
        assert str(await failure(client)).startswith("registry: malformed response")
        assert client.statistics().open == 0


async def test_torn_answer_is_a_lost_one(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    registry = FakeRegistry()

    def handler(_: Message) -> bytes:
        network.break_connections(REGISTRY)
        return b"\0\0"

    registry.handler = handler
    async with running(network, registry):
        assert "retried after reconnect" in str(await failure(client))


async def test_answers_nobody_asked_for_cost_the_connection(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    answer = encode_frame(b'{"type":"lookup_ok"}')
    async with running(network, FakeRegistry(lambda _: answer + answer)) as registry:
        await client.call("lookup")
        assert client.statistics().open == 0
        await client.call("lookup")
        assert registry.accepted == 2


# Cancellation and closing


async def test_cancelled_call_never_leaves_its_answer_to_the_next_one(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    def echo(message: Message) -> Message:
        return {"type": "lookup_ok", "node_id": message["node_id"]}

    async with running(network, FakeRegistry(echo, delay=2)):
        with trio.move_on_after(1):
            await client.call("lookup", node_id=1)
        assert client.statistics().open == 0
        assert (await client.call("lookup", node_id=2))["node_id"] == 2


async def test_call_can_be_cancelled_while_it_waits_or_dials(autojump_clock: MockClock, network: MemoryNetwork) -> None:
    client = RegistryClient(network, REGISTRY, connections=1)
    network.black_hole(REGISTRY)
    with trio.move_on_after(1):
        await client.call("lookup")
    with trio.move_on_after(7.5):  # between two dials
        await client.call("lookup")
    network.restore(REGISTRY)
    async with running(network, FakeRegistry(delay=3)), trio.open_nursery() as nursery:
        nursery.start_soon(client.call, "lookup")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await client.call("lookup")
        assert client.statistics().waiting == 0
    assert client.statistics().open == 1


async def test_closing_fails_calls_under_way_and_later_ones(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    errors: list[str] = []

    async def call() -> None:
        errors.append(str(await failure(client)))

    async with running(network, FakeRegistry(delay=1000)):
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS + 1):
                nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await client.aclose()
        await client.aclose()
        assert str(await failure(client)) == "registry: registry client closed"
    assert len(errors) == CONNECTIONS + 1
    assert all("registry client closed" in text for text in errors)
    assert client.statistics().open == 0
    assert trio.current_time() < 1


async def test_closing_while_a_call_dials_leaves_nothing_open(
    network: MemoryNetwork, client: RegistryClient, autojump_clock: MockClock
) -> None:
    network.black_hole(REGISTRY)
    registry = FakeRegistry()
    async with running(network, registry):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failure, client)
            await wait_all_tasks_blocked()
            await client.aclose()
            network.restore(REGISTRY)
        await wait_all_tasks_blocked()
        assert registry.accepted == registry.closed


async def test_statistics_count_what_happened(
    autojump_clock: MockClock, network: MemoryNetwork, client: RegistryClient
) -> None:
    async with running(network, FakeRegistry()) as registry:
        await client.call("heartbeat")
        registry.handler = lambda _: {"type": "error", "error": "no"}
        with pytest.raises(RegistryError):
            await client.call("heartbeat")
    await failure(client)
    counted = client.statistics()
    assert (counted.calls, counted.errors, counted.unavailable, counted.waiting) == (3, 1, 1, 0)
