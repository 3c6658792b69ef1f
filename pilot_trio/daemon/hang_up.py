"""Notices clients that left while their reader was not reading.

A reader sees its client leave by reading. While it waits for something else (a flow-controlled Send, a free slot for a
request, the last answers after the end of input) nobody reads, and the client's dials, ports and connections would stay
until that wait is over. The kernel has no event for "the other end is gone for good" that does not also fire, over and
over, for input that we choose not to read. So one task asks, now and then, about the few clients in that state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final, Protocol, final

import trio

HANG_UP_POLL_INTERVAL: Final = 0.25  # seconds; who left is noticed within it, who lives costs a poll(2) each


class Watched(Protocol):
    """What the watch asks."""

    def end_if_hung_up(self) -> bool:
        """End the client if it is gone; say whether it is."""
        ...


@final
class HangUpWatch:
    """The clients whose readers wait, and the task that asks about them. Sleeps for good while there are none."""

    __slots__ = ("_watched", "_woken")

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._woken = trio.Event()

    @contextlib.contextmanager
    def watching(self, client: Watched) -> Generator[None]:
        """Ask about this client until the block ends."""
        self._watched.add(client)
        self._woken.set()
        try:
            yield
        finally:
            self._watched.discard(client)

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self._woken.wait()
            await trio.sleep(HANG_UP_POLL_INTERVAL)
            for client in list(self._watched):
                client.end_if_hung_up()
            if not self._watched:
                self._woken = trio.Event()
