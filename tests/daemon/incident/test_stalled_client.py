"""The incident, for good: one local client stopped reading, and the daemon's socket died for everybody.

Its chain: the client's kernel buffer filled, the writer blocked on it, the queue of 256 frames filled, the tasks that held
replies parked, 1,024 of them used up the in-flight limit, and nothing ever ended any of it. Each test here is a link of
that chain, under virtual time; `test_half_fix.py` shows that the chain still closes when the writer's deadline is taken
away, and `test_repeated.py` that nothing is left behind when it is there.
"""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from pilot_trio.daemon.in_flight import CLIENT_IN_FLIGHT_MAX
from pilot_trio.daemon.ipc_client import IPCClient
from pilot_trio.daemon.outbound import QUEUE_BYTES_MAX, QUEUE_SLOTS, WRITE_BOUND, WRITE_DEADLINE
from pilot_trio.errors import IPCClosedError
from pilot_trio.wire.ipc import Code, encode_error, encode_frame
from tests.daemon.ipc.conftest import HEALTH, HEALTH_OK, INFO_OK, Bench
from tests.daemon.ipc.raw_client import RawClient

INFO = encode_frame(Code.INFO)
DIAL = encode_frame(Code.DIAL)
NEIGHBOUR_PATIENCE = 0.05  # seconds within which a neighbour's Health must be answered, whatever goes on


async def ask_health_throughout(neighbour: RawClient, until: float) -> None:
    """Ask for Health every 10 ms of virtual time; each answer must come within its time."""
    while trio.current_time() < until:
        with trio.fail_after(NEIGHBOUR_PATIENCE):
            assert await neighbour.ask(HEALTH) == HEALTH_OK[4:]
        await trio.sleep(0.01)


async def the_stalled_one(bench: Bench, client: RawClient) -> IPCClient:
    """Make the server show its side of a client."""
    client.write(DIAL)
    await trio.testing.wait_all_tasks_blocked()
    return bench.commands.clients[-1]


@pytest.mark.parametrize("request_frame", [HEALTH, INFO, encode_frame(0x7F)], ids=["health", "info", "unknown"])
async def test_flood_and_stall_is_cut_at_ten_seconds(
    bench: Bench, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, request_frame: bytes
) -> None:
    stalled, neighbour = await bench.connect(), await bench.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalled.flood, request_frame)
        nursery.start_soon(ask_health_throughout, neighbour, 13)
        await trio.sleep(WRITE_DEADLINE - 0.01)
        statistics = bench.server.statistics()
        assert statistics.clients == 2
        assert 0 < statistics.queued_bytes <= QUEUE_BYTES_MAX
        await trio.sleep(0.02)
        statistics = bench.server.statistics()
        assert (statistics.clients, statistics.cut_clients, statistics.queued_bytes) == (1, 1, 0)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1


async def test_client_that_reads_within_the_deadline_is_not_cut(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flood, INFO)
        for _ in range(5):
            await trio.sleep(WRITE_DEADLINE - 0.1)
            await client.read_exactly(2 * WRITE_BOUND)
        assert bench.server.client_count == 1
        client.close()


@pytest.mark.parametrize(("bytes_per_second", "survives"), [(1_700, True), (1_500, False)])
async def test_lowest_rate_that_is_tolerated(
    bench: Bench, autojump_clock: trio.testing.MockClock, bytes_per_second: int, survives: bool
) -> None:
    client = await bench.connect()
    with trio.move_on_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.flood, INFO)
            await client.drain_at(bytes_per_second)
            nursery.cancel_scope.cancel()
    assert bench.server.statistics().cut_clients == (0 if survives else 1)


async def test_frame_far_above_the_bound_is_judged_piece_by_piece(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    # A megabyte at 5 kB/s takes over three minutes. Each 16 KiB of it takes three seconds.
    client = await bench.connect()
    server_side = await the_stalled_one(bench, client)
    frame = encode_frame(Code.RECV, bytes(1_000_000))
    await server_side.outbound.send(frame)
    started_at = trio.current_time()
    with trio.move_on_after(300):
        assert len(await read_slowly(client, len(frame), 5_000)) == len(frame)
    assert trio.current_time() - started_at > 150
    assert bench.server.statistics().cut_clients == 0


async def read_slowly(client: RawClient, size: int, bytes_per_second: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await client.transport.receive_some(min(bytes_per_second, size - len(data)))
        await trio.sleep(1)
    return data


async def test_full_queue_parks_the_producer_and_the_cut_releases_it(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    stalled = await bench.connect()
    server_side = await the_stalled_one(bench, stalled)
    frame = encode_frame(Code.RECV, bytes(500))
    sent = 0
    outcome: list[float] = []

    async def produce() -> None:
        nonlocal sent
        try:
            while True:
                await server_side.outbound.send(frame)
                sent += 1
        except IPCClosedError:
            outcome.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        await trio.sleep(1)
        in_queue = bench.server.statistics().queued_frames
        assert in_queue == QUEUE_SLOTS
        before = sent
        await trio.sleep(1)
        assert sent == before
    assert outcome == [pytest.approx(WRITE_DEADLINE, abs=0.1)]


async def test_byte_budget_parks_producers_long_before_the_slots_are_used_up(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    stalled = await bench.connect()
    server_side = await the_stalled_one(bench, stalled)
    frame = encode_frame(Code.RECV, bytes(50_000))
    with trio.move_on_after(1):
        while True:
            await server_side.outbound.send(frame)
    statistics = bench.server.statistics()
    assert QUEUE_BYTES_MAX - len(frame) < statistics.queued_bytes <= QUEUE_BYTES_MAX
    assert statistics.queued_frames < 10
    assert not server_side.offer_all([frame])
    assert bench.server.statistics().dropped_offers == 1


async def test_every_parked_producer_is_released_in_the_turn_of_the_cut(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    stalled = await bench.connect()
    server_side = await the_stalled_one(bench, stalled)
    started_at = trio.current_time()
    released: list[tuple[int, float]] = []

    async def produce(number: int) -> None:
        frame = encode_frame(Code.RECV, number.to_bytes(4, "big") + bytes(2_000))
        with pytest.raises(IPCClosedError):  # noqa: PT012 - which of the sends fails is not the point
            while True:
                await server_side.outbound.send(frame)
        released.append((number, trio.current_time() - started_at))

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(produce, number)
    assert len(released) == 500
    assert {round(at, 2) for _, at in released} == {WRITE_DEADLINE}
    # Later ones never enqueue.
    assert server_side.closed
    with pytest.raises(IPCClosedError):
        await server_side.outbound.send(HEALTH_OK)
    assert not server_side.offer_all([HEALTH_OK])
    assert bench.server.statistics().queued_bytes == 0


async def test_1024_parked_handlers_park_the_reader_and_end_with_the_client(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    stalled, neighbour = await bench.connect(), await bench.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalled.flood, DIAL)
        nursery.start_soon(ask_health_throughout, neighbour, 13)
        await trio.sleep(1)
        assert bench.server.statistics().in_flight == CLIENT_IN_FLIGHT_MAX
        # The gate opens: 1,024 replies for a client that does not read, and all those dials behind them.
        bench.commands.gate.set()
        await trio.sleep(WRITE_DEADLINE - 0.1)
        assert bench.server.statistics().cut_clients == 0
        await trio.sleep(0.2)
        statistics = bench.server.statistics()
        assert (statistics.clients, statistics.cut_clients) == (1, 1)
        assert (statistics.in_flight, statistics.queued_frames, statistics.queued_bytes) == (0, 0, 0)


async def test_producers_are_served_in_the_order_in_which_they_came(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    server_side = await the_stalled_one(bench, client)

    async def produce(number: int) -> None:
        await server_side.outbound.send(encode_frame(Code.RECV, number.to_bytes(4, "big") + bytes(3_000)))

    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(produce, number)
            await trio.testing.wait_all_tasks_blocked()
        frames = await client.read_frames(400)
    assert [int.from_bytes(frame[1:5], "big") for frame in frames] == list(range(400))


async def test_cancelled_producer_leaves_the_line_and_its_frame_behind(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    server_side = await the_stalled_one(bench, client)
    with trio.move_on_after(1):
        while True:
            await server_side.outbound.send(encode_frame(Code.RECV, b"filler" + bytes(3_000)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server_side.outbound.send, encode_frame(Code.RECV, b"before" + bytes(3_000)))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await server_side.outbound.send(encode_frame(Code.RECV, b"cancelled" + bytes(3_000)))
        assert scope.cancelled_caught
        nursery.start_soon(server_side.outbound.send, encode_frame(Code.RECV, b"after" + bytes(3_000)))
        await trio.testing.wait_all_tasks_blocked()
        seen: list[bytes] = []
        while not seen or seen[-1] != b"after":
            seen.append((await client.read_frame())[1:10].rstrip(b"\0"))
    assert [what for what in seen if what != b"filler"] == [b"before", b"after"]


async def test_reader_stops_parsing_while_the_queue_is_over_its_budget_and_resumes(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    server_side = await the_stalled_one(bench, client)
    with trio.move_on_after(1):
        while True:
            await server_side.outbound.send(encode_frame(Code.RECV, bytes(60_000)))
    while server_side.offer_all([encode_frame(Code.RECV, bytes(1_000))]):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.write_all, encode_frame(Code.SEND, b"x") * 20_000)
        await trio.sleep(1)
        parsed = len(bench.commands.seen)
        assert parsed < 20_000
        await trio.sleep(1)
        assert len(bench.commands.seen) == parsed
        nursery.start_soon(client.drain_at, 10_000_000)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert len(bench.commands.seen) == 20_000


async def test_drain_after_an_orderly_close_allows_three_seconds_a_write(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    client.write(INFO * 250)
    client.shut_down_write()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.server.client_count == 1
    await trio.sleep(2.9)
    await client.read_exactly(2 * WRITE_BOUND)
    await trio.sleep(2.9)
    assert bench.server.client_count == 1
    await trio.sleep(0.2)
    assert bench.server.client_count == 0


async def test_what_a_cut_client_was_sent_before_is_whole_but_for_the_last_frame(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flood, INFO)
        await trio.sleep(WRITE_DEADLINE + 0.1)
    data = await client.read_bytes_to_end()
    whole, rest = divmod(len(data), len(INFO_OK))
    assert data == INFO_OK * whole + INFO_OK[:rest]


async def test_a_crash_in_one_client_is_not_noticed_by_another(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client, neighbour = await bench.connect(), await bench.connect()
    client.write(encode_frame(Code.NETWORK) * 100 + encode_frame(Code.MANAGED) * 100)
    assert await neighbour.ask(HEALTH) == HEALTH_OK[4:]
    assert await client.read_frames(200) == [encode_error("internal error")[4:]] * 200
