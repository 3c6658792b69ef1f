"""The data commands behind the real IPC server, in virtual time: pauses, stalls, departures."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from pilot_trio.address import Address, NetworkId
from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.daemon.local_stream import LOCAL_BUFFER_MAX
from pilot_trio.daemon.overlay import open_stream
from pilot_trio.services.echo import serve_echo
from pilot_trio.testing.memory_transport import MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_conn, encode_frame, encode_port, encode_target
from tests.daemon.ipc.raw_client import RawClient
from tests.daemon.stream_fakes import OTHER, SELF, FakeNode, conn

Frame = tuple[int, bytes]


class Daemon:
    """A node's data plane with a real IPC server."""

    def __init__(self) -> None:
        self.node = FakeNode(random_start=0)
        self.server = IPCServer(self.node.commands)
        self.listener = MemoryTransportListener()

    async def connect(self) -> RawClient:
        return await RawClient.connect(self.listener)

    async def connected_pair(self, port: int = 5000) -> tuple[RawClient, int, RawClient, int]:
        """Return two clients with a stream between them, and the id that each knows it by."""
        server, client = await self.connect(), await self.connect()
        assert await server.ask(encode_port(Code.BIND, port)) == bytes([Code.BIND_OK]) + struct.pack("!H", port)
        answer = await client.ask(encode_target(Code.DIAL, SELF, port))
        assert answer[0] == Code.DIAL_OK
        push = await server.read_frame()
        assert push[0] == Code.ACCEPT
        return client, int.from_bytes(answer[1:], "big"), server, int.from_bytes(push[3:7], "big")


@asynccontextmanager
async def running() -> AsyncIterator[Daemon]:
    daemon = Daemon()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.server.serve, daemon.listener)
        yield daemon
        nursery.cancel_scope.cancel()
    statistics = daemon.node.streams.statistics()
    assert (statistics.connections, statistics.ports) == (0, 0)
    assert daemon.server.statistics().crashes == 0


async def read(client: RawClient) -> Frame:
    frame = await client.read_frame()
    return frame[0], frame[1:]


@pytest.mark.parametrize("pause", [0.05, 2, 9])
@pytest.mark.parametrize("size", [1_000_000, 12_000_000])
async def test_a_transfer_survives_pauses_of_its_reader(size: int, pause: float, autojump_clock: MockClock) -> None:
    data = b"".join(struct.pack("!Q", number) for number in range(size // 8))
    async with running() as daemon:
        client, near, server, far = await daemon.connected_pair()

        async def send() -> None:
            for start in range(0, len(data), 100_000):
                await client.write_all(encode_conn(Code.SEND, near, data[start : start + 100_000]))
            await client.write_all(encode_conn(Code.CLOSE, near))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = b""
            pauses = 0
            while True:
                if len(got) >= pauses * size // 4:
                    await trio.sleep(pause)
                    pauses += 1
                code, body = await read(server)
                assert body[:4] == conn(far)
                if code == Code.CLOSE_OK:
                    break
                got += body[4:]
        assert got == data
        assert daemon.server.statistics().cut_clients == 0


async def test_a_reader_that_never_reads_is_cut_and_its_peer_told(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        client, near, _, _ = await daemon.connected_pair()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.write_all, encode_conn(Code.SEND, near, bytes(1_000_000)) * 4)
            assert await read(client) == (Code.CLOSE_OK, conn(near))
        assert 10 <= trio.current_time() - started < 10.5
        assert daemon.server.statistics().cut_clients == daemon.server.client_count == 1


async def test_the_sender_is_answered_again_once_its_peer_closes(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        client, near, server, far = await daemon.connected_pair()
        await client.write_all(encode_conn(Code.SEND, near, bytes(1_000_000)))
        await trio.sleep(1)  # blocked: nobody reads
        await server.write_all(encode_conn(Code.CLOSE, far))
        with trio.fail_after(1):
            assert await read(client) == (Code.CLOSE_OK, conn(near))
            assert await client.ask(encode_conn(Code.CLOSE, 99)) == bytes([Code.CLOSE_OK]) + conn(99)


async def test_a_sender_that_vanishes_while_blocked_is_released_within_a_second(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        client, near, server, far = await daemon.connected_pair()
        await client.write_all(encode_port(Code.BIND, 7000) + encode_conn(Code.SEND, near, bytes(1_000_000)))
        await trio.sleep(5)
        assert daemon.node.streams.statistics().ports == 2
        client.close()
        await trio.sleep(1)
        statistics = daemon.node.streams.statistics()
        assert (statistics.ports, statistics.connections) == (1, 0)
        total = 0
        while (frame := await read(server))[0] == Code.RECV:
            total += len(frame[1]) - 4
        assert frame == (Code.CLOSE_OK, conn(far))
        assert total >= LOCAL_BUFFER_MAX


async def test_a_client_that_vanishes_during_a_dial_is_released_within_a_second(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        daemon.node.resolver.hold = True
        client = await daemon.connect()
        client.write(encode_port(Code.BIND, 7000) + encode_target(Code.DIAL, Address(NetworkId(0), OTHER), 7))
        await trio.sleep(3)
        client.close()
        await trio.sleep(1)
        assert daemon.server.client_count == 0
        assert daemon.node.streams.statistics().ports == 0


async def test_a_cancel_in_the_same_read_as_its_dial_finds_it(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        daemon.node.resolver.hold = True
        client = await daemon.connect()
        started = trio.current_time()
        client.write(encode_target(Code.DIAL, Address(NetworkId(0), OTHER), 7) + encode_frame(Code.CANCEL))
        assert await client.read_frame() == bytes([Code.ERROR]) + b"\x00\x01context canceled"
        assert trio.current_time() == started


async def test_a_half_closed_client_gets_its_answers_and_its_streams_are_closed(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        client, near, server, far = await daemon.connected_pair()
        client.write(encode_conn(Code.SEND, near, b"last words") + encode_conn(Code.CLOSE, 1234))
        client.shut_down_write()
        frames = await client.read_to_end()
        assert bytes([Code.CLOSE_OK]) + conn(1234) in frames
        assert await server.read_frames(2) == [
            bytes([Code.RECV]) + conn(far) + b"last words",
            bytes([Code.CLOSE_OK]) + conn(far),
        ]


async def test_a_burst_of_everything_keeps_the_order_of_each_stream(autojump_clock: MockClock) -> None:
    async with running() as daemon:
        client = await daemon.connect()
        requests = encode_port(Code.BIND, 5000)
        for number in range(20):
            near = 2 * number + 1
            requests += encode_target(Code.DIAL, SELF, 5000) + encode_conn(Code.SEND, near, bytes([number]))
            requests += encode_conn(Code.CLOSE, near)
        await client.write_all(requests)
        frames = [await read(client) for _ in range(1 + 20 * 6)]
        assert frames[0][0] == Code.BIND_OK
        for number in range(20):
            dialled, accepted = conn(2 * number + 1), conn(2 * number + 2)
            of_near = [code for code, body in frames if body[:4] == dialled]
            of_far = [code for code, body in frames if accepted in (body[:4], body[2:6])]
            assert of_near == [Code.DIAL_OK, Code.CLOSE_OK, Code.CLOSE_OK]
            assert of_far == [Code.ACCEPT, Code.RECV, Code.CLOSE_OK]


async def test_echo_and_a_client_exchange_more_than_their_buffers_hold(autojump_clock: MockClock) -> None:
    async with running() as daemon, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, daemon.node.streams.bind(7, "echo"))
        await trio.testing.wait_all_tasks_blocked()
        stream = await open_stream(daemon.node.streams, SELF, 7, "test")
        nursery.start_soon(stream.send_all, bytes(3_000_000))
        got = 0
        while got < 3_000_000:
            got += len(await stream.receive_some())
        await stream.aclose()
        nursery.cancel_scope.cancel()
