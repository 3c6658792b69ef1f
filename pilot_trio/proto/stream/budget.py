"""What all streams to one peer may have in flight together.

Each stream's own window allows for what its path holds, plus a burst. Bursts of many streams add up in the one socket
buffer in front of the peer, whose default of 212,992 bytes holds less than a hundred datagrams. So the bursts are
shared: together the streams may exceed what their paths hold by `PEER_BURST`.
"""

from __future__ import annotations

from typing import Final

from pilot_trio.proto.stream.settings import SEGMENT

PEER_BURST: Final = 80 * SEGMENT  # bytes beyond what the paths hold; a default socket buffer holds 92 such datagrams
STREAM_SHARE: Final = 2 * SEGMENT  # bytes that each stream may have in flight whatever others do: none starves


class Budget:
    """Shared by the streams to one peer. `in_flight` and `held_by_paths` are sums over them, in bytes."""

    __slots__ = ("__weakref__", "held_by_paths", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.held_by_paths = 0

    @property
    def room(self) -> int:
        """Bytes that may still leave, by whichever stream; not positive if none may."""
        return self.held_by_paths + PEER_BURST - self.in_flight
