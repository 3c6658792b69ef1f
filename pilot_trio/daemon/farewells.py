"""Packets that nobody waits for: they leave with the next ones to their node, or after a moment.

There are two of this kind. The answer to a FIN keeps a peer of ours from repeating it, no sooner than after a fifth of a
second. And the FIN of a stream that ends while another one begins: whoever closes a stream and dials at once waits for the
dial. Sent at once they would cost the other node a wake-up each, most often just when it has something to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from pilot_trio.net.timers import Timers

FAREWELL_DELAY: Final = 0.005  # seconds that they wait at most; as long as an acknowledgment of data may


@final
class Farewells:
    """Keeps packets by node.

    Args:
      timers: say when they have waited for long enough.
      send: sends those of one node; gets the time, too.
    """

    __slots__ = ("_send", "_timer", "_waiting")

    def __init__(self, timers: Timers, send: Callable[[int, Sequence[bytes], float], None]) -> None:
        self._timer = timers.timer(self.send_all)
        self._send = send
        self._waiting: dict[int, list[bytes]] = {}

    def keep(self, node: int, packets: list[bytes], now: float) -> None:
        """Let packets wait."""
        if not self._waiting:
            self._timer.arm(now + FAREWELL_DELAY)
        waiting = self._waiting.setdefault(node, packets)
        if waiting is not packets:
            waiting += packets

    def take(self, node: int) -> Sequence[bytes]:
        """Return what waits for a node, as something leaves for it that it can travel with."""
        return self._waiting.pop(node, ()) if self._waiting else ()

    def send_all(self, now: float) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, {}
        for node, packets in waiting.items():
            self._send(node, packets, now)
