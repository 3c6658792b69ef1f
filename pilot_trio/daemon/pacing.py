"""Holding up whoever floods a node with datagrams until that node has caught up.

Datagrams have no flow control: what arrives faster than a node works it in overflows the buffer of its socket. But every
node answers a ping, and after what came before it. So a flood is followed by pings, and while too many of them are
unanswered its sender waits. That is a window as streams have one; no node has more than it outstanding.

    512 KiB, ping, 512 KiB, ping, ...   8 pings unanswered: wait for one, but not for long
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from pilot_trio.errors import PilotError

BURST: Final = 512 * 1024  # bytes to one node after which it is asked; less would cost more pings
BURSTS_MAX: Final = 8  # unanswered at a time: half of the buffer that sockets ask for, `net.udp.BUFFER_WANTED`
DATAGRAM_COST: Final = 256  # bytes that a kernel needs for a datagram beside what is in it, at least
BURST_TIME: Final = 0.1  # seconds; who takes longer to send as much is no flood
ANSWER_TIME: Final = 0.1  # seconds that an answer is waited for; a node that takes longer is too far away for this
LEFT_ALONE: Final = 1.0  # seconds until such a node is asked again
NODES_MAX: Final = 1024  # nodes of which anything is remembered; then all is forgotten


@attrs.define(eq=False)
class _Flood:
    """What was sent to one node lately."""

    since: float  # seconds of Trio's clock; when the burst began, or will begin to count
    size: int = 0
    unanswered: int = 0  # pings
    waiting: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


class Pacing:
    """The floods to all nodes.

    Args:
      ping: returns when a node has answered a ping; raises `PilotError` if it cannot be asked.
    """

    def __init__(self, ping: Callable[[int], Awaitable[object]]) -> None:
        self._ping = ping
        self._floods: dict[int, _Flood] = {}

    def crowded(self, node: int) -> bool:
        """Say whether senders should `wait` for a node before they send more."""
        flood = self._floods.get(node)
        return flood is not None and flood.unanswered >= BURSTS_MAX

    def count(self, node: int, datagrams: int, size: int, nursery: trio.Nursery) -> None:
        """Count datagrams that were sent, `size` bytes in all.

        Pings are sent by tasks in the nursery, and so after what is sent in this turn.
        """
        now = trio.current_time()
        flood = self._floods.get(node)
        if flood is None:
            if len(self._floods) >= NODES_MAX:
                self._floods.clear()
            flood = self._floods[node] = _Flood(now)
        if now - flood.since > BURST_TIME:
            flood.since, flood.size = now, 0
        if now >= flood.since:
            flood.size += size + datagrams * DATAGRAM_COST
        if flood.size >= BURST:
            flood.since, flood.size = now, 0
            flood.unanswered += 1
            nursery.start_soon(self._ask, node, flood)

    async def wait(self, node: int) -> None:
        """Wait until a node has taken some of what was sent to it, but no longer than `ANSWER_TIME`."""
        if self.crowded(node):
            await self._floods[node].waiting.park()

    async def _ask(self, node: int, flood: _Flood) -> None:
        try:
            with trio.move_on_after(ANSWER_TIME) as scope, contextlib.suppress(PilotError):
                await self._ping(node)
            if scope.cancelled_caught:
                flood.since, flood.size = trio.current_time() + LEFT_ALONE, 0
        finally:
            flood.unanswered -= 1
            flood.waiting.unpark_all()
