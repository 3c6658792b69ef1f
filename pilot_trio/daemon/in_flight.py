"""The requests of one client that wait for something: how many there may be, and when the last one is done."""

from __future__ import annotations

from typing import Final, final

import trio

CLIENT_IN_FLIGHT_MAX: Final = 1024  # requests being worked on per client; protocol, `spec/ipc.md` §8


@final
class InFlight:
    """A count. Nobody but the client's reader waits for a place, or for the end of all of them.

    A request is counted before its task is started: were it counted inside, the tasks would pile up outside the limit.
    """

    __slots__ = ("_count", "_reader")

    def __init__(self) -> None:
        self._count = 0
        self._reader: trio.lowlevel.ParkingLot | None = None  # made when it waits for the first time; most never do

    def __len__(self) -> int:
        return self._count

    def add_nowait(self) -> bool:
        """Count a request, if one more may be; say whether it was."""
        if self._count == CLIENT_IN_FLIGHT_MAX:
            return False
        self._count += 1
        return True

    async def add(self) -> None:
        """Count a request once one more may be; for those that `add_nowait` has turned away."""
        while not self.add_nowait():
            await self._wait()

    def remove(self) -> None:
        """Note that a request is done."""
        self._count -= 1
        if self._reader is not None:
            self._reader.unpark_all()

    async def wait_until_idle(self) -> None:
        """Wait until the last request is done; to be called when no new ones come."""
        while self._count:
            await self._wait()

    async def _wait(self) -> None:
        if self._reader is None:
            self._reader = trio.lowlevel.ParkingLot()
        await self._reader.park()
