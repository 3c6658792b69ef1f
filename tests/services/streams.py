"""A connected pair of streams on which one end knows its peer's overlay address, as the services expect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from pilot_trio.address import Address, NetworkId, NodeId, Port, SocketAddress


class PeerStream(trio.abc.Stream):
    """The service's end."""

    def __init__(self, stream: trio.abc.Stream, remote: SocketAddress) -> None:
        self._stream = stream
        self.remote = remote

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def peer_pair(node: int = 1, port: int = 49152) -> tuple[trio.abc.Stream, PeerStream]:
    """Return the peer's end and the service's."""
    theirs, ours = trio.testing.memory_stream_pair()
    return theirs, PeerStream(ours, SocketAddress(Address(NetworkId(0), NodeId(node)), Port(port)))


@asynccontextmanager
async def serving(
    handle: Callable[[trio.abc.Stream], Awaitable[None]], node: int = 1, port: int = 49152
) -> AsyncIterator[trio.abc.Stream]:
    """Run a service on one connection; give the peer's end of it. The service must end when that end is closed."""
    theirs, ours = peer_pair(node, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle, ours)
        async with theirs:
            yield theirs
