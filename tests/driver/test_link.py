"""One IPC connection, with the test as its daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import ConnId
from pilot_trio.driver.link import PAUSE_ALONE, PAUSE_SHARED, READ_SIZE, SEND_BUFFER, STREAM_BUFFER, Link
from pilot_trio.errors import DaemonError, IPCClosedError
from pilot_trio.testing import MemoryTransport, memory_transport_pair
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder
from pilot_trio.wire.ipc import Code, encode_conn, encode_error, encode_frame

CAPACITY = 1000


class Stream:
    """Keeps what arrives; `unread` is what it holds, as for a real one."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.unread = 0
        self.ended: list[Exception | None] = []
        self.broken = False

    def feed(self, data: bytes) -> None:
        self.data += data
        self.unread += len(data)

    def broke(self) -> None:
        self.broken = True

    def end(self, cause: Exception | None = None) -> None:
        self.ended.append(cause)


class Pair:
    """A running link and the daemon's end of it."""

    def __init__(self, nursery: trio.Nursery, capacity: int = CAPACITY) -> None:
        client, self.server = memory_transport_pair(capacity)
        self.link = Link(client)
        nursery.start_soon(self.link.run)


@pytest.fixture
async def pair(nursery: trio.Nursery) -> AsyncGenerator[Pair]:
    pair = Pair(nursery)
    await wait_all_tasks_blocked()
    yield pair
    pair.link.close()


async def read_frames(server: MemoryTransport, count: int, step: int = 7) -> list[bytes]:
    decoder = FrameDecoder(IPC_FRAME_MAX)
    frames: list[bytes] = []
    while len(frames) < count:
        decoder.feed(await server.receive_some(step))
        while (body := decoder.next_frame()) is not None:
            frames.append(body)
    assert len(decoder) == 0
    return frames


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=20), capacity=st.integers(1, 2000))
async def test_frames_leave_whole_and_in_order_however_little_the_socket_takes(sizes: list[int], capacity: int) -> None:
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery, capacity)
        bodies = [bytes([Code.SEND]) + bytes([index]) * size for index, size in enumerate(sizes)]
        for body in bodies:
            pair.link.post(encode_frame(body[0], body[1:]))
        assert await read_frames(pair.server, len(bodies)) == bodies
        pair.link.close()


@pytest.mark.parametrize("posted, room", [(SEND_BUFFER - 1, True), (SEND_BUFFER, False), (SEND_BUFFER + 1, False)])
async def test_senders_wait_past_the_bound_and_go_on_when_it_drains(pair: Pair, posted: int, room: bool) -> None:
    pair.link.post(bytes(CAPACITY + posted))
    assert pair.link.has_room == room
    if not room:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_for_room, pair.link)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            while not pair.link.has_room:
                await pair.server.receive_some(CAPACITY)
                await wait_all_tasks_blocked()


async def _wait_for_room(link: Link) -> None:
    while not link.has_room:
        await link.wait_changed()


async def test_a_request_waits_for_room_and_cancelled_there_was_never_made(
    pair: Pair, autojump_clock: MockClock
) -> None:
    pair.link.post(bytes(CAPACITY + SEND_BUFFER))
    with trio.move_on_after(1) as scope:
        await pair.link.request(Code.INFO)
    assert scope.cancelled_caught
    assert pair.link.owed == 0


async def test_a_second_ordinary_request_waits_for_the_first(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.link.request, Code.INFO)
        await wait_all_tasks_blocked()
        nursery.start_soon(pair.link.request, Code.DEREGISTER)
        nursery.start_soon(pair.link.request, Code.HEALTH)
        await wait_all_tasks_blocked()
        assert {body[0] for body in await read_frames(pair.server, 2)} == {Code.INFO, Code.HEALTH}
        pair.server.send_nowait(encode_frame(Code.INFO_OK))
        assert [body[0] for body in await read_frames(pair.server, 1)] == [Code.DEREGISTER]
        pair.server.send_nowait(encode_frame(Code.DEREGISTER_OK) + encode_frame(Code.HEALTH_OK))


async def test_the_success_callback_runs_before_the_next_frame_is_routed(pair: Pair) -> None:
    stream = Stream()

    def opened(payload: bytes) -> None:
        pair.link.add_stream(ConnId(int.from_bytes(payload, "big")), stream)

    async with trio.open_nursery() as nursery:

        async def dial() -> None:
            await pair.link.request(Code.DIAL, bytes(8), on_success=opened)
            assert stream.data == b"already here"
            assert stream.ended == [None]

        nursery.start_soon(dial)
        await wait_all_tasks_blocked()
        all_at_once = encode_conn(Code.DIAL_OK, 5) + encode_conn(Code.RECV, 5, b"already here")
        pair.server.send_nowait(all_at_once + encode_conn(Code.CLOSE_OK, 5))


async def test_the_last_words_of_a_daemon_are_heard(pair: Pair) -> None:
    """It answers and closes; our own sending fails before the answer is read."""

    async def expect_refusal() -> None:
        with pytest.raises(DaemonError, match="last words"):
            await pair.link.request(Code.INFO)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_refusal)
        await wait_all_tasks_blocked()
        await read_frames(pair.server, 1)
        pair.server.send_nowait(encode_error("last words"))
        pair.server.close()
        for _ in range(2):
            with pytest.raises(IPCClosedError, match="daemon disconnected"):
                pair.link.post(encode_frame(Code.SEND_TO, bytes(8)))


async def test_when_the_writer_fails_nobody_waits_for_room_any_more(pair: Pair) -> None:
    stream = Stream()
    pair.link.add_stream(ConnId(1), stream)
    pair.link.post(bytes(CAPACITY + SEND_BUFFER))

    async def send() -> None:
        while not pair.link.has_room:
            await pair.link.wait_changed()
        with pytest.raises(IPCClosedError):
            pair.link.post(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        pair.server.close()
    (cause,) = stream.ended
    assert isinstance(cause, IPCClosedError)


async def test_closing_before_it_runs_is_closing(nursery: trio.Nursery) -> None:
    client, server = memory_transport_pair()
    link = Link(client)
    link.close()
    await link.run()
    assert server.hung_up()
    with pytest.raises(IPCClosedError, match="was closed"):
        await link.request(Code.INFO)


@pytest.mark.parametrize("streams, pause", [(1, PAUSE_ALONE), (2, PAUSE_SHARED)])
async def test_past_the_bound_of_a_stream_it_reads_a_piece_per_pause(
    nursery: trio.Nursery, autojump_clock: MockClock, streams: int, pause: float
) -> None:
    pair = Pair(nursery, capacity=4 << 20)
    inboxes = [Stream() for _ in range(streams)]
    for number, inbox in enumerate(inboxes):
        pair.link.add_stream(ConnId(number), inbox)
    frame = encode_conn(Code.RECV, 0, bytes(READ_SIZE - 9))  # one frame per read
    for _ in range(40):
        pair.server.send_nowait(frame)
    await wait_all_tasks_blocked()
    full = inboxes[0].unread
    assert STREAM_BUFFER <= full < STREAM_BUFFER + READ_SIZE
    for _ in range(3):
        await trio.sleep(pause * 0.99)
        assert inboxes[0].unread == full
        await trio.sleep(pause * 0.01)
        await wait_all_tasks_blocked()
        full += READ_SIZE - 9
        assert inboxes[0].unread == full
    inboxes[0].unread = 0
    pair.link.note_read(ConnId(0), 0)
    await wait_all_tasks_blocked()
    assert inboxes[0].unread >= STREAM_BUFFER  # at full speed again, at once
    pair.link.close()
