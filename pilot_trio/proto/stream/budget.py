"""What all streams to one peer share: how much they may have in flight together, how large segments may be, how far it is.

Each stream's own window allows for what its path holds, plus a burst. Bursts of many streams add up in the one socket
buffer in front of the peer, of which nobody tells the size: a default of 212,992 bytes holds less than a hundred lone
datagrams, and three hundred that arrive joined. So the bursts are shared: together the streams may exceed what their paths
hold by `burst`, which grows while nothing is lost.

Each stream begins with the round trip of the one before it (RFC 9040). That decides when something is sent again whose
handshake said nothing, because a packet of it was lost, too: without it, that is after a second.
"""

from __future__ import annotations

from math import inf
from typing import Final
from weakref import WeakValueDictionary

from pilot_trio.proto.stream.rtt import REMEMBERED, RttEstimator
from pilot_trio.proto.stream.segment_size import SegmentSize
from pilot_trio.proto.stream.settings import SEGMENT

PEER_BURST: Final = 80 * SEGMENT  # bytes beyond what the paths hold, at least; a default socket buffer holds 92
PEER_BURST_MAX: Final = 1024 * SEGMENT  # bytes; more gained nothing, and a peer's buffer is hardly larger
BURST_GROWTH: Final = 0.5  # of what arrived while the burst was used up
BURST_BACKOFF: Final = 0.7  # what is left of the burst after a loss
BURST_CALM: Final = 0.01  # seconds after it in which losses tell of the same overflow
BURST_USED: Final = 0.75  # share that has to be in use for it to grow
STREAM_SHARE: Final = 2 * SEGMENT  # bytes that each stream may have in flight whatever others do: none starves
PEERS_MAX: Final = 256  # whose budgets are kept while there is no stream to them; about 1 KiB each


class Budget:
    """Shared by the streams to one peer. `in_flight` and `held_by_paths` are sums over them, in bytes.

    Args:
      segment_limit: bytes of payload that segments may have if the path proves to carry them.
    """

    __slots__ = ("__weakref__", "_lost_at", "_rtt", "burst", "held_by_paths", "in_flight", "segment_size")

    def __init__(self, segment_limit: int = SEGMENT) -> None:
        self.segment_size = SegmentSize(segment_limit)
        self.in_flight = 0
        self.held_by_paths = 0
        self.burst = PEER_BURST  # bytes
        self._lost_at = -inf
        self._rtt = RttEstimator()  # of the newest stream

    def begin_stream(self, now: float) -> RttEstimator:
        """Return what a new stream begins with."""
        known_at = self._rtt.known_at
        if -inf < known_at < now - REMEMBERED and not self.in_flight:
            self.on_path(self.segment_size.limit)  # who knows what it carries today
        rtt = self._rtt = self._rtt.successor(now)
        return rtt

    def on_path(self, segment_limit: int) -> None:
        """Forget what the path was like: the peer is reached in another way."""
        self.segment_size.on_path(segment_limit)
        self._rtt = RttEstimator()

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


class Budgets:
    """The budgets of peers by node: of all to which there are streams, and of some to which there were."""

    def __init__(self) -> None:
        self._in_use: WeakValueDictionary[int, Budget] = WeakValueDictionary()
        self._recent: dict[int, Budget] = {}  # the latest last

    def get(self, node: int) -> Budget | None:
        """Return what is known of a peer, or None."""
        budget = self._recent.pop(node, None) or self._in_use.get(node)
        if budget is not None:
            self._keep(node, budget)
        return budget

    def add(self, node: int, budget: Budget) -> None:
        """Keep what there will be to know of a peer, as long as there are streams to it, or not many more peers."""
        self._in_use[node] = budget
        self._recent.pop(node, None)
        self._keep(node, budget)

    def _keep(self, node: int, budget: Budget) -> None:
        self._recent[node] = budget
        if len(self._recent) > PEERS_MAX:
            del self._recent[next(iter(self._recent))]
