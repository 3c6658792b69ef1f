from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import StreamLimits
from pilot_trio.daemon.carrier import FEW, TIME_WAIT_BATCH, TIME_WAIT_STEP
from pilot_trio.daemon.connection import Connection
from pilot_trio.daemon.datagram_sender import CONTACTS_MAX
from pilot_trio.daemon.dialling import KEY_WAIT
from pilot_trio.daemon.farewells import FAREWELL_DELAY
from pilot_trio.daemon.overlay import OverlayStream, listen, open_stream
from pilot_trio.daemon.pacing import BURST, BURSTS_MAX, DATAGRAM_COST
from pilot_trio.daemon.streams import ConnState
from pilot_trio.errors import DialCancelled, DialRefused, DialTimeout, NoRoute
from pilot_trio.services.echo import serve_echo
from pilot_trio.wire.packet import ACK, DATAGRAM, FIN, RST, STREAM, SYN, Packet

from .carrier_fakes import FakeNode, Wire, joined

Clock = trio.testing.MockClock
TARGET = NodeId(2)


async def pair(one: FakeNode, two: FakeNode, port: int = 5000) -> tuple[OverlayStream, OverlayStream]:
    listener = listen(two.streams, port, "server")
    stream = await open_stream(one.streams, two.address, port, "client")
    with trio.fail_after(30):
        return stream, await listener.accept()


async def read_all(stream: OverlayStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


def clean(*nodes: FakeNode) -> bool:
    """Say whether nothing is left of any stream."""
    return all(
        not node.carrier._connections and not node.carrier._open_to and not node.ports.allocated for node in nodes
    )


async def test_a_dial_reaches_the_listener_and_both_ends_know_each_other(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        assert accepted.remote == stream.local
        assert accepted.local == stream.remote
        assert one.tunnel.in_use == {2: True}
        assert "conn.established" in two.topics()


async def test_what_is_answered_at_once_carries_the_acknowledgment(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire), trio.open_nursery() as nursery:
        await nursery.start(serve_echo, two.streams.bind(7, "echo"))
        connection = await one.streams.dial(two.address, 7, owner="client")
        await trio.sleep(1)
        wire.sent.clear()
        got: list[bytes] = []

        def consume() -> None:
            with suppress(trio.WouldBlock):
                got.append(connection.receive_nowait(100))

        connection.attach(consume)
        connection.write_nowait(b"question")
        await trio.sleep(wire.delay * 2.5)
        assert got == [b"question"]
        question, echo = wire.sent[:2]
        assert [source for source, _ in wire.sent if source == 2] == [2]
        assert echo[1].ack == question[1].seq + len(b"question")
        nursery.cancel_scope.cancel()


@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.05, 0.2]), size=st.integers(0, 300_000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_is_written_is_read_whatever_is_lost(
    seed: int, loss: float, size: int, autojump_clock: Clock
) -> None:
    data = random.Random(seed).randbytes(size)
    async with joined(loss=loss, seed=seed) as (one, two, _):
        listener = listen(two.streams, 5000, "server")
        try:
            stream = await open_stream(one.streams, two.address, 5000, "client")
        except DialTimeout:
            return
        accepted = await listener.accept()

        async def send() -> None:
            await stream.send_all(data)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(600):
                assert await read_all(accepted) == data


async def test_a_reader_that_pauses_stops_the_writer_and_resumes_it(autojump_clock: Clock) -> None:
    data = random.Random(1).randbytes(20 << 20)
    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            received = bytearray()
            for pause in (0.05, 2.0, 9.0):
                await trio.sleep(pause)
                while len(received) < len(data) // 4:
                    received += await accepted.receive_some()
            with trio.fail_after(60):
                while len(received) < len(data):
                    received += await accepted.receive_some()
        assert bytes(received) == data


async def test_a_port_without_listener_is_refused_in_one_round_trip(autojump_clock: Clock) -> None:
    async with joined(delay=0.01) as (one, two, _):
        started = trio.current_time()
        with pytest.raises(DialRefused):
            await open_stream(one.streams, two.address, 9, "client")
        assert trio.current_time() - started < 0.05
        assert clean(one, two)


async def test_an_unknown_node_is_no_route(autojump_clock: Clock) -> None:
    async with joined() as (one, _, _):
        with pytest.raises(NoRoute, match=r"resolve node 77: registry: request failed"):
            await open_stream(one.streams, Address(NetworkId(0), NodeId(77)), 7, "client")
        assert clean(one)


async def test_a_dial_without_answer_repeats_its_syn_on_the_protocols_schedule_and_leaves_nothing(
    autojump_clock: Clock,
) -> None:
    async with joined() as (one, two, wire):
        wire.filter = lambda node, packet: False
        sent_at: list[float] = []
        started = trio.current_time()
        carry = wire.carry
        wire.carry = lambda source, batch: (sent_at.append(trio.current_time() - started), carry(source, batch))[1]  # type: ignore[method-assign,func-returns-value]
        with pytest.raises(DialTimeout, match=r"^dial timeout$"):
            await open_stream(one.streams, two.address, 7, "client")
        assert sent_at == pytest.approx([0, 0.25, 0.75, 1.75, 2.25, 3.25, 5.25, 9.25])
        assert trio.current_time() - started == pytest.approx(17.25)
        assert one.tunnel.undone == [2]
        assert one.forgotten == [2]
        assert clean(one)


async def test_a_dial_waits_for_the_key_before_it_spends_retries(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        listen(two.streams, 5000, "server")
        one.tunnel.has_keys = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_stream, one.streams, two.address, 5000, "client")
            await trio.sleep(KEY_WAIT - 0.1)
            one.tunnel.has_keys.set()


async def test_a_dial_without_key_says_so_below_thirty_seconds(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        one.tunnel.has_keys = trio.Event()
        started = trio.current_time()
        with pytest.raises(DialTimeout, match="key exchange with peer did not complete"):
            await open_stream(one.streams, two.address, 7, "client")
        assert trio.current_time() - started == pytest.approx(27.25)


async def test_a_cancelled_dial_leaves_nothing_and_sends_nothing_more(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        wire.filter = lambda node, packet: False
        with trio.move_on_after(0.5):
            await open_stream(one.streams, two.address, 7, "client")
        assert clean(one)
        before = len(wire.sent)
        await trio.sleep(20)
        assert len(wire.sent) == before


async def test_a_defect_of_whoever_takes_the_data_costs_its_stream_and_no_other(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        other, other_accepted = await pair(one, two, 5001)
        (bad, *_) = two.carrier._connections.values()

        def consume() -> None:
            if bad.settled:
                return
            raise ZeroDivisionError("a bug")

        bad.attach(consume)
        with one.carrier.turn:
            await stream.send_all(b"x")
            await other.send_all(b"y")
        assert await other_accepted.receive_some() == b"y"
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert "stream reset" in caplog.text
        assert accepted is not None


class TestDialsWithoutATask:
    """`begin`, for nodes that are in contact."""

    async def test_the_outcome_is_told_in_the_turn_in_which_the_answer_arrives(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, wire):
            listen(two.streams, 5000, "server")
            outcomes: list[tuple[object, float]] = []
            started = trio.current_time()
            one.streams.begin_dial(
                two.address, 5000, owner="client", done=lambda got: outcomes.append((got, trio.current_time()))
            )
            await trio.sleep(5 * wire.delay)
            ((connection, at),) = outcomes
            assert isinstance(connection, Connection)
            assert connection.state is ConnState.ESTABLISHED
            assert at - started == pytest.approx(2 * wire.delay)

    async def test_a_refusal_is_an_outcome(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, _):
            outcomes: list[object] = []
            one.streams.begin_dial(two.address, 9, owner="client", done=outcomes.append)
            await trio.sleep(0.1)
            assert [type(outcome) for outcome in outcomes] == [DialRefused]
            assert clean(one, two)

    async def test_no_answer_is_an_outcome_after_seventeen_seconds(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, wire):
            wire.filter = lambda node, packet: False
            outcomes: list[object] = []
            one.streams.begin_dial(two.address, 9, owner="client", done=outcomes.append)
            await trio.sleep(17.2)
            assert not outcomes
            await trio.sleep(0.1)
            assert [str(outcome) for outcome in outcomes] == ["dial timeout"]
            assert len(wire.sent) == 8
            assert one.tunnel.undone == one.forgotten == [2]
            assert clean(one)

    @pytest.mark.parametrize("after", [0.0, 0.001, 0.5, 3.0])
    async def test_cancelling_leaves_nothing_and_takes_the_turn_to_the_relay_back(
        self, after: float, autojump_clock: Clock
    ) -> None:
        async with joined() as (one, two, wire):
            wire.filter = lambda node, packet: False
            outcomes: list[object] = []
            dial = one.streams.begin_dial(two.address, 5000, owner="client", done=outcomes.append)
            await trio.sleep(after)
            dial.cancel()
            dial.cancel()
            assert [type(outcome) for outcome in outcomes] == [DialCancelled]
            assert clean(one)
            assert not one.tunnel.relayed
            before = len(wire.sent)
            await trio.sleep(60)
            assert len(wire.sent) == before
            assert one.streams.rows() == []

    async def test_cancelling_too_late_changes_nothing(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, _):
            listen(two.streams, 5000, "server")
            outcomes: list[object] = []
            dial = one.streams.begin_dial(two.address, 5000, owner="client", done=outcomes.append)
            await trio.sleep(0.1)
            dial.cancel()
            assert len(outcomes) == 1
            assert [row["state"] for row in one.streams.rows()] == ["ESTABLISHED"]

    async def test_whoever_is_gone_has_no_dial(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, wire):
            wire.filter = lambda node, packet: False
            outcomes: list[object] = []
            one.streams.begin_dial(two.address, 5000, owner="client", done=outcomes.append)
            one.streams.close_owned("client")
            assert [type(outcome) for outcome in outcomes] == [DialCancelled]
            assert clean(one)

    async def test_dials_that_begin_in_one_turn_leave_together(self, autojump_clock: Clock) -> None:
        async with joined() as (one, two, wire):
            listen(two.streams, 5000, "server")
            batches: list[int] = []
            carry = wire.carry
            wire.carry = lambda source, batch: (batches.append(len(batch)), carry(source, batch))[1]  # type: ignore[method-assign,func-returns-value]
            outcomes: list[object] = []
            with one.carrier.turn:
                for _ in range(16):
                    one.streams.begin_dial(two.address, 5000, owner="client", done=outcomes.append)
                assert batches == []
            await trio.sleep(0.1)
            assert batches[:2] == [16, 16]  # the questions, the answers; acknowledgments wait for data
            assert len(outcomes) == 16


def batches_of(wire: Wire) -> list[tuple[int, list[int]]]:
    """Return what leaves from now on: the node, and the flags of each packet of a batch."""
    batches: list[tuple[int, list[int]]] = []
    carry = wire.carry

    def note(source: int, batch: list[tuple[int, Packet]]) -> None:
        batches.append((source, [packet.flags for _, packet in batch]))
        carry(source, batch)

    wire.carry = note  # type: ignore[method-assign]
    return batches


async def test_of_few_streams_what_somebody_waits_for_leaves_first(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        batches = batches_of(wire)
        for _ in range(3):
            outcomes: list[object] = []
            with one.carrier.turn:
                stream.close()
                one.streams.begin_dial(two.address, 5000, owner="client", done=outcomes.append)
            await trio.sleep(FAREWELL_DELAY / 2)
            assert isinstance(outcomes[0], Connection)
            stream = outcomes[0]
        # From the second one on, each takes along the farewell of the one before, and so do the answers.
        assert [flags for source, flags in batches if source == 1] == [[SYN], [SYN, FIN], [SYN, FIN]]
        assert [flags for source, flags in batches if source == 2] == [[SYN | ACK], [SYN | ACK], [SYN | ACK, FIN | ACK]]
        await trio.sleep(20)
        assert [row["state"] for row in one.streams.rows()] == ["ESTABLISHED"]
        assert [row["state"] for row in two.streams.rows()] == ["ESTABLISHED"]


async def test_a_farewell_beside_a_dial_waits_for_a_moment_at_most(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        batches = batches_of(wire)
        with one.carrier.turn:
            stream.close()
            one.streams.begin_dial(two.address, 5000, owner="client", done=lambda outcome: None)
        await trio.sleep(FAREWELL_DELAY - 0.0001)
        assert batches == [(1, [SYN]), (2, [SYN | ACK])]
        await trio.sleep(0.0011)
        assert batches[2:] == [(1, [FIN])]


async def test_what_a_closed_stream_still_has_to_say_waits_for_nothing(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        wire.sent.clear()
        with one.carrier.turn:
            stream.write_nowait(b"the end")
            stream.close()
            one.streams.begin_dial(two.address, 5000, owner="client", done=lambda outcome: None)
        assert [(packet.flags, packet.payload) for _, packet in wire.sent] == [(SYN, b""), (ACK, b"the end")]


async def test_of_many_streams_everything_leaves_in_one_batch(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        streams = [await one.streams.dial(two.address, 5000, owner="client") for _ in range(FEW)]
        await trio.sleep(1)
        batches = batches_of(wire)
        with one.carrier.turn:
            for stream in streams:
                stream.close()
            one.streams.begin_dial(two.address, 5000, owner="client", done=lambda outcome: None)
        assert batches == [(1, [FIN] * FEW + [SYN])]


async def test_the_answer_to_a_farewell_travels_with_the_next_packet(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        batches = batches_of(wire)
        stream.close()
        await trio.sleep(FAREWELL_DELAY / 2)
        assert batches == [(1, [FIN])]
        assert stream.row()["state"] == "FIN_WAIT"
        await one.streams.dial(two.address, 5000, owner="client")
        assert batches[1:] == [(1, [SYN]), (2, [SYN | ACK, FIN | ACK])]
        assert stream.row()["state"] == "TIME_WAIT"


async def test_the_answer_to_a_farewell_leaves_alone_after_a_moment(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        streams = [await one.streams.dial(two.address, 5000, owner="client") for _ in range(2)]
        await trio.sleep(1)
        batches = batches_of(wire)
        for stream in streams:
            stream.close()
        await trio.sleep(FAREWELL_DELAY)
        assert batches == [(1, [FIN]), (1, [FIN])]
        await trio.sleep(2 * wire.delay + 0.001)
        assert batches == [(1, [FIN]), (1, [FIN]), (2, [FIN | ACK, FIN | ACK])]
        assert [stream.row()["state"] for stream in streams] == ["TIME_WAIT"] * 2
        await trio.sleep(10)
        assert len(batches) == 3


async def test_a_node_that_stops_sends_the_answers_that_wait(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        stream.close()
        await trio.sleep(FAREWELL_DELAY / 2)
        batches = batches_of(wire)
    assert batches == [(2, [FIN | ACK])]


async def test_a_handshake_is_answered_before_what_came_with_it_is_looked_at(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        stream = await one.streams.dial(two.address, 5000, owner="client")
        await trio.sleep(1)
        carry = wire.carry
        together: list[tuple[int, Packet]] = []
        states: list[str] = []

        def join(source: int, batch: list[tuple[int, Packet]]) -> None:
            if source == 1:
                together.extend(batch)
            else:
                states.append(two.streams.rows()[0]["state"])
                carry(source, batch)

        wire.carry = join  # type: ignore[method-assign]
        stream.close()
        one.streams.begin_dial(two.address, 5000, owner="client", done=lambda outcome: None)
        assert [packet.flags for _, packet in together] == [FIN, SYN]
        carry(1, together[::-1])
        await trio.sleep(FAREWELL_DELAY / 2)
        assert states == ["ESTABLISHED"]
        assert two.streams.rows()[0]["state"] == "TIME_WAIT"


async def test_many_streams_that_end_together_are_forgotten_in_parts(autojump_clock: Clock) -> None:
    limits = StreamLimits(syn_rate_limit=10_000)
    async with joined(limits=limits) as (one, two, wire):
        listener = two.streams.bind(5000, "server")
        accepted: list[Connection] = []
        listener.attach(lambda: accepted.append(listener.accept_nowait()))
        count = TIME_WAIT_BATCH + 10
        streams = [await one.streams.dial(two.address, 5000, owner="client") for _ in range(count)]
        with one.carrier.turn:
            for stream in streams:
                stream.close()
        await trio.sleep(2 * wire.delay + FAREWELL_DELAY + 0.001)
        assert {row["state"] for row in one.streams.rows()} == {"TIME_WAIT"}
        await trio.sleep(limits.time_wait - 0.01)
        assert len(one.carrier._connections) == count
        await trio.sleep(0.01 + TIME_WAIT_STEP / 2)
        assert len(one.carrier._connections) == 10
        await trio.sleep(TIME_WAIT_STEP)
        assert not one.carrier._connections
        assert one.tunnel.in_use == {2: False}


async def test_closing_delivers_what_was_written_and_frees_everything(autojump_clock: Clock) -> None:
    async with joined(loss=0.05, seed=2) as (one, two, _):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"x" * 100_000)
        await stream.aclose()
        assert len(await read_all(accepted)) == 100_000
        await accepted.aclose()
        await trio.sleep(60)
        assert one.streams.rows() == two.streams.rows() == []
        assert clean(one, two)
        assert one.tunnel.in_use == {2: False}


async def test_a_blocked_writer_is_released_when_the_other_side_closes(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.send_all(bytes(50 << 20))

            nursery.start_soon(write)
            await trio.sleep(1)
            await accepted.aclose()
            started = trio.current_time()
        assert trio.current_time() - started < 1


async def test_rows_show_what_the_machine_knows(autojump_clock: Clock) -> None:
    async with joined(delay=0.02) as (one, two, _):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"hello")
        await accepted.receive_some()
        await trio.sleep(1)
        (row,) = one.streams.rows()
        assert row["state"] == "ESTABLISHED"
        assert row["bytes_sent"] == 5
        assert row["srtt_ms"] == pytest.approx(40, abs=2)


async def test_a_restarted_peer_that_dials_from_the_same_port_replaces_the_old_stream(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.aclose()
        await trio.sleep(0.1)
        syn = Packet(SYN, STREAM, one.address, two.address, stream.local.port, 5000, window=512)
        wire.sent.clear()
        two.carrier.receive([(1, syn)])
        await trio.sleep(0.1)
        assert [packet.flags for source, packet in wire.sent if source == 2][:1] == [SYN | ACK]
        assert accepted is not None


async def test_streams_of_a_restarted_peer_end_without_a_packet_and_its_ports_are_free(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"hello")
        assert await accepted.receive_some() == b"hello"
        wire.sent.clear()
        two.carrier.forget_streams(1)
        with pytest.raises(trio.BrokenResourceError):
            await accepted.receive_some()
        assert wire.sent == []
        syn = Packet(SYN, STREAM, one.address, two.address, stream.local.port, 5000, window=512)
        two.carrier.receive([(1, syn)])
        await trio.sleep(0.1)
        answer = next(packet for source, packet in wire.sent if source == 2)
        assert (answer.flags, answer.ack) == (SYN | ACK, 1)


async def test_a_dial_goes_on_when_its_peer_turns_out_to_have_restarted(autojump_clock: Clock) -> None:
    async with joined(delay=0.05) as (one, two, _):
        listen(two.streams, 5000, "server")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_stream, one.streams, two.address, 5000, "client")
            await trio.sleep(0.01)
            one.carrier.forget_streams(2)
        assert [row["state"] for row in one.streams.rows()] == ["ESTABLISHED"]


@pytest.mark.parametrize("flags", [ACK, FIN, RST, FIN | ACK, SYN | ACK, 0])
async def test_packets_of_unknown_streams_get_no_answer(flags: int, autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        two.carrier.receive([(1, Packet(flags, STREAM, one.address, two.address, 1, 2, payload=b"x"))])
        await trio.sleep(1)
        assert wire.sent == []


class TestPrivateNodes:
    async def test_a_stranger_is_dropped_without_a_word_but_learns_of_closed_ports(self, autojump_clock: Clock) -> None:
        async with joined(public=False) as (one, two, wire):
            listen(two.streams, 5000, "server")
            with trio.move_on_after(5) as scope:
                await open_stream(one.streams, two.address, 5000, "client")
            assert scope.cancelled_caught
            assert all(source == 1 for source, _ in wire.sent)
            assert "syn.rejected" in two.topics()
            with pytest.raises(DialRefused):
                await open_stream(one.streams, two.address, 9, "client")

    async def test_trust_and_shared_networks_admit(self, autojump_clock: Clock) -> None:
        async with joined(public=False) as (one, two, _):
            two.trust.registry = {1}
            await pair(one, two)
            assert two.trust.asked == [1]
            two.trust.local = {1}
            await pair(one, two, 5001)
            assert two.trust.asked == [1]

    @pytest.mark.parametrize(("port", "admitted"), [(1001, True), (444, True), (5000, False)])
    async def test_a_contacted_peer_may_answer_on_two_ports_for_five_minutes(
        self, port: int, admitted: bool, autojump_clock: Clock
    ) -> None:
        async with joined(public=False) as (one, two, _):
            listen(one.streams, port, "server")
            for wait, expected in ((0, admitted), (301, False)):
                if not wait:
                    with pytest.raises(DialRefused):
                        await open_stream(one.streams, two.address, 9, "client")
                await trio.sleep(wait)
                with trio.move_on_after(5) as scope:
                    stream = await open_stream(two.streams, one.address, port, "answer")
                    await stream.aclose()
                assert scope.cancelled_caught is not expected

    async def test_datagrams_of_strangers_are_dropped_and_those_of_trusted_nodes_delivered(
        self, autojump_clock: Clock
    ) -> None:
        async with joined(public=False) as (one, two, _):
            packet = Packet(0, DATAGRAM, one.address, two.address, 1, 2, payload=b"x")
            two.carrier.receive([(1, packet)])
            await trio.sleep(1)
            assert two.datagrams == []
            assert "datagram.rejected" in two.topics()
            two.trust.local = {1}
            two.carrier.receive([(1, packet)])
            assert two.datagrams == [packet]

    async def test_of_a_burst_of_a_stranger_whom_the_registry_vouches_for_one_waits_for_the_answer(
        self, autojump_clock: Clock
    ) -> None:
        async with joined(public=False) as (one, two, _):
            burst = [Packet(0, DATAGRAM, one.address, two.address, 1, 2, payload=b"%d" % n) for n in range(5)]
            two.trust.registry = {1}
            two.carrier.receive([(1, packet) for packet in burst])
            two.carrier.receive([(1, packet) for packet in burst])
            assert two.datagrams == []
            await trio.sleep(1)
            assert two.datagrams == burst[:1]
            assert two.trust.asked == [1]

    async def test_trust_is_looked_at_for_every_sender_of_a_batch(self, autojump_clock: Clock) -> None:
        async with joined(public=False) as (one, two, _):
            two.trust.local = {1, 3}
            packets = []
            for number in range(12):
                node = (1, 1, 4, 3)[number % 4]
                source = one.address._replace(node=NodeId(node))
                packets.append((node, Packet(0, DATAGRAM, source, two.address, 1, 2, payload=b"%d" % number)))
            two.carrier.receive(packets)
            assert two.datagrams == [packet for node, packet in packets if node != 4]
            await trio.sleep(1)
            assert two.trust.asked == [4]
            assert len(two.datagrams) == 9


async def test_datagrams_between_the_packets_of_a_stream_disturb_neither(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        wire.sent.clear()
        await stream.send_all(bytes(5000))
        await trio.sleep(0.0005)
        segments = [packet for source, packet in wire.sent if source == 1]
        datagrams = [Packet(0, DATAGRAM, one.address, two.address, 1, n, payload=b"x") for n in range(len(segments))]
        assert len(segments) > 2
        mixed = [(1, packet) for both in zip(segments, datagrams, strict=True) for packet in both]
        two.carrier.receive(mixed)
        assert two.datagrams == datagrams
        assert accepted is not None
        assert len(await accepted.receive_some(10_000)) == 5000


async def test_a_burst_of_syns_is_answered_to_its_limit_and_the_rest_on_retry(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listen(two.streams, 5000, "server")
        burst = [(1, Packet(SYN, STREAM, one.address, two.address, 50_000 + n, 5000, window=512)) for n in range(200)]
        two.carrier.receive(burst)
        await trio.sleep(0.01)
        answered = [packet for source, packet in wire.sent if packet.flags == SYN | ACK]
        assert len(answered) == 64
        assert "security.syn_rate_limited" in two.topics()


async def test_a_full_backlog_and_a_full_port_answer_with_a_reset(autojump_clock: Clock) -> None:
    async with joined(limits=StreamLimits(max_conns_per_port=3)) as (one, two, wire):
        listen(two.streams, 5000, "server")
        for n in range(4):
            two.carrier.receive([(1, Packet(SYN, STREAM, one.address, two.address, 50_000 + n, 5000, window=512))])
        await trio.sleep(0.01)
        assert [packet.flags for source, packet in wire.sent if source == 2][3:] == [RST]


async def test_one_batch_costs_one_acknowledgment_per_connection(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.send_all(bytes(40_000))
        await trio.sleep(0.0015)
        wire.sent.clear()
        await trio.sleep(0.001)
        acks = [packet for source, packet in wire.sent if source == 2]
        assert len(acks) <= 2
        assert accepted is not None


async def test_a_thousand_streams_come_and_go_without_growth(autojump_clock: Clock) -> None:
    async with joined(limits=StreamLimits(syn_rate_limit=100_000)) as (one, two, _):
        two.carrier.admission._syns._whitelist = None
        listener = listen(two.streams, 5000, "server")

        async def serve() -> None:
            while True:
                stream = await listener.accept()
                await stream.send_all(await stream.receive_some())
                await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for n in range(1000):
                stream = await open_stream(one.streams, two.address, 5000, "client")
                await stream.send_all(b"%d" % n)
                assert await read_all(stream) == b"%d" % n
                await stream.aclose()
            nursery.cancel_scope.cancel()
        await trio.sleep(60)
        assert one.streams.rows() == two.streams.rows() == []
        assert clean(one, two)
        await trio.sleep(200)
        assert len(one.timers) + len(two.timers) == 0
        assert one.streams.statistics().connections == 0


async def test_states_follow_the_machine(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        await pair(one, two)
        (near,), (far,) = one.carrier._connections.values(), two.carrier._connections.values()
        assert {near.state, far.state} == {ConnState.ESTABLISHED}
        wire.filter = lambda node, packet: node == 1
        near.close()
        assert near.row()["state"] == "FIN_WAIT"
        await trio.sleep(0.1)
        assert far.row()["state"] == "TIME_WAIT"


async def test_datagrams_of_one_turn_leave_together_and_in_order(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        runs: list[list[bytes]] = []
        send_packets = one.tunnel.send_packets

        def note(node: int, packets: Sequence[bytes], now: float, /, *, salvage: bool = False) -> None:
            assert salvage
            runs.append(list(packets))
            send_packets(node, packets, now, salvage=salvage)

        one.tunnel.send_packets = note  # type: ignore[method-assign]
        packets = [
            Packet(0, DATAGRAM, one.address, two.address, 50_000 + number, 6000, payload=b"%d" % number)
            for number in range(5)
        ]
        with one.carrier.turn:
            for packet in packets:
                assert one.carrier.datagrams.send_datagrams(2, [packet.encode()])
            assert wire.sent == []
        assert runs == [[packet.encode() for packet in packets]]
        await trio.sleep(1)
        assert two.datagrams == packets


async def test_datagrams_whose_tunnel_ends_in_their_turn_are_lost_and_nothing_else(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        packet = Packet(0, DATAGRAM, one.address, two.address, 50_000, 6000, payload=b"late")
        with one.carrier.turn:
            assert one.carrier.datagrams.send_datagrams(2, [packet.encode()])
            gone = wire.nodes.pop(2)
        wire.nodes[2] = gone
        assert one.carrier.datagrams.send_datagrams(2, [packet.encode()])
        await trio.sleep(1)
        assert len(two.datagrams) == 1


@pytest.mark.parametrize(
    ("limits", "event"),
    [(StreamLimits(), "conn.dead_peer"), (StreamLimits(idle_timeout=30, keepalive=20), "conn.idle_timeout")],
)
async def test_whoever_vanishes_is_announced(autojump_clock: Clock, limits: StreamLimits, event: str) -> None:
    async with joined(limits=limits) as (one, two, wire):
        stream, _ = await pair(one, two)
        wire.filter = lambda node, packet: node == 1
        with trio.fail_after(200), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        found = [each for each in one.published if each.topic.startswith("conn.")]
        assert [each.topic for each in found] == [event, "conn.fin"]
        assert found[0].data == found[1].data
        assert found[0].data == {
            "conn_id": 1,
            "local_port": stream.local.port,
            "remote_addr": str(two.address),
            "remote_port": 5000,
        }


async def test_whoever_is_called_for_data_hears_of_a_break_before_the_end(autojump_clock: Clock) -> None:
    heard: list[bytes] = []

    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"some of it")
        (connection,) = two.carrier._connections.values()

        def consume() -> None:
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    try:
                        data = connection.receive_nowait(100)
                    except trio.BrokenResourceError:
                        data = b"broken"
                    heard.append(data)
                    if data in {b"", b"broken"}:
                        connection.detach()
                        return

        connection.attach(consume)
        await trio.sleep(0.1)
        two.carrier.receive([(1, Packet(RST, STREAM, one.address, two.address, stream.local.port, 5000))])
        await trio.sleep(0.1)
        assert heard == [b"some of it", b"broken"]
        assert accepted is not None


async def test_datagrams_of_first_contact_wait_in_order_and_no_more_of_them_than_there_is_room_for(
    autojump_clock: Clock,
) -> None:
    async with joined() as (one, two, _):
        packets = [
            Packet(0, DATAGRAM, one.address, two.address, 50_000, 6000, payload=b"%d" % n)
            for n in range(CONTACTS_MAX + 5)
        ]
        encoded = [packet.encode() for packet in packets]
        assert one.carrier.datagrams.send_datagrams_soon(2, encoded[:10]) == 10
        assert one.carrier.datagrams.send_datagrams_soon(2, encoded[10:]) == CONTACTS_MAX - 10
        assert one.carrier.datagrams.send_datagrams_soon(2, encoded[-1:]) == 0
        await trio.sleep(1)
        assert sorted(two.datagrams, key=lambda packet: int(packet.payload)) == packets[:CONTACTS_MAX]
        assert [packet for packet in two.datagrams if int(packet.payload) >= 10] == packets[10:CONTACTS_MAX]
        assert one.carrier.datagrams.send_datagrams_soon(7, encoded[:3]) == 3  # nobody knows that node
        await trio.sleep(1)
        assert one.carrier.datagrams.send_datagrams_soon(2, encoded) == CONTACTS_MAX


async def test_a_flood_of_datagrams_is_held_up_until_their_node_answers(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        run = [Packet(0, DATAGRAM, one.address, two.address, 50_000, 6000, payload=bytes(966)).encode()] * 64
        runs = 0
        while not one.carrier.datagrams.is_crowded(2):
            assert one.carrier.datagrams.send_datagrams(2, run)
            runs += 1
        cost = 64 * (1000 + DATAGRAM_COST)
        assert BURSTS_MAX * BURST <= runs * cost < BURSTS_MAX * (BURST + cost)
        held_up_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.carrier.datagrams.let_catch_up, 2)
            await trio.sleep(0.05)
            one.tunnel.answers.set()
        assert trio.current_time() == held_up_at + 0.05
        assert set(one.tunnel.pinged) == {2}
        assert not one.carrier.datagrams.is_crowded(2)
