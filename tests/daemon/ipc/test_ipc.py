"""The IPC server on memory transports: what a client gets for what it sends."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio
import trio.testing

from pilot_trio.daemon.dispatch import Client, Lane, Route
from pilot_trio.daemon.in_flight import CLIENT_IN_FLIGHT_MAX
from pilot_trio.daemon.ipc import CLIENTS_MAX, SHUTDOWN_DRAIN
from pilot_trio.daemon.ipc_client import DISPATCH_COST, JOINED_MAX, READ_COST, TURN_QUANTUM
from pilot_trio.daemon.ipc_session import READ_MAX
from pilot_trio.daemon.outbound import QUEUE_BYTES_MAX
from pilot_trio.errors import CommandError, IPCClosedError, LocalProtocolError
from pilot_trio.wire.framing import IPC_FRAME_MAX
from pilot_trio.wire.ipc import Code, encode_error, encode_frame

from .conftest import HEALTH, HEALTH_OK, INFO_OK, Bench
from .raw_client import settled

DIAL = encode_frame(Code.DIAL)


async def test_requests_are_answered_and_an_unknown_one_is_named(bench: Bench) -> None:
    client = await bench.connect()
    client.write(HEALTH + encode_frame(Code.INFO) + encode_frame(0x7F, b"payload") + encode_frame(0x02))
    client.shut_down_write()
    assert await client.read_to_end() == [
        HEALTH_OK[4:],
        INFO_OK[4:],
        encode_error("unknown command: 0x7F")[4:],
        encode_error("unknown command: 0x02")[4:],
    ]


async def test_zero_length_frames_are_skipped(bench: Bench) -> None:
    client = await bench.connect()
    client.write(bytes(4) * 40 + HEALTH + bytes(4))
    assert await client.read_frame() == HEALTH_OK[4:]


async def test_oversize_frame_ends_the_connection_after_earlier_answers(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    client.write(HEALTH + DIAL + ((1 << 20) + 1).to_bytes(4, "big"))
    await settled(lambda: bench.commands.started == 1)
    bench.commands.gate.set()
    assert await client.read_to_end() == [HEALTH_OK[4:], encode_frame(Code.DIAL_OK)[4:]]
    await settled(lambda: bench.server.client_count == 0)


async def test_frame_of_exactly_one_mebibyte_is_served(bench: Bench) -> None:
    client = await bench.connect()
    await client.write_all(encode_frame(Code.SEND, bytes((1 << 20) - 1)) + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert len(bench.commands.seen[0][1]) == (1 << 20) - 1


def promise(payload: bytes) -> bytes:
    return encode_frame(Code.RESOLVE_HOSTNAME, payload)


async def test_promises_are_answered_as_they_are_kept_and_hold_up_nobody(bench: Bench) -> None:
    client = await bench.connect()
    client.write(promise(b"first") + promise(b"now") + promise(b"second") + HEALTH)
    assert await client.read_frames(2) == [encode_frame(Code.RESOLVE_HOSTNAME_OK, b"now")[4:], HEALTH_OK[4:]]
    assert bench.server.statistics().in_flight == 2
    for payload, answer in reversed(bench.commands.promised):
        answer(encode_frame(Code.RESOLVE_HOSTNAME_OK, payload) if payload == b"first" else CommandError("broken"))
    assert await client.read_frames(2) == [
        encode_error("broken")[4:],
        encode_frame(Code.RESOLVE_HOSTNAME_OK, b"first")[4:],
    ]
    assert bench.server.statistics().in_flight == 0


async def test_a_promise_that_cannot_be_made_is_an_error_reply(bench: Bench) -> None:
    client = await bench.connect()
    client.write(promise(b"refused") + promise(b"crash") + HEALTH)
    assert await client.read_frames(3) == [
        encode_error("refused at once")[4:],
        encode_error("internal error")[4:],
        HEALTH_OK[4:],
    ]
    assert bench.server.statistics().crashes == 1
    assert bench.server.statistics().in_flight == 0


async def test_promises_count_against_the_limit_of_requests_in_flight(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    await client.write_all(promise(b"x") * (CLIENT_IN_FLIGHT_MAX + 5) + HEALTH)
    await settled(lambda: len(bench.commands.promised) == CLIENT_IN_FLIGHT_MAX)
    await trio.sleep(1)
    assert bench.server.statistics().in_flight == len(bench.commands.promised) == CLIENT_IN_FLIGHT_MAX
    for _, answer in list(bench.commands.promised[:5]):
        answer(encode_frame(Code.RESOLVE_HOSTNAME_OK))
    frames = await client.read_frames(6)
    assert frames[-1] == HEALTH_OK[4:]
    assert len(bench.commands.promised) == CLIENT_IN_FLIGHT_MAX + 5


async def test_a_promise_is_kept_after_the_end_of_input_and_to_nobody_who_has_left(
    bench: Bench, autojump_clock: object
) -> None:
    client, gone = await bench.connect(), await bench.connect()
    client.write(promise(b"x"))
    gone.write(promise(b"y"))
    await settled(lambda: len(bench.commands.promised) == 2)
    client.shut_down_write()
    gone.close()
    await settled(lambda: bench.server.client_count == 1)
    for payload, answer in bench.commands.promised:
        answer(encode_frame(Code.RESOLVE_HOSTNAME_OK, payload))
    assert await client.read_to_end() == [encode_frame(Code.RESOLVE_HOSTNAME_OK, b"x")[4:]]
    await settled(lambda: bench.server.client_count == 0)


async def test_reply_longer_than_a_frame_becomes_an_error(bench: Bench) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.SIGN_ENVELOPE))
    reply = await client.read_frame()
    assert reply[0] == Code.ERROR
    assert b"reply too large" in reply


async def test_crash_ends_one_request_with_one_log_record(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.NETWORK) + HEALTH + encode_frame(Code.MANAGED))
    assert await client.read_frame() == encode_error("internal error")[4:]
    assert await client.read_frame() == HEALTH_OK[4:]
    assert await client.read_frame() == encode_error("internal error")[4:]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert bench.server.statistics().crashes == 2


async def test_crash_of_a_fire_and_forget_command_is_not_answered(bench: Bench) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.CANCEL) + HEALTH)
    client.shut_down_write()
    assert await client.read_to_end() == [HEALTH_OK[4:]]


async def test_errors_carry_the_prefix_of_their_command(bench: Bench) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.SEND_TO_CONFIRM) + encode_frame(Code.SET_TAGS))
    assert await client.read_frame() == encode_error("sendto: missing header")[4:]
    assert await client.read_frame() == encode_error("set_tags: maximum 3 tags allowed")[4:]


async def test_fifo_commands_are_answered_in_order(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    client.write(b"".join(encode_frame(Code.SEND_TO_CONFIRM, bytes([n])) + HEALTH for n in range(1, 151)))
    client.shut_down_write()
    expected = [frame for n in range(1, 151) for frame in (bytes([Code.SEND_TO_OK, n]), HEALTH_OK[4:])]
    assert await client.read_to_end() == expected


def shared(payload: bytes) -> bytes:
    return encode_frame(Code.PREFER_DIRECT, payload)


async def test_requests_that_ask_the_same_share_a_question_and_their_answers_a_write(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = await bench.connect(), await bench.connect()
    one.write(shared(b"x"))
    await trio.testing.wait_all_tasks_blocked()
    one.write(shared(b"x") * 5)
    other.write(shared(b"x") * 3)
    await trio.testing.wait_all_tasks_blocked()
    assert (bench.commands.started, bench.server.statistics().in_flight) == (1, 3)
    bench.commands.gate.set()
    answer = encode_frame(Code.PREFER_DIRECT_OK, b"x")
    assert await one.transport.receive_some(1 << 16) == answer
    assert await one.transport.receive_some(1 << 16) == answer * 5
    assert await other.transport.receive_some(1 << 16) == answer * 3
    assert (bench.commands.started, bench.server.statistics().in_flight) == (2, 0)


async def test_shared_refusal_and_crash_answer_everybody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    client = await bench.connect()
    bench.commands.gate.set()
    client.write(shared(b"refused") * 3)
    assert await client.read_frames(3) == [encode_error("shared: no")[4:]] * 3
    assert bench.server.statistics().crashes == 0
    client.write(shared(b"crash") * 2)
    assert await client.read_frames(2) == [encode_error("shared: internal error")[4:]] * 2
    assert bench.server.statistics().crashes == len(caplog.records) == 1
    assert caplog.records[0].exc_info


async def test_however_many_ask_the_same_each_is_answered_once_and_in_its_place(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    bench.commands.gate.set()
    asked = [b"x"] * 30 + [b"y"] + [b"x"] * 2 + [b"refused"] * 20
    client.write(b"".join(map(shared, asked)) + shared(b"x") + bytes(4) + shared(b"x"))
    x, y = encode_frame(Code.PREFER_DIRECT_OK, b"x")[4:], encode_frame(Code.PREFER_DIRECT_OK, b"y")[4:]
    answers = await client.read_frames(len(asked) + 2)
    assert sorted(answers) == sorted([x] * 34 + [y] + [encode_error("shared: no")[4:]] * 20)
    assert bench.server.statistics().in_flight == 0


async def test_those_who_ask_the_same_again_and_again_are_no_more_than_may_wait(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    client = await bench.connect()
    client.write(shared(b"x") * 5000 + HEALTH)
    await trio.testing.wait_all_tasks_blocked()
    (inner,) = bench.server._clients.values()
    assert (inner.in_flight, inner._joined) == (CLIENT_IN_FLIGHT_MAX, JOINED_MAX)
    bench.commands.gate.set()
    frames = await client.read_frames(5001)
    assert frames.count(encode_frame(Code.PREFER_DIRECT_OK, b"x")[4:]) == 5000
    assert frames.count(HEALTH_OK[4:]) == 1
    assert (inner.in_flight, inner._joined) == (0, 0)


async def test_askers_that_leave_do_not_concern_the_others_and_leave_nothing_behind(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    leaving, staying = await bench.connect(), await bench.connect()
    leaving.write(shared(b"x") * 3)
    await trio.testing.wait_all_tasks_blocked()
    staying.write(shared(b"x"))
    await trio.testing.wait_all_tasks_blocked()
    leaving.close()
    await settled(lambda: bench.server.client_count == 1)
    bench.commands.gate.set()
    assert await staying.read_frame() == encode_frame(Code.PREFER_DIRECT_OK, b"x")[4:]
    assert bench.server.statistics().in_flight == 0
    await trio.sleep(1)
    assert len(bench.server._questions) == 0


async def test_waiting_request_delays_nothing_behind_it(bench: Bench) -> None:
    client = await bench.connect()
    client.write(DIAL + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    assert bench.server.statistics().in_flight == 1
    bench.commands.gate.set()
    assert await client.read_frame() == encode_frame(Code.DIAL_OK)[4:]
    await settled(lambda: bench.server.statistics().in_flight == 0)


async def test_health_passes_1024_requests_in_flight_and_waits_behind_one_more(bench: Bench) -> None:
    client, neighbour = await bench.connect(), await bench.connect()
    client.write(DIAL * CLIENT_IN_FLIGHT_MAX + HEALTH)
    assert await client.read_frame() == HEALTH_OK[4:]
    client.write(DIAL + HEALTH)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.server.statistics().in_flight == CLIENT_IN_FLIGHT_MAX
    with trio.move_on_after(0) as nothing_comes:
        await client.read_frame()
    assert nothing_comes.cancelled_caught
    neighbour.write(HEALTH)
    assert await neighbour.read_frame() == HEALTH_OK[4:]
    bench.commands.gate.set()
    frames = [await client.read_frame() for _ in range(CLIENT_IN_FLIGHT_MAX + 2)]
    assert frames.count(HEALTH_OK[4:]) == 1
    assert frames.count(encode_frame(Code.DIAL_OK)[4:]) == CLIENT_IN_FLIGHT_MAX + 1


async def test_client_1025_gets_end_of_file_and_a_slot_freed_is_free_at_once(bench: Bench) -> None:
    clients = [await bench.connect() for _ in range(CLIENTS_MAX)]
    await settled(lambda: bench.server.client_count == CLIENTS_MAX)
    extra = await bench.connect()
    assert await extra.transport.receive_some(1) == b""
    assert bench.server.statistics().refused_clients == 1
    clients[0].close()
    await settled(lambda: bench.server.client_count == CLIENTS_MAX - 1)
    late = await bench.connect()
    late.write(HEALTH)
    assert await late.read_frame() == HEALTH_OK[4:]


async def test_half_close_with_55_requests_gets_55_replies(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    client.write(HEALTH * 30 + encode_frame(Code.INFO) * 5 + DIAL * 20)
    client.shut_down_write()
    await settled(lambda: bench.commands.started == 20)
    await trio.sleep(40)  # however long that takes
    bench.commands.gate.set()
    assert len(await client.read_to_end()) == 55
    await settled(lambda: bench.server.client_count == 0)


@pytest.mark.parametrize("request_code", [Code.DIAL, Code.SEND])
async def test_client_that_vanishes_takes_its_waiting_requests_along(
    bench: Bench, autojump_clock: object, request_code: Code
) -> None:
    client = await bench.connect()
    released: list[float] = []
    client.write(DIAL + encode_frame(request_code, b"blocked"))
    await trio.testing.wait_all_tasks_blocked()
    bench.commands.clients[0].on_release(lambda: released.append(trio.current_time()))
    left_at = trio.current_time()
    client.close()
    await trio.sleep(1)
    assert bench.server.client_count == 0
    assert 0 <= released[0] - left_at <= 0.5
    assert bench.server.statistics().in_flight == 0


async def test_half_closed_client_that_leaves_later_is_noticed(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    client.write(DIAL)
    client.shut_down_write()
    await trio.sleep(5)
    assert bench.server.statistics().in_flight == 1
    client.close()
    await trio.sleep(0.5)
    assert bench.server.client_count == 0


async def test_client_that_vanishes_within_a_frame_leaves_nothing(bench: Bench) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.SEND, bytes(1000))[:500])
    await trio.testing.wait_all_tasks_blocked()
    client.close()
    await settled(lambda: bench.server.client_count == 0)


async def test_release_runs_at_once_for_a_client_that_is_gone(bench: Bench) -> None:
    client = await bench.connect()
    client.write(DIAL)
    await settled(lambda: bench.commands.started == 1)
    client.close()
    await settled(lambda: bench.server.client_count == 0)
    released: list[int] = []
    bench.commands.clients[0].on_release(lambda: released.append(1))
    assert released == [1]


async def test_release_that_crashes_does_not_stop_the_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    client = await bench.connect()
    client.write(DIAL)
    await settled(lambda: bench.commands.started == 1)
    released: list[int] = []

    def crash() -> None:
        raise ZeroDivisionError

    bench.commands.clients[0].on_release(crash)
    bench.commands.clients[0].on_release(lambda: released.append(1))
    client.close()
    await settled(lambda: bench.server.client_count == 0)
    assert released == [1]
    assert bench.server.statistics().crashes == 1
    assert len(caplog.records) == 1


async def test_stop_drains_what_is_queued_within_its_budget(bench: Bench, autojump_clock: object) -> None:
    reading, stalled, idle = await bench.connect(), await bench.connect(), await bench.connect()
    for client in (reading, stalled):
        client.write(encode_frame(Code.INFO) * 150)
    await trio.testing.wait_all_tasks_blocked()
    stopped_at = trio.current_time()
    bench.stop()
    frames = await reading.read_to_end()
    assert await idle.transport.receive_some(1) == b""
    assert trio.current_time() == stopped_at
    assert frames == [INFO_OK[4:]] * 150
    await trio.sleep(SHUTDOWN_DRAIN + 0.01)
    assert bench.server.client_count == 0
    with pytest.raises(ConnectionRefusedError):
        await bench.connect()
    assert (await stalled.read_bytes_to_end()).startswith(INFO_OK)


async def test_client_that_never_writes_stays_connected(bench: Bench, autojump_clock: object) -> None:
    client = await bench.connect()
    await trio.sleep(24 * 3600)
    assert await client.ask(HEALTH) == HEALTH_OK[4:]


async def test_client_that_vanishes_while_its_reader_waits_for_the_limit_is_released(
    bench: Bench, autojump_clock: object
) -> None:
    client = await bench.connect()
    client.write(DIAL * (CLIENT_IN_FLIGHT_MAX + 1))
    await trio.testing.wait_all_tasks_blocked()
    client.close()
    await trio.sleep(0.5)
    statistics = bench.server.statistics()
    assert (statistics.clients, statistics.in_flight) == (0, 0)


async def test_broadcast_reaches_who_has_room_and_counts_who_has_not(bench: Bench) -> None:
    reading, crowded = await bench.connect(), await bench.connect()
    crowded.write(DIAL)
    await settled(lambda: len(bench.commands.clients) == 1)
    while bench.commands.clients[0].offer_all([encode_frame(Code.RECV_FROM, bytes(20_000))]):
        await trio.testing.wait_all_tasks_blocked()
    frame = encode_frame(Code.RECV_FROM, b"datagram" + bytes(20_000))
    dropped = bench.server.statistics().dropped_offers
    assert bench.server.broadcast_offer([frame]) == 1
    assert bench.server.statistics().dropped_offers == dropped + 1
    assert await reading.read_frame() == frame[4:]


async def test_offers_of_one_turn_arrive_in_order_and_only_what_finds_no_room_is_lost(bench: Bench) -> None:
    client = await bench.connect()
    client.write(DIAL)
    await settled(lambda: len(bench.commands.clients) == 1)
    frames = [encode_frame(Code.RECV_FROM, b"%d" % number + bytes(1_000)) for number in range(200)]
    assert bench.server.broadcast_offer(frames) == 200
    assert [await client.read_frame() for _ in frames] == [frame[4:] for frame in frames]
    # Nobody reads now. A large frame that does not fit takes none of the small ones with it.
    large = encode_frame(Code.RECV_FROM, bytes(200_000))
    while bench.commands.clients[0].offer_all([large]):
        await trio.testing.wait_all_tasks_blocked()
    dropped = bench.server.statistics().dropped_offers
    assert bench.server.broadcast_offer([frames[0], large, frames[1]]) == 2
    assert bench.server.statistics().dropped_offers == dropped + 1
    while (frame := await client.read_frame()) == large[4:]:
        pass
    assert [frame, await client.read_frame()] == [frames[0][4:], frames[1][4:]]


async def test_push_longer_than_a_frame_is_refused_where_it_is_made(bench: Bench) -> None:
    client = await bench.connect()
    client.write(DIAL)
    await settled(lambda: len(bench.commands.clients) == 1)
    with pytest.raises(LocalProtocolError):
        await bench.commands.clients[0].outbound.send(encode_frame(Code.RECV, bytes(1 << 20)))
    await bench.commands.clients[0].outbound.send(encode_frame(Code.RECV, b"fits"))
    assert await client.read_frame() == encode_frame(Code.RECV, b"fits")[4:]


async def test_nothing_can_be_sent_to_a_client_that_is_gone(bench: Bench) -> None:
    client = await bench.connect()
    client.write(DIAL)
    await settled(lambda: len(bench.commands.clients) == 1)
    client.close()
    await settled(lambda: bench.server.client_count == 0)
    bench.commands.clients[0].post(HEALTH_OK)
    assert bench.commands.clients[0].offer_all([HEALTH_OK]) == 0
    with pytest.raises(IPCClosedError):
        await bench.commands.clients[0].outbound.send(HEALTH_OK)


async def test_a_long_row_of_large_snapshots_is_answered_within_the_byte_budget(bench: Bench) -> None:
    large = encode_frame(Code.INFO_OK, bytes(30_000))
    bench.server._commands[Code.INFO] = Route(lambda client, payload: large, snapshot=True)
    client = await bench.connect()
    client.write(encode_frame(Code.INFO) * 60)
    await trio.testing.wait_all_tasks_blocked()
    assert 0 < bench.server.statistics().queued_bytes <= QUEUE_BYTES_MAX
    assert await client.read_frames(60) == [large[4:]] * 60


async def test_repeated_snapshot_is_built_once_but_never_across_another_request(bench: Bench) -> None:
    built: list[int] = []

    def build(client: Client, payload: bytes) -> bytes:
        built.append(len(bench.commands.seen))
        return encode_frame(Code.INFO_OK, str(len(bench.commands.seen)).encode())

    bench.server._commands[Code.INFO] = Route(build, snapshot=True)
    client = await bench.connect()
    info, send = encode_frame(Code.INFO), encode_frame(Code.SEND, b"x")
    client.write(info * 10 + send + info * 10)
    frames = await client.read_frames(20)
    assert frames == [bytes([Code.INFO_OK]) + b"0"] * 10 + [bytes([Code.INFO_OK]) + b"1"] * 10
    assert built == [0, 1]
    assert await client.ask(info) == bytes([Code.INFO_OK]) + b"1"
    assert built == [0, 1, 1]


async def test_a_snapshot_that_crashes_is_answered_and_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server._commands[Code.INFO] = Route(lambda client, payload: 1 / 0, snapshot=True)  # type: ignore[arg-type,return-value]
    client = await bench.connect()
    assert await client.ask(encode_frame(Code.INFO)) == encode_error("internal error")[4:]
    assert len(caplog.records) == bench.server.statistics().crashes == 1
    assert await client.ask(HEALTH) == HEALTH_OK[4:]


async def test_a_snapshot_longer_than_a_frame_becomes_an_error(bench: Bench) -> None:
    large = encode_frame(Code.INFO_OK, bytes(1 << 20))
    bench.server._commands[Code.INFO] = Route(lambda client, payload: large, snapshot=True)
    client = await bench.connect()
    assert b"reply too large" in await client.ask(encode_frame(Code.INFO))


async def test_a_lone_snapshot_does_not_overtake_what_is_queued(bench: Bench) -> None:
    client = await bench.connect()
    client.write(encode_frame(Code.INFO) * 200)
    await trio.testing.wait_all_tasks_blocked()
    assert bench.server.statistics().queued_bytes
    client.write(HEALTH)
    await trio.testing.wait_all_tasks_blocked()
    assert await client.read_frames(201) == [INFO_OK[4:]] * 200 + [HEALTH_OK[4:]]


async def test_a_flood_gives_way_to_others_every_quantum(bench: Bench) -> None:
    flooding, neighbour = await bench.connect(), await bench.connect()
    order: list[int] = []

    def note(client: Client, payload: bytes) -> None:
        order.append(client.client_id)

    bench.server._commands[Code.SEND] = Route(note, Lane.FIFO, replies=False)
    await trio.testing.wait_all_tasks_blocked()
    flooding.write(encode_frame(Code.SEND) * 1000)
    neighbour.write(encode_frame(Code.SEND))
    await settled(lambda: len(order) == 1001)
    assert order.index(2) <= 2 * TURN_QUANTUM // DISPATCH_COST


async def test_a_long_frame_gives_way_to_others_while_it_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # A client that writes faster than it is read: there is always more. All of it is one frame.
    client = await bench.connect()
    await trio.testing.wait_all_tasks_blocked()
    reads = [
        encode_frame(Code.SEND, bytes(IPC_FRAME_MAX - 1))[at : at + READ_MAX]
        for at in range(0, IPC_FRAME_MAX, READ_MAX)
    ]
    (server_end,) = (inner._transport for inner in bench.server._clients.values())
    turns = [len(reads)]  # reads left at each turn of the loop

    async def read(max_bytes: int) -> bytes:
        return reads.pop(0) if reads else await trio.sleep_forever()

    monkeypatch.setattr(server_end, "receive_some", read)
    monkeypatch.setattr(type(server_end), "drained", property(lambda end: not reads))
    client.write(HEALTH)  # the read under way is still an ordinary one
    while reads:
        await trio.lowlevel.checkpoint()
        turns.append(len(reads))
    # Within two turns of ours, which Trio orders at will, there are at most two of the reader's.
    assert all(before - after <= 2 * TURN_QUANTUM // READ_COST for before, after in itertools.pairwise(turns))
