"""Requests that are handled together: what they do, in which order, and what they cost others."""

from __future__ import annotations

import itertools

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.daemon.ipc_client import DISPATCH_COST, TURN_QUANTUM
from pilot_trio.testing.memory_transport import MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_frame

from .conftest import CRASH, HEALTH, HEALTH_OK, RUN_HEAD, Bench, Commands
from .raw_client import RawClient
from .test_properties import run


def to(where: bytes, data: bytes = b"") -> bytes:
    return encode_frame(Code.SEND_TO, where + data)


def runs(bench: Bench) -> list[list[bytes]]:
    return [[request[1:] for request in each] for each in bench.commands.runs]


async def test_requests_in_a_row_that_begin_alike_are_handled_together(bench: Bench) -> None:
    client = await bench.connect()
    client.write(to(b"aa", b"1") + to(b"aa") + to(b"ab", b"2") + to(b"aa", b"3") + bytes(4) + to(b"aa", b"4") + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert runs(bench) == [[b"aa1", b"aa"], [b"ab2"], [b"aa3"], [b"aa4"]]


async def test_another_request_between_them_is_handled_between_them(bench: Bench) -> None:
    client = await bench.connect()
    client.write(to(b"aa") + encode_frame(Code.SEND, b"between") + to(b"aa") + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert [payload for _, payload in bench.commands.seen] == [b"\x0baa", b"between", b"\x0baa"]


async def test_a_run_that_crashes_or_is_refused_costs_itself_and_no_answer(bench: Bench) -> None:
    client = await bench.connect()
    client.write(to(b"aa") + encode_frame(CRASH[0], CRASH[1:]) * 2 + to(b"x") + to(b"xy") + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert bench.server.statistics().crashes == 1
    assert runs(bench) == [[b"aa"], [b"xy"]]


async def test_a_short_request_is_not_taken_for_the_beginning_of_others(bench: Bench) -> None:
    client = await bench.connect()
    client.write(to(b"") + to(b"aa") + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert runs(bench) == [[b"aa"]]


async def test_a_flood_of_them_gives_way_to_others_every_quantum(bench: Bench) -> None:
    flood, other = await bench.connect(), await bench.connect()
    await trio.testing.wait_all_tasks_blocked()
    flood.write(to(b"aa") * 1000 + to(b"ab") * 1000)
    other.write(encode_frame(Code.SEND, b"me too"))
    await trio.testing.wait_all_tasks_blocked()
    order = [client for client, _ in bench.commands.seen]
    assert len(order) == 2001
    assert order.index(2) <= 2 * (TURN_QUANTUM + DISPATCH_COST)
    assert TURN_QUANTUM // 2 < max(map(len, bench.commands.runs)) <= TURN_QUANTUM + DISPATCH_COST


async def test_those_that_differ_cost_as_much_as_any_request(bench: Bench) -> None:
    flood, other = await bench.connect(), await bench.connect()
    await trio.testing.wait_all_tasks_blocked()
    flood.write((to(b"aa") + to(b"ab")) * 500)
    other.write(encode_frame(Code.SEND, b"me too"))
    await trio.testing.wait_all_tasks_blocked()
    assert [client for client, _ in bench.commands.seen].index(2) <= 2 * TURN_QUANTUM // DISPATCH_COST


requests = st.sampled_from([to(b"aa"), to(b"aa", b"1"), to(b"ab"), to(b"a"), encode_frame(Code.SEND, b"x"), bytes(4)])


@given(st.lists(st.tuples(requests, st.integers(1, 90)), max_size=8), st.lists(st.integers(0, 3000), max_size=6))
@settings(deadline=None)
def test_however_they_arrive_all_are_handled_once_and_in_order(sent: list[tuple[bytes, int]], cuts: list[int]) -> None:
    async def main() -> None:
        stream = b"".join(request * count for request, count in sent)
        edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
        commands, listener = Commands(), MemoryTransportListener()
        async with trio.open_nursery() as nursery:
            await nursery.start(IPCServer(commands.table()).serve, listener)
            client = await RawClient.connect(listener)
            for start, end in itertools.pairwise(edges):
                await client.write_all(stream[start:end])
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        # What the commands note of a request: its payload, and of those that come in runs the code before it.
        noted = [request[5:] if request[4:5] == bytes([Code.SEND]) else request[4:] for request, _ in sent]
        counts = [
            count if note == b"x" or len(note) >= RUN_HEAD else 0 for note, (_, count) in zip(noted, sent, strict=True)
        ]
        expected = [note for note, count in zip(noted, counts, strict=True) for _ in range(count)]
        assert [payload for _, payload in commands.seen] == expected

    run(main)


async def test_a_run_that_waits_is_waited_for_by_its_client_alone(bench: Bench) -> None:
    client, neighbour = await bench.connect(), await bench.connect()
    client.write(to(b"aa", b"1") + to(b"aa", b"wait") + to(b"ab") + HEALTH)
    await trio.testing.wait_all_tasks_blocked()
    assert runs(bench) == [[b"aa1", b"aawait"]]
    assert await neighbour.ask(HEALTH) == HEALTH_OK[4:]
    bench.commands.gate.set()
    assert await client.read_frame() == HEALTH_OK[4:]
    assert runs(bench) == [[b"aa1", b"aawait"], [b"ab"]]


async def test_a_client_that_leaves_while_its_run_waits_is_gone(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    client.write(to(b"aa", b"wait") + to(b"ab"))
    await trio.testing.wait_all_tasks_blocked()
    client.close()
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(2)
    assert bench.server.client_count == 0
    assert runs(bench) == [[b"aawait"]]
