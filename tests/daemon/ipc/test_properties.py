"""What holds for any bytes: chunking changes nothing, and every request has exactly the replies that it must have."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.testing.memory_transport import MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_frame
from tests.daemon.commands.assembly import assembled

from .conftest import Commands
from .raw_client import RawClient, split_frames

FIRE_AND_FORGET = {Code.SEND, Code.SEND_TO, Code.CANCEL}
PUSHES = {Code.ACCEPT, Code.RECV, Code.RECV_FROM}
IN_ORDER = [Code.HEALTH, Code.SEND, Code.SEND_TO, Code.CANCEL, Code.SEND_TO_CONFIRM, 0x7F, Code.INFO, Code.BIND]
IN_ANY_ORDER = [Code.SET_TAGS, Code.MANAGED]  # those that wait in a task of their own

requests = st.tuples(st.sampled_from([*IN_ORDER, *IN_ANY_ORDER]), st.binary(max_size=40)).map(
    lambda request: encode_frame(*request)
)
streams = st.lists(st.one_of(requests, st.just(bytes(4))), max_size=60).map(b"".join)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run one example under virtual time."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def in_place(frame: bytes) -> bool:
    """Say whether a frame came from the reader itself and not from a task."""
    from_task = (b"internal error", b"set_tags: maximum 3 tags allowed")
    return frame[0] != Code.ACCEPT and not frame.endswith(from_task)


async def replies_to(chunks: list[bytes], end: bytes = b"") -> list[bytes]:
    """Send the chunks, each once the one before was taken in, and return every frame that comes back."""
    server = IPCServer(Commands().table())
    listener = MemoryTransportListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listener)
        client = await RawClient.connect(listener)
        for chunk in chunks:
            client.write(chunk)
            await trio.testing.wait_all_tasks_blocked()
        client.write(end)
        client.shut_down_write()
        data = await client.read_bytes_to_end()
        nursery.cancel_scope.cancel()
    return split_frames(data)


@given(stream=streams, cuts=st.lists(st.integers(0, 3000), max_size=20), torn=st.booleans())
@settings(deadline=None)
def test_chunking_of_the_request_stream_does_not_change_the_replies(stream: bytes, cuts: list[int], torn: bool) -> None:
    async def main() -> None:
        edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
        chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]
        tail = b"\x00\x00\x00\x09\x21half" if torn else b""  # a frame that never becomes complete
        whole = await replies_to([stream])
        cut = await replies_to(chunks, tail)
        assert Counter(whole) == Counter(cut)
        # What is answered in place is answered in order, whatever waits beside it.
        assert [frame for frame in whole if in_place(frame)] == [frame for frame in cut if in_place(frame)]

    run(main)


request_codes = st.sampled_from([code for code in Code if not code.name.endswith("_OK")])


@given(code=st.one_of(request_codes, st.integers(0, 255)), payload=st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_request_gets_exactly_its_replies(code: int, payload: bytes) -> None:
    async def main() -> None:
        async with assembled() as node:
            client = RawClient(await node.listener.open_transport())
            client.write(encode_frame(code, payload))
            client.shut_down_write()
            frames = await client.read_to_end()
        pushes = PUSHES if code == Code.CLOSE else PUSHES | {Code.CLOSE_OK}
        replies = [frame for frame in frames if frame[0] not in pushes]
        assert len(replies) == (0 if code in FIRE_AND_FORGET else 1), frames
        if replies and replies[0][0] == Code.ERROR:
            text = replies[0][3:]
            assert text.startswith(b"sendto: ") is (code == Code.SEND_TO_CONFIRM)

    run(main)


@given(noise=st.binary(max_size=200))
@settings(deadline=None)
def test_garbage_harms_nobody_else(noise: bytes) -> None:
    async def main() -> None:
        async with assembled() as node:
            neighbour = RawClient(await node.listener.open_transport())
            client = RawClient(await node.listener.open_transport())
            client.write(noise)
            client.shut_down_write()
            await client.read_bytes_to_end()
            assert (await neighbour.ask(encode_frame(Code.HEALTH)))[0] == Code.HEALTH_OK

    run(main)
