"""Passes tunnel frames on between nodes that cannot reach each other (`spec/tunnel.md` §14.1). Pure.

Everybody's traffic comes through here, one call per frame, so it works on bytes: the ids are where the layout says, and
what is sent on is a slice of what came. Frames are opaque, and so is the truth about their sender: the receiver opens
them, or does not.

    relay                        05 | sender | destination | frame
    delivery                     06 | sender | frame
    delivery with destination    09 | sender | destination | frame      for endpoints that serve several nodes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.limits import KeyedBuckets
from pilot_trio.rendezvous.beacon_drops import Drop
from pilot_trio.rendezvous.endpoint_table import EndpointTable
from pilot_trio.wire.beacon import BeaconType

RELAY_RATE: Final = 4000.0  # frames per second and source endpoint; protocol, `spec/tunnel.md` §14.2
RELAY_SOURCES: Final = 50_000  # source endpoints whose rate is tracked, about 15 MB; the one silent longest goes first

RELAY: Final = int(BeaconType.RELAY)
_HEAD: Final = 9  # bytes: type, sender, destination
_DELIVERY: Final = bytes((BeaconType.RELAY_DELIVERY,))
_DELIVERY_MULTI: Final = bytes((BeaconType.RELAY_DELIVERY_MULTI,))


@attrs.define(eq=False)
class Relaying:
    """The relay of one beacon. Frames leave in the order in which they came.

    Args:
      table: where nodes are.
      is_unlimited: whether a source host is free of the rate limit.
      drops: where to count what is not passed on.
    """

    table: EndpointTable
    is_unlimited: Callable[[str], bool]
    drops: Counter[Drop]
    frames: int = attrs.field(default=0, init=False)  # passed on
    size: int = attrs.field(default=0, init=False)  # bytes of datagrams passed on
    _rates: KeyedBuckets[tuple[str, int]] = attrs.field(
        factory=lambda: KeyedBuckets(RELAY_RATE, RELAY_RATE, RELAY_SOURCES), init=False
    )

    def forward(self, datagram: bytes, source: tuple[str, int], now: float) -> tuple[bytes, Endpoint] | None:
        """Return what to send, and where to, for a datagram of type `RELAY`; None if it is dropped."""
        if len(datagram) < _HEAD:
            self.drops[Drop.MALFORMED] += 1
            return None
        if not self.is_unlimited(source[0]) and not self._rates.take(source, now):
            self.drops[Drop.RATE_LIMITED] += 1
            return None
        entry = self.table.entry(NodeId(int.from_bytes(datagram[5:_HEAD], "big")), now)
        if entry is None:
            self.drops[Drop.UNKNOWN_TARGET] += 1
            return None
        delivery = _DELIVERY_MULTI + datagram[1:] if entry.multi else _DELIVERY + datagram[1:5] + datagram[_HEAD:]
        self.frames += 1
        self.size += len(delivery)
        return delivery, entry.endpoint
