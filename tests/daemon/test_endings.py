"""How streams between nodes end when all is not well: never as if that had been all, and leaving nothing behind."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pilot_trio.config import StreamLimits
from pilot_trio.daemon.overlay import OverlayStream
from pilot_trio.daemon.streams import ConnState
from pilot_trio.wire.packet import ACK, FIN, RST

from .carrier_fakes import joined
from .test_carrier import clean, pair, read_all

Clock = trio.testing.MockClock


async def test_a_stream_whose_peer_closed_and_vanished_with_data_on_its_way_is_broken(autojump_clock: Clock) -> None:
    async with joined(delay=0.01) as (one, two, wire):
        stream, accepted = await pair(one, two)
        wire.filter = lambda node, packet: node == 2 or not packet.payload or packet.seq == 1
        await stream.send_all(b"first" * 1000)
        await stream.aclose()
        await trio.sleep(6)  # the FIN has waited for five seconds, and left
        wire.filter = lambda node, packet: node == 2
        assert await accepted.receive_some() == (b"first" * 1000)[:1152]
        with pytest.raises(trio.BrokenResourceError):
            await accepted.receive_some()
        await trio.sleep(0.1)
        # The other node hears what it would from any implementation: that its FIN was accepted.
        assert [(source, packet.flags) for source, packet in wire.sent if packet.flags & ~ACK][-1] == (2, FIN | ACK)
        await accepted.aclose()
        await trio.sleep(60)
        assert one.streams.rows() == two.streams.rows() == []
        assert clean(one, two)


async def test_a_stream_whose_peer_is_not_heard_any_more_is_broken(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"so far")
        await trio.sleep(1)
        wire.filter = lambda node, packet: node == 2
        assert await accepted.receive_some() == b"so far"
        with trio.fail_after(110), pytest.raises(trio.BrokenResourceError):
            await accepted.receive_some()


async def test_a_stream_closed_for_lack_of_activity_is_broken_for_who_still_reads(autojump_clock: Clock) -> None:
    async with joined(limits=StreamLimits(idle_timeout=30.0)) as (one, two, _):
        stream, accepted = await pair(one, two)
        ends: list[bytes | str] = []

        async def read(end: OverlayStream) -> None:
            try:
                ends.append(await end.receive_some())
            except trio.BrokenResourceError:
                ends.append("broken")

        with trio.fail_after(35):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, stream)
                nursery.start_soon(read, accepted)
        assert "broken" in ends  # for who noticed first; the other one got its FIN


async def test_what_nobody_read_does_not_keep_a_closed_streams_row(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"never read")
        await stream.aclose()
        await trio.sleep(1)
        await accepted.aclose()
        await trio.sleep(60)
        assert one.streams.rows() == two.streams.rows() == []
        assert clean(one, two)


async def test_what_arrived_before_a_peer_died_goes_when_its_reader_closes(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.send_all(b"never read")
        await trio.sleep(1)
        wire.filter = lambda node, packet: False
        await trio.sleep(106)
        await accepted.aclose()
        await stream.aclose()
        await trio.sleep(60)
        assert one.streams.rows() == two.streams.rows() == []
        assert clean(one, two)


@pytest.mark.parametrize("loss", [0.0, 0.1])
async def test_a_node_that_stops_lets_what_was_written_leave(loss: float, autojump_clock: Clock) -> None:
    async with joined(delay=0.02, loss=loss, seed=3) as (one, two, _):
        pairs = [await pair(one, two, 5000 + number) for number in range(5)]
        for stream, _accepted in pairs:
            await stream.send_all(bytes(20_000))
        began = trio.current_time()
        await one.streams.drain(60.0)
        assert trio.current_time() - began < 30.0
        one.carrier.receive = lambda batch: None  # type: ignore[method-assign] # it is gone
        for _stream, accepted in pairs:
            assert len(await read_all(accepted)) == 20_000


async def test_a_node_that_stops_waits_no_longer_than_it_may_and_then_says_where_the_end_is(
    autojump_clock: Clock,
) -> None:
    async with joined(delay=0.02) as (one, two, wire):
        stream, accepted = await pair(one, two)
        await stream.send_all(bytes(5000))
        await trio.sleep(1)
        wire.filter = lambda node, packet: node == 1 and not packet.payload
        await stream.send_all(bytes(5000))
        began = trio.current_time()
        await one.streams.drain(0.6)
        assert trio.current_time() - began == pytest.approx(0.6)
        await trio.sleep(0.1)
        fins = [packet for source, packet in wire.sent if source == 1 and packet.flags & FIN]
        assert [packet.seq for packet in fins] == [10_001]
        assert not any(packet.flags & RST for _, packet in wire.sent)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(accepted)


async def test_a_node_without_streams_stops_at_once(autojump_clock: Clock) -> None:
    async with joined() as (one, _two, _wire):
        began = trio.current_time()
        await one.streams.drain(0.6)
        assert trio.current_time() == began


async def test_a_node_whose_peers_have_closed_stops_at_once(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _wire):
        _stream, accepted = await pair(one, two)
        await accepted.aclose()
        await trio.sleep(1)
        assert [row["state"] for row in one.streams.rows()] == [ConnState.TIME_WAIT.value]
        began = trio.current_time()
        await one.streams.drain(0.6)
        assert trio.current_time() == began


async def test_a_stream_that_ended_is_a_row_for_ten_seconds_and_its_end_is_not_put_off(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _wire):
        _stream, accepted = await pair(one, two)
        await accepted.aclose()
        await trio.sleep(9.9)
        assert [row["state"] for row in one.streams.rows()] == [ConnState.TIME_WAIT.value]
        await trio.sleep(0.2)  # machines go in steps, many at once, and soon
        assert one.streams.rows() == []
        assert not one.carrier._connections
        assert not two.carrier._connections
