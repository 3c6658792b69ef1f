"""A peer may have said all that it has to say, and hung up, by the time that its answer to a dial is looked at."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pilot_trio.daemon.given_up import GIVEN_UP_MAX, LATE_MAX, GivenUp
from pilot_trio.daemon.overlay import OverlayStream, listen, open_stream
from pilot_trio.errors import DialRefused, DialTimeout
from pilot_trio.wire.packet import RST, Packet

from .carrier_fakes import FakeNode, Wire, joined

Clock = trio.testing.MockClock


async def dial(one: FakeNode, two: FakeNode, wire: Wire, say: bytes) -> OverlayStream:
    """Dial a service that answers at once; everything that it sent arrives in one batch."""
    held: list[Packet] = []

    def hold(node: int, packet: Packet) -> bool:
        if node == 2:
            held.append(packet)
        return node != 2

    wire.filter = hold
    opened: list[OverlayStream] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            opened.append(await open_stream(one.streams, two.address, 5000, "client"))

        listener = listen(two.streams, 5000, "server")
        nursery.start_soon(ask)
        accepted = await listener.accept()
        if say:
            await accepted.send_all(say)
        await accepted.aclose()
        await trio.sleep(0.01)
        wire.filter = lambda node, packet: True
        one.carrier.receive([(2, packet) for packet in held])
    return opened[0]


@pytest.mark.parametrize("say", [b"", b"goodbye"])
async def test_a_service_that_answers_and_hangs_up_in_one_batch_was_reached(autojump_clock: Clock, say: bytes) -> None:
    async with joined() as (one, two, wire):
        stream = await dial(one, two, wire, say)
        with trio.fail_after(5):
            received = b"".join([chunk async for chunk in stream])
        assert received == say
        await stream.aclose()
        await trio.sleep(60)
        assert not one.streams.rows()
        assert one.streams.statistics().ephemeral_ports == 0


@pytest.mark.parametrize("patience", [0.5, 30.0])
async def test_a_peer_that_answers_too_late_does_not_keep_the_stream(autojump_clock: Clock, patience: float) -> None:
    """It was stopped, say: it finds the SYNs when it goes on, and answers them to a client that has left or given up."""
    async with joined() as (one, two, wire):
        held: list[Packet] = []

        def hold(node: int, packet: Packet) -> bool:
            if node == 1:
                held.append(packet)
            return node != 1

        wire.filter = hold
        listener = listen(two.streams, 5000, "server")
        if patience < 17:
            with trio.move_on_after(patience):
                await open_stream(one.streams, two.address, 5000, "client")
        else:
            with pytest.raises(DialTimeout):
                await open_stream(one.streams, two.address, 5000, "client")
        wire.filter = lambda node, packet: True
        two.carrier.receive([(1, packet) for packet in held])
        accepted = await listener.accept()
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await accepted.receive_some()
        await accepted.aclose()
        assert not one.streams.rows()
        assert not two.streams.rows()


async def test_nobody_is_reset_who_answers_in_time(autojump_clock: Clock) -> None:
    async with joined() as (one, two, wire):
        listener = listen(two.streams, 5000, "server")
        with trio.move_on_after(0):
            await open_stream(one.streams, two.address, 5000, "client")
        stream = await open_stream(one.streams, two.address, 5000, "client")
        accepted = await listener.accept()
        await accepted.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert not [packet for _, packet in wire.sent if packet.flags & RST]


def test_dials_given_up_are_forgotten_in_time_and_not_too_many_kept() -> None:
    given_up: GivenUp[int] = GivenUp()
    given_up.add(1, 0.0)
    given_up.add(2, 1.0)
    assert given_up.has(1, LATE_MAX - 0.1)
    assert not given_up.has(1, LATE_MAX)
    given_up.add(1, 2.0)  # the same port again
    given_up.add(3, LATE_MAX + 1.0)
    assert [given_up.has(key, LATE_MAX + 1.0) for key in (1, 2, 3)] == [True, False, True]
    for key in range(GIVEN_UP_MAX):
        given_up.add(-key, LATE_MAX + 1.5)
    assert len(given_up) == GIVEN_UP_MAX
    assert not given_up.has(3, LATE_MAX + 1.5)


async def test_a_port_that_nobody_serves_is_still_refused(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        with pytest.raises(DialRefused):
            await open_stream(one.streams, two.address, 9, "client")
        assert one.streams.statistics().ephemeral_ports == 0
