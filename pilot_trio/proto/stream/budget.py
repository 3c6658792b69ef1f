"""What all streams to one peer share: how much they may have in flight together, and how large segments may be.

Each stream's own window allows for what its path holds, plus a burst. Bursts of many streams add up in the one socket
buffer in front of the peer, of which nobody tells the size: a default of 212,992 bytes holds less than a hundred lone
datagrams, and three hundred that arrive joined. So the bursts are shared: together the streams may exceed what their paths
hold by `burst`, which grows while nothing is lost.
"""

from __future__ import annotations

from math import inf
from typing import Final

from pilot_trio.proto.stream.segment_size import SegmentSize
from pilot_trio.proto.stream.settings import SEGMENT

PEER_BURST: Final = (
    80 * SEGMENT
)  # bytes beyond what the paths hold, at least; a default socket buffer holds 92 datagrams
PEER_BURST_MAX: Final = 1024 * SEGMENT  # bytes; more gained nothing, and a peer's buffer is hardly larger
BURST_GROWTH: Final = 0.5  # of what arrived while the burst was used up
BURST_BACKOFF: Final = 0.7  # what is left of the burst after a loss
BURST_CALM: Final = 0.01  # seconds after it in which losses tell of the same overflow
BURST_USED: Final = 0.75  # share that has to be in use for it to grow
STREAM_SHARE: Final = 2 * SEGMENT  # bytes that each stream may have in flight whatever others do: none starves


class Budget:
    """Shared by the streams to one peer. `in_flight` and `held_by_paths` are sums over them, in bytes.

    Args:
      segment_limit: bytes of payload that segments may have if the path proves to carry them.
    """

    __slots__ = ("__weakref__", "_lost_at", "burst", "held_by_paths", "in_flight", "segment_size")

    def __init__(self, segment_limit: int = SEGMENT) -> None:
        self.segment_size = SegmentSize(segment_limit)
        self.in_flight = 0
        self.held_by_paths = 0
        self.burst = PEER_BURST  # bytes
        self._lost_at = -inf

    @property
    def room(self) -> int:
        """Bytes that may still leave, by whichever stream; not positive if none may."""
        return self.held_by_paths + self.burst - self.in_flight

    def on_arrived(self, size: int) -> None:
        """Note bytes that are known to have arrived, and are still counted as in flight."""
        if self.in_flight >= BURST_USED * (self.held_by_paths + self.burst):
            self.burst = min(PEER_BURST_MAX, self.burst + int(size * BURST_GROWTH))

    def on_lost(self, now: float) -> None:
        """Note that something was lost."""
        if now - self._lost_at > BURST_CALM:
            self._lost_at = now
            self.burst = max(PEER_BURST, int(self.burst * BURST_BACKOFF))
