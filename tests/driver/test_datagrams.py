from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from pilot_trio.driver import Driver, open_driver
from pilot_trio.driver.datagrams import DATAGRAM_QUEUE
from pilot_trio.errors import DaemonError, LocalProtocolError
from pilot_trio.proto.reply_matcher import ORDERED_IN_FLIGHT_MAX
from pilot_trio.testing import MemoryTransport, MemoryTransportListener
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import SEND_DATA_MAX, Code, encode_error, encode_frame
from tests.driver.daemon import OWN_ADDRESS, StandIn


async def test_datagrams_arrive_with_their_source_and_port(node: Driver) -> None:
    async with node.datagrams(5000) as datagrams:
        assert await node.send_datagram(OWN_ADDRESS, b"hello", 5000) is True
        assert await node.send_datagram("me:5000", b"again") is True
        with assert_checkpoints():
            first = await datagrams.receive()
        assert (first.source, first.destination_port, first.data) == (OWN_ADDRESS, 5000, b"hello")
        assert first.source_port >= 49_152
        assert (await datagrams.receive()).data == b"again"


async def test_a_channel_picks_out_its_port_and_none_means_all(node: Driver) -> None:
    async with node.datagrams(5000) as some, node.datagrams() as everything:
        for port in (4000, 5000, 6000):
            await node.send_datagram(1, str(port).encode(), port)
        await wait_all_tasks_blocked()
        assert [some.receive_nowait().data] == [b"5000"]
        assert [everything.receive_nowait().data for _ in range(3)] == [b"4000", b"5000", b"6000"]
        with pytest.raises(trio.WouldBlock):
            some.receive_nowait()


async def test_receiving_without_waiting_tells_why_there_is_nothing(daemon: StandIn) -> None:
    async with open_driver(connect_with=daemon.connect) as node:
        closed, lost = node.datagrams(5000), node.datagrams(5000)
        await node.send_datagram(1, b"x", 5000)
        await wait_all_tasks_blocked()
        closed.close()
        with pytest.raises(trio.ClosedResourceError):
            closed.receive_nowait()
    assert lost.receive_nowait().data == b"x"
    with pytest.raises(trio.BrokenResourceError):
        lost.receive_nowait()
    lost.close()


async def test_every_client_gets_every_datagram(node: Driver, daemon: StandIn) -> None:
    async with open_driver(connect_with=daemon.connect) as other:
        mine, theirs = node.datagrams(5000), other.datagrams(5000)
        await node.send_datagram(1, b"x", 5000)
        assert (await mine.receive()).data == (await theirs.receive()).data == b"x"


async def test_a_channel_can_be_iterated_until_it_is_closed(node: Driver) -> None:
    channel = node.datagrams(5000)
    got: list[bytes] = []

    async def iterate() -> None:
        async for datagram in channel:
            got.append(datagram.data)  # noqa: PERF401 - what came before the end counts

    async def collect() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await iterate()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await node.send_datagram(1, b"a", 5000)
        await node.send_datagram(1, b"b", 5000)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            await channel.aclose()
    await channel.aclose()
    assert got == [b"a", b"b"]


@pytest.mark.parametrize("sent", [DATAGRAM_QUEUE - 1, DATAGRAM_QUEUE, DATAGRAM_QUEUE + 1])
async def test_a_full_channel_drops_the_newest_and_counts(node: Driver, sent: int) -> None:
    async with node.datagrams(5000) as slow, node.datagrams(5000) as fast:
        for number in range(sent):
            await node.send_datagram(1, str(number).encode(), 5000)
            assert (await fast.receive()).data == str(number).encode()
        kept, dropped = min(sent, DATAGRAM_QUEUE), max(0, sent - DATAGRAM_QUEUE)
        statistics = slow.statistics()
        assert (statistics.received, statistics.dropped, statistics.queued) == (kept, dropped, kept)
        assert fast.statistics().dropped == 0
        assert node.statistics().datagrams == sent
        assert node.statistics().datagrams_dropped == dropped
        assert [slow.receive_nowait().data for _ in range(kept)] == [str(n).encode() for n in range(kept)]


async def test_a_cancelled_receive_loses_nothing(node: Driver, autojump_clock: MockClock) -> None:
    async with node.datagrams(5000) as datagrams:
        with trio.move_on_after(1):
            await datagrams.receive()
        await node.send_datagram(1, b"x", 5000)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await datagrams.receive()
        assert scope.cancelled_caught
        assert (await datagrams.receive()).data == b"x"


async def test_what_cannot_be_sent_is_said_with_the_daemons_words(node: Driver) -> None:
    with pytest.raises(DaemonError, match=r"^sendto: resolve node 7777: registry: request failed$"):
        await node.send_datagram(7777, b"x", 7)
    with pytest.raises(DaemonError, match=r"^sendto: marshal: payload too large: 65536 bytes \(max 65535\)$"):
        await node.send_datagram(1, bytes(65_536), 7)
    with pytest.raises(LocalProtocolError, match="65,535 bytes"):
        await node.send_datagram(1, bytes(SEND_DATA_MAX + 1), 7)
    assert await node.send_datagram(1, bytes(65_535), 7)


async def test_confirmations_and_refusals_go_to_their_own_senders(node: Driver) -> None:
    results: dict[int, bool | str] = {}

    async def send(number: int) -> None:
        target = 7777 if number % 3 == 0 else 1
        try:
            results[number] = await node.send_datagram(target, b"x", 7)
        except DaemonError as exc:
            results[number] = str(exc)

    async with trio.open_nursery() as nursery:
        for number in range(3 * ORDERED_IN_FLIGHT_MAX):
            nursery.start_soon(send, number)
    refusal = "sendto: resolve node 7777: registry: request failed"
    assert results == {number: refusal if number % 3 == 0 else True for number in range(3 * ORDERED_IN_FLIGHT_MAX)}


async def test_broadcast_shows_the_token(node: Driver, daemon: StandIn) -> None:
    daemon.members[7] = [1]
    await node.broadcast(7, 1000, b"to all", "secret")
    with pytest.raises(DaemonError, match="broadcast denied: invalid admin token"):
        await node.broadcast(7, 1000, b"to all", "wrong")


async def test_with_a_daemon_that_cannot_confirm_datagrams_are_sent_anyway() -> None:
    listener = MemoryTransportListener()
    async with open_driver(connect_with=listener.open_transport) as node, trio.open_nursery() as nursery:
        (server,) = await listener.accept_some()
        nursery.start_soon(_old_daemon, server)
        assert await node.send_datagram(1, b"one", 7) is False
        assert await node.send_datagram(1, b"two", 7) is False
        assert (await node.health()).status == "old"
        nursery.cancel_scope.cancel()


async def _old_daemon(server: object) -> None:
    assert isinstance(server, MemoryTransport)
    decoder = FrameDecoder(IPC_FRAME_MAX)
    sent: list[bytes] = []
    while data := await server.receive_some(1000):
        decoder.feed(data)
        while (body := decoder.next_frame()) is not None:
            match body[0]:
                case Code.SEND_TO_CONFIRM:
                    assert not sent
                    server.send_nowait(encode_error("unknown command: 0x39"))
                case Code.SEND_TO:
                    sent.append(body[9:])
                case Code.HEALTH:
                    assert sent == [b"one", b"two"]
                    server.send_nowait(encode_frame(Code.HEALTH_OK, b'{"status":"old"}'))
