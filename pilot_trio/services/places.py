"""Places for work that is too large to be done for everybody at once: so many in all, and one for each peer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

import trio


class Places:
    """So many places, of which a peer has at most one: it cannot keep the others from theirs.

    Args:
      total: how many there are.
    """

    def __init__(self, total: int) -> None:
        self.waiting = 0
        self._total = total
        self._holders: set[Hashable] = set()
        self._freed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """Return how many are taken."""
        return len(self._holders)

    @asynccontextmanager
    async def one(self, peer: Hashable) -> AsyncGenerator[None]:
        """Have a place for the block; waits until there is one, and until this peer has no other."""
        self.waiting += 1
        try:
            while peer in self._holders or len(self._holders) >= self._total:
                await self._freed.park()
        finally:
            self.waiting -= 1
        self._holders.add(peer)
        try:
            yield
        finally:
            self._holders.remove(peer)
            self._freed.unpark_all()
