"""Received datagrams as a channel (`spec/ipc.md` §5.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, final

import attrs
import trio

from pilot_trio.address import Port
from pilot_trio.wire.ipc import ReceivedDatagram

DATAGRAM_QUEUE: Final = 256  # datagrams that wait in a channel; as many as the clients of the reference hold


@attrs.frozen
class DatagramStatistics:
    """Counters of one channel."""

    received: int
    dropped: int
    queued: int


@final
class DatagramChannel(trio.abc.ReceiveChannel[ReceivedDatagram]):
    """The datagrams that arrive for one port, or for every port. Made by `Driver.datagrams`; use it in `async with`.

    The daemon hands every datagram to every client, whoever bound the port; a channel picks out its own. It holds
    `DATAGRAM_QUEUE` of them. When it is full the *newest* is dropped and counted: datagrams may be lost anywhere, and the
    older ones are those that the sender has been waiting for longest.
    """

    def __init__(self, port: Port | None, on_close: Callable[[DatagramChannel], None]) -> None:
        self.port = port
        self._on_close = on_close
        self._queue: deque[ReceivedDatagram] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self._cause: Exception | None = None
        self._received = 0
        self._dropped = 0

    def statistics(self) -> DatagramStatistics:
        """Return the counters."""
        return DatagramStatistics(self._received, self._dropped, len(self._queue))

    async def receive(self) -> ReceivedDatagram:
        """Wait for the next datagram. Cancelling loses none.

        Raises:
          trio.BrokenResourceError: the daemon is gone and every datagram that had arrived was received.
          trio.ClosedResourceError: this channel was closed here.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this channel was closed here")
            if self._queue:
                return self._queue.popleft()
            if self._cause is not None:
                raise trio.BrokenResourceError(str(self._cause)) from self._cause
            await self._arrived.park()

    def receive_nowait(self) -> ReceivedDatagram:
        """Return the next datagram if one is there; raise `trio.WouldBlock` if not, otherwise as `receive`."""
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed here")
        if self._queue:
            return self._queue.popleft()
        if self._cause is not None:
            raise trio.BrokenResourceError(str(self._cause)) from self._cause
        raise trio.WouldBlock

    def close(self) -> None:
        """Close the channel; what `aclose` does, without the checkpoint."""
        if not self._closed:
            self._closed = True
            self._queue.clear()
            self._arrived.unpark_all()
            self._on_close(self)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def offer(self, datagram: ReceivedDatagram) -> bool:
        """Take a datagram if it is for this port; return whether one had to be dropped."""
        if self.port is not None and datagram.destination_port != self.port:
            return False
        if len(self._queue) >= DATAGRAM_QUEUE:
            self._dropped += 1
            return True
        self._received += 1
        self._queue.append(datagram)
        self._arrived.unpark()
        return False

    def end(self, cause: Exception) -> None:
        """Learn that no more datagrams will come."""
        self._cause = cause
        self._arrived.unpark_all()
