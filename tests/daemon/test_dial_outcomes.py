"""A peer may have said all that it has to say, and hung up, by the time that its answer to a dial is looked at."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pilot_trio.daemon.overlay import OverlayStream, listen, open_stream
from pilot_trio.errors import DialRefused
from pilot_trio.wire.packet import Packet

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


async def test_a_port_that_nobody_serves_is_still_refused(autojump_clock: Clock) -> None:
    async with joined() as (one, two, _):
        with pytest.raises(DialRefused):
            await open_stream(one.streams, two.address, 9, "client")
        assert one.streams.statistics().ephemeral_ports == 0
