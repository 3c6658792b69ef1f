"""What tests send across nodes: echoes held against what was sent, and one-way flows whose every byte tells its place.

flow = await open_flow(near_driver, far_driver, far, 5000)
nursery.start_soon(flow.send)
nursery.start_soon(flow.receive)
await flow.wait_for_more(MIB)  # it runs
flow.finish()
await flow.wait_finished()  # all that was sent has arrived, and was what was sent
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import Final

import attrs
import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import DialError
from tests.interop.overlay import OverlayNode

ECHO: Final = 7
KIB: Final = 1024
MIB: Final = 1024 * KIB
PIECE: Final = 32 * KIB  # bytes per write of a flow
_BLOCK: Final = random.Random(18).randbytes(65_521)  # a prime: pieces of the usual sizes fall differently each time
_TWICE: Final = _BLOCK * 2


def pattern(at: int, size: int) -> bytes:
    """Return a stretch of an endless sequence: what is lost, doubled or displaced shows. `size` up to 64 KiB or so."""
    start = at % len(_BLOCK)
    assert size <= len(_BLOCK)
    return _TWICE[start : start + size]


@attrs.define(eq=False)
class Flow:
    """A one-way transfer, as long as wanted. Run `send` and `receive` as tasks; each ends as its stream does."""

    sender: PilotStream
    receiver: PilotStream
    sent: int = 0  # bytes that the sender's daemon has taken
    received: int = 0
    ended: bool = False  # the receiver has seen the end
    _finishing: bool = False
    _arrived: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def send(self, size: int | None = None) -> None:
        """Send `size` bytes, or until told to finish; then close. Raises `trio.BrokenResourceError` if cut off."""
        async with self.sender:
            while not self._finishing and (size is None or self.sent < size):
                piece = pattern(self.sent, PIECE if size is None else min(PIECE, size - self.sent))
                await self.sender.send_all(piece)
                self.sent += len(piece)

    async def receive(self) -> None:
        """Receive until the end and check every byte. Raises `trio.BrokenResourceError` if cut off."""
        async with self.receiver:
            while data := await self.receiver.receive_some(60 * KIB):
                assert data == pattern(self.received, len(data)), f"other bytes than were sent after {self.received}"
                self.received += len(data)
                self._arrived.unpark_all()
            self.ended = True

    def finish(self) -> None:
        """Let the sender close after its next write."""
        self._finishing = True

    async def wait_for(self, count: int) -> None:
        """Wait until so many bytes have arrived."""
        while self.received < count:
            await self._arrived.park()

    async def wait_for_more(self, count: int) -> None:
        """Wait until so many more bytes have arrived: it runs."""
        await self.wait_for(self.received + count)


async def open_flow(sender: Driver, receiver: Driver, target: OverlayNode, port: int) -> Flow:
    """Open a stream from one node's client to another's."""
    listener = await receiver.listen(port)
    dialled = await sender.dial(target.address, port)
    return Flow(dialled, await listener.accept())


async def echo(driver: Driver, target: OverlayNode, size: int) -> None:
    """Send random bytes to the echo service of a node and hold the answer against them."""
    async with await driver.dial(target.address, ECHO) as stream:
        await exchange(stream, size)


async def exchange(stream: PilotStream, size: int) -> None:
    """Send random bytes to an echo and hold the answer against them."""
    data = os.urandom(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        received = await receive_exactly(stream, size)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def receive_exactly(stream: PilotStream, size: int) -> bytes:
    """Receive so many bytes, no fewer."""
    received = bytearray()
    while len(received) < size:
        chunk = await stream.receive_some(size - len(received))
        assert chunk, f"the stream ended after {len(received)} of {size} bytes"
        received += chunk
    return bytes(received)


async def read_to_the_end(stream: PilotStream) -> None:
    """Read and forget."""
    while await stream.receive_some():
        pass


async def dial_until_answered(driver: Driver, target: OverlayNode) -> None:
    """Dial again and again, as a client does that knows its peer to be restarting."""
    while True:
        try:
            stream = await driver.dial(target.address, ECHO)
        except DialError:
            await trio.sleep(0.1)
            continue
        async with stream:
            try:
                await stream.send_all(b"back?")
                if await stream.receive_some():
                    return
            except trio.BrokenResourceError:
                pass
        await trio.sleep(0.1)
