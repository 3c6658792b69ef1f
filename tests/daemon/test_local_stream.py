"""A connected pair inside the daemon: bounds, flow control, the ways to end."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import Port
from pilot_trio.daemon.connection import Connection, ConnState
from pilot_trio.daemon.local_stream import LOCAL_BUFFER_MAX, LOCAL_LOW_WATER
from tests.daemon.stream_fakes import SELF, make_table


async def make_pair() -> tuple[Connection, Connection]:
    """Return the dialling and the accepting end."""
    table = make_table()
    listener = table.bind(5000, "server")
    dialler = table.dial_local(SELF, 5000, owner="client")
    return dialler, await listener.accept()


async def test_both_ends_know_each_other_and_are_established() -> None:
    dialler, acceptor = await make_pair()
    assert (dialler.conn_id, acceptor.conn_id) == (1, 2)
    assert dialler.local == acceptor.remote == (SELF, Port(49152))
    assert dialler.remote == acceptor.local == (SELF, Port(5000))
    assert dialler.state is acceptor.state is ConnState.ESTABLISHED
    assert (dialler.dialled, acceptor.dialled) == (True, False)


async def test_bytes_arrive_in_order_in_both_directions() -> None:
    dialler, acceptor = await make_pair()
    assert dialler.write_nowait(b"he") == 2
    assert dialler.write_nowait(memoryview(b"llo")) == 3
    assert acceptor.receive_nowait(4) == b"hell"
    assert acceptor.receive_nowait(4) == b"o"
    with pytest.raises(trio.WouldBlock):
        acceptor.receive_nowait(4)
    assert acceptor.write_nowait(bytearray(b"world")) == 5
    assert await dialler.receive_some(100) == b"world"


async def test_written_bytes_are_copied() -> None:
    dialler, acceptor = await make_pair()
    data = bytearray(b"abc")
    dialler.write_nowait(data)
    data[:] = b"xyz"
    assert acceptor.receive_nowait(3) == b"abc"


@pytest.mark.parametrize("size", [LOCAL_BUFFER_MAX - 1, LOCAL_BUFFER_MAX, LOCAL_BUFFER_MAX + 1])
async def test_a_write_takes_what_the_buffer_holds_and_no_more(size: int) -> None:
    dialler, acceptor = await make_pair()
    assert dialler.write_nowait(bytes(size)) == min(size, LOCAL_BUFFER_MAX)
    room = LOCAL_BUFFER_MAX - min(size, LOCAL_BUFFER_MAX)
    assert dialler.write_nowait(bytes(2)) == room
    assert dialler.write_nowait(b"x") == 0
    assert acceptor.write_nowait(bytes(LOCAL_BUFFER_MAX)) == LOCAL_BUFFER_MAX  # the other direction has its own


@pytest.mark.parametrize("size", [LOCAL_LOW_WATER - 1, LOCAL_LOW_WATER])
async def test_a_waiting_writer_wakes_when_there_is_room_worth_it(nursery: trio.Nursery, size: int) -> None:
    dialler, acceptor = await make_pair()
    dialler.write_nowait(bytes(LOCAL_BUFFER_MAX))
    woken = trio.Event()

    async def wait() -> None:
        await dialler.wait_writable()
        woken.set()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    acceptor.receive_nowait(size)
    await wait_all_tasks_blocked()
    assert woken.is_set() == (size >= LOCAL_LOW_WATER)
    # Room below the mark is still taken by who asks, and the rest of the way wakes the waiter.
    assert dialler.write_nowait(bytes(LOCAL_LOW_WATER - 1)) == LOCAL_LOW_WATER - 1
    acceptor.receive_nowait(LOCAL_BUFFER_MAX)
    await wait_all_tasks_blocked()
    assert woken.is_set()


async def test_a_graceful_close_delivers_what_was_written_and_discards_what_was_not_read() -> None:
    dialler, acceptor = await make_pair()
    dialler.write_nowait(b"last words")
    acceptor.write_nowait(b"never read")
    dialler.close()
    assert dialler.state is acceptor.state is ConnState.TIME_WAIT
    assert dialler.settled
    assert not acceptor.settled
    assert acceptor.receive_nowait(4) == b"last"
    assert acceptor.receive_nowait(100) == b" words"
    assert acceptor.receive_nowait(100) == acceptor.receive_nowait(100) == b""
    with pytest.raises(trio.BrokenResourceError):
        acceptor.write_nowait(b"x")
    for use in (lambda: dialler.write_nowait(b""), lambda: dialler.receive_nowait(1)):
        with pytest.raises(trio.ClosedResourceError):
            use()
    dialler.close()
    acceptor.close()
    with pytest.raises(trio.ClosedResourceError):
        acceptor.receive_nowait(1)


async def test_closing_the_second_end_discards_what_it_had_not_read() -> None:
    dialler, acceptor = await make_pair()
    dialler.write_nowait(b"x" * 1000)
    dialler.close()
    acceptor.close()
    assert acceptor.settled


@pytest.mark.parametrize("end", ["dialler", "acceptor"])
async def test_a_reset_ends_both_directions_at_once(end: str) -> None:
    dialler, acceptor = await make_pair()
    dialler.write_nowait(b"lost")
    acceptor.write_nowait(b"lost")
    here, there = (dialler, acceptor) if end == "dialler" else (acceptor, dialler)
    here.reset()
    here.reset()
    assert here.state is there.state is ConnState.CLOSED
    for use in (lambda: here.write_nowait(b"x"), lambda: here.receive_nowait(1)):
        with pytest.raises(trio.ClosedResourceError):
            use()
    for use in (lambda: there.write_nowait(b"x"), lambda: there.receive_nowait(1)):
        with pytest.raises(trio.BrokenResourceError):
            use()
    there.close()
    with pytest.raises(trio.ClosedResourceError):
        there.receive_nowait(1)


@pytest.mark.parametrize("end", ["close here", "close there", "reset here", "reset there"])
async def test_whatever_ends_the_stream_wakes_every_waiter(nursery: trio.Nursery, end: str) -> None:
    here, there = await make_pair()
    here.write_nowait(bytes(LOCAL_BUFFER_MAX))
    outcomes: dict[str, object] = {}

    async def run(name: str, wait: Awaitable[object]) -> None:
        try:
            outcomes[name] = await wait
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            outcomes[name] = type(exc)

    nursery.start_soon(run, "write", here.write_all(b"x"))
    nursery.start_soon(run, "read", here.receive_some(1))
    nursery.start_soon(run, "room", here.wait_writable())
    await wait_all_tasks_blocked()
    assert outcomes == {}
    how, where = end.split()
    getattr(here if where == "here" else there, how)()
    await wait_all_tasks_blocked()
    mine, broken = trio.ClosedResourceError, trio.BrokenResourceError
    failure = mine if where == "here" else broken
    read = b"" if end == "close there" else failure
    assert outcomes == {"write": failure, "read": read, "room": None}


@pytest.mark.parametrize("operation", ["write_all", "receive_some", "wait_writable"])
async def test_a_cancelled_wait_leaves_the_stream_as_it_was(operation: str) -> None:
    here, there = await make_pair()
    here.write_nowait(bytes(LOCAL_BUFFER_MAX))
    arguments: dict[str, tuple[object, ...]] = {"write_all": (b"x",), "receive_some": (1,)}
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(here, operation)(*arguments.get(operation, ()))
    assert scope.cancelled_caught
    assert there.receive_nowait(LOCAL_BUFFER_MAX + 1) == bytes(LOCAL_BUFFER_MAX)
    there.write_nowait(b"still here")
    assert here.receive_nowait(100) == b"still here"


async def test_the_row_has_every_field_with_the_units_of_the_protocol() -> None:
    dialler, acceptor = await make_pair()
    assert dialler.row() == {
        "id": 1,
        "local_port": 49152,
        "remote_addr": "0:0000.0000.0001",
        "remote_port": 5000,
        "state": "ESTABLISHED",
        "bytes_sent": 0,
        "bytes_recv": 0,
        "segs_sent": 0,
        "segs_recv": 0,
        "retransmits": 0,
        "fast_retx": 0,
        "sack_sent": 0,
        "sack_recv": 0,
        "dup_acks": 0,
        "cong_win": 40_960,
        "ssthresh": 524_288,
        "in_flight": 0,
        "unacked": 0,
        "ooo_buf": 0,
        "recv_win": 2_097_152,
        "peer_recv_win": 589_824,
        "in_recovery": False,
        "srtt_ms": 0,
        "rttvar_ms": 0,
    }
    dialler.write_nowait(bytes(LOCAL_BUFFER_MAX // 2))
    acceptor.write_nowait(b"abc")
    near, far = dialler.row(), acceptor.row()
    assert (near["bytes_sent"], near["bytes_recv"], near["segs_sent"], near["segs_recv"]) == (
        LOCAL_BUFFER_MAX // 2,
        3,
        1,
        1,
    )
    assert (far["bytes_sent"], far["bytes_recv"], far["segs_sent"], far["segs_recv"]) == (
        3,
        LOCAL_BUFFER_MAX // 2,
        1,
        1,
    )
    assert far["recv_win"] == 2_097_152 // 2
    assert near["peer_recv_win"] == 589_824 // 2
    dialler.write_nowait(bytes(LOCAL_BUFFER_MAX))
    assert (dialler.row()["peer_recv_win"], acceptor.row()["recv_win"]) == (0, 0)
    dialler.close()
    assert dialler.row()["state"] == acceptor.row()["state"] == "TIME_WAIT"


PATIENT_READS = 1_000  # a reader of single bytes would take a minute for what ten writes bring, and show nothing more


@settings(max_examples=60)
@given(
    writes=st.lists(st.tuples(st.integers(0, 2 * LOCAL_BUFFER_MAX), st.floats(0, 3)), max_size=10),
    reads=st.lists(st.tuples(st.integers(1, LOCAL_BUFFER_MAX), st.floats(0, 3)), min_size=1, max_size=10),
)
def test_no_pause_of_either_side_loses_a_wake_up(
    writes: list[tuple[int, float]], reads: list[tuple[int, float]]
) -> None:
    async def main() -> None:
        here, there = await make_pair()
        sent, got = bytearray(), bytearray()

        async def write() -> None:
            for number, (size, pause) in enumerate(writes):
                await trio.sleep(pause)
                piece = bytes([number]) * size
                sent.extend(piece)
                await here.write_all(piece)
            here.close()

        with trio.fail_after(1e6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                turn = 0
                while True:
                    size, pause = reads[turn % len(reads)]
                    turn += 1
                    if turn > PATIENT_READS:
                        size = LOCAL_BUFFER_MAX
                    await trio.sleep(pause)
                    data = await there.receive_some(size)
                    assert len(data) <= size
                    if not data:
                        break
                    got += data
        assert got == sent

    trio.run(main, clock=MockClock(autojump_threshold=0))
