"""The requests of one client that wait for something: how many there may be, and when the last one is done."""

from __future__ import annotations

from typing import Final, final

import trio

CLIENT_IN_FLIGHT_MAX: Final = 1024  # requests being worked on per client; protocol, `spec/ipc.md` §8


@final
class InFlight:
    """A `CapacityLimiter` that is there once it is needed: most clients never ask for anything that has to wait.

    Each request is a borrower of its own, and the limit comes before its task: were it taken inside, the tasks would pile
    up outside it.
    """

    __slots__ = ("_idle", "_limiter")

    def __init__(self) -> None:
        self._limiter: trio.CapacityLimiter | None = None
        self._idle: trio.Event | None = None  # set when the last one is done; made by who waits for that

    def __len__(self) -> int:
        return 0 if self._limiter is None else self._limiter.borrowed_tokens

    def add_nowait(self, request: object) -> bool:
        """Count a request, if one more may be; say whether it was."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(CLIENT_IN_FLIGHT_MAX)
        try:
            self._limiter.acquire_on_behalf_of_nowait(request)
        except trio.WouldBlock:
            return False
        return True

    async def add(self, request: object) -> None:
        """Count a request once one more may be; for those that `add_nowait` has turned away."""
        assert self._limiter is not None
        await self._limiter.acquire_on_behalf_of(request)

    def remove(self, request: object) -> None:
        """Note that a request is done."""
        assert self._limiter is not None
        self._limiter.release_on_behalf_of(request)
        if self._idle is not None and not len(self):
            self._idle.set()

    async def wait_until_idle(self) -> None:
        """Wait until the last request is done; to be called when no new ones come."""
        while len(self):
            self._idle = trio.Event()
            await self._idle.wait()
