"""A client's way out, from the side of those who do not wait in a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.daemon.outbound import (
    QUEUE_BYTES_MAX,
    QUEUE_BYTES_READ_ON,
    QUEUE_SLOTS,
    WRITE_BOUND,
    Outbound,
)
from pilot_trio.net.transport import Transport


class Socket(Transport):
    """Takes as many bytes as it has room for."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.sent = bytearray()
        self.calls = 0
        self.broken = False
        self._changed = trio.lowlevel.ParkingLot()

    def take(self, room: int) -> None:
        self.room += room
        self._changed.unpark_all()

    @property
    def drained(self) -> bool:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int) -> bytes:
        raise NotImplementedError

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self.broken:
            raise trio.BrokenResourceError
        self.calls += 1
        sent = min(len(data), self.room)
        self.sent += data[:sent]
        self.room -= sent
        return sent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self.send_nowait(view) :]
            if view:
                await self._changed.park()

    def hung_up(self) -> bool:
        return False

    def close(self) -> None:
        raise NotImplementedError


@asynccontextmanager
async def outbound() -> AsyncIterator[tuple[Outbound, Socket]]:
    sock = Socket()
    out = Outbound(sock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.write_frames)
        await wait_all_tasks_blocked()
        yield out, sock
        sock.take(1 << 30)
        out.finish()


async def test_what_the_socket_takes_is_sent_in_the_same_turn(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        out.post(b"one")
        await out.send(b"two")
        assert (bytes(sock.sent), out.queued_bytes, sock.calls) == (b"onetwo", 0, 2)


async def test_a_torn_frame_is_finished_before_the_next_begins(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        sock.room = 2
        for frame in (b"abcd", b"ef", b"gh"):
            out.post(frame)
        assert (bytes(sock.sent), out.queued_bytes) == (b"ab", 6)
        await wait_all_tasks_blocked()
        sock.take(1 << 30)
        await wait_all_tasks_blocked()
        assert (bytes(sock.sent), out.queued_bytes) == (b"abcdefgh", 0)


async def test_there_is_room_until_the_queue_is_nearly_full(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        sock.room = 0
        assert out.room == QUEUE_BYTES_MAX
        out.post(bytes(QUEUE_BYTES_READ_ON))
        assert out.room == QUEUE_BYTES_MAX - QUEUE_BYTES_READ_ON
        out.post(b"x")
        assert out.room == 0


async def test_there_is_no_room_without_a_slot(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        sock.room = 0
        for _ in range(QUEUE_SLOTS):  # one more than it seems: the writer has the first in hand
            out.post(b"x")
        assert out.room
        out.post(b"x")
        assert not out.room


async def test_a_client_that_takes_everything_leaves_others_their_turns(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        frame, left = bytes(WRITE_BOUND), 64
        sock.room = 0

        def produce() -> None:
            nonlocal left
            while left and out.room:
                out.post(frame)
                left -= 1
            if left:
                out.when_room(produce)

        produce()
        await wait_all_tasks_blocked()
        steps, before = [], len(sock.sent)
        sock.take(1 << 30)
        while out.queued_bytes:
            await trio.lowlevel.checkpoint()
            steps.append(len(sock.sent) - before)
            before = len(sock.sent)
    assert before == 64 * WRITE_BOUND
    assert max(steps) <= 300 * 1024 < before  # two turns of the writer may come between two of ours


async def test_whoever_waits_for_room_gets_it_in_the_order_of_asking(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock), trio.open_nursery() as nursery:
        sock.room = 0
        out.post(bytes(QUEUE_BYTES_MAX))
        await wait_all_tasks_blocked()
        out.when_room(lambda: out.post(b"1"))
        nursery.start_soon(out.send, b"2")
        await wait_all_tasks_blocked()
        out.post(b"3")
        out.when_room(lambda: out.post(b"4" * out.room))
        assert out.room == 0
        sock.take(1 << 30)
        await wait_all_tasks_blocked()
        assert sock.sent.lstrip(b"\0").startswith(b"1234")
        assert out.queued_bytes == 0


async def test_room_that_one_takes_is_not_there_for_the_next(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        sock.room = 0
        seen: list[int] = []

        def wake() -> None:
            seen.append(out.room)
            out.post(bytes(out.room))

        out.post(bytes(QUEUE_BYTES_MAX))
        await wait_all_tasks_blocked()
        for _ in range(3):
            out.when_room(wake)
        sock.take(20_000)
        await wait_all_tasks_blocked()
        assert len(seen) == 1
        sock.take(1 << 30)
        await wait_all_tasks_blocked()
        assert len(seen) == 3
        assert min(seen) >= QUEUE_BYTES_MAX - QUEUE_BYTES_READ_ON


async def test_whoever_waits_is_told_of_the_end(autojump_clock: MockClock) -> None:
    async with outbound() as (out, sock):
        sock.room = 0
        out.post(bytes(QUEUE_BYTES_MAX))
        told: list[bool] = []
        out.when_room(lambda: told.append(out.closed))
        out.finish()
        assert told == [True]
        assert out.room == 0
        out.post(b"too late")
        sock.take(1 << 30)
        await wait_all_tasks_blocked()
        assert b"too late" not in sock.sent


async def test_a_broken_socket_ends_the_writer_and_nobody_else(autojump_clock: MockClock) -> None:
    sock = Socket()
    out = Outbound(sock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.write_frames)
        await wait_all_tasks_blocked()
        sock.broken = True
        out.post(b"x")
        assert not out.closed
    assert out.closed
