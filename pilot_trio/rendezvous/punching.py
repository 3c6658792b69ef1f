"""Makes two nodes send to each other at the same time, so that both NATs open (`spec/tunnel.md` §13.4, §14.1). Pure.

A request is not signed: it is a claim of whoever sends it, and v1.18.0 offers nothing better. So it reveals nothing that the
registry would not tell the claimed requester; it counts only if it comes from the host that the requester has registered
with its signature, to which the answer goes; and as the news of a new endpoint it is believed at once but not often. What is
left to a forger is to come from that very host, or to pretend to: then frames relayed to the node go astray until its next
discover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.rendezvous.beacon_drops import Drop
from pilot_trio.rendezvous.endpoint_table import EndpointTable
from pilot_trio.rendezvous.sources import may_come_from, source_of
from pilot_trio.wire.beacon import PunchCommand, PunchRequest

PUNCH_RATE: Final = (
    10.0  # requests per second and source host; the reference's 1 is too few for an office behind one NAT
)
PUNCH_BURST: Final = 20.0  # requests of one source host at once: peers of a node that has just moved
ALL_RATE: Final = 500.0  # punches per second of all sources together; two small datagrams each
PUNCH_SOURCES: Final = 50_000  # source hosts whose rate is tracked, about 15 MB; the one silent longest goes first


@attrs.define(eq=False)
class Punching:
    """The punches of one beacon.

    Args:
      table: where nodes are; requests update it.
      is_registered: whether the registry knows a node.
      may_punch: whether the registry would tell the first node where the second is, and neither hides.
      is_unlimited: whether a source host is free of rate limits.
      endpoint_of: the endpoint, host:port, that a node has registered with its signature.
      drops: where to count requests that come to nothing.
    """

    table: EndpointTable
    is_registered: Callable[[NodeId], bool]
    may_punch: Callable[[NodeId, NodeId], bool]
    is_unlimited: Callable[[str], bool]
    endpoint_of: Callable[[NodeId], str]
    drops: Counter[Drop]
    punches: int = attrs.field(default=0, init=False)
    _rates: KeyedBuckets[str] = attrs.field(
        factory=lambda: KeyedBuckets(PUNCH_RATE, PUNCH_BURST, PUNCH_SOURCES), init=False
    )
    _all: TokenBucket = attrs.field(factory=lambda: TokenBucket(ALL_RATE, ALL_RATE), init=False)

    def commands(self, request: PunchRequest, source: Endpoint, now: float) -> list[tuple[bytes, Endpoint]]:
        """Return the commands to both nodes; none if the request is dropped, of which nobody is told."""
        limited = not self.is_unlimited(source.host)
        if limited and not self._rates.take(source_of(source.host), now):
            return self._drop(Drop.RATE_LIMITED)
        if not self.is_registered(request.requester) or not may_come_from(
            source.host, self.endpoint_of(request.requester)
        ):
            return self._drop(Drop.PUNCH_REFUSED)
        self.table.note_at_once(request.requester, source, now)
        requester = self.table.find(request.requester, now)
        target = self.table.find(request.target, now)
        if target is None or requester is None:
            return self._drop(Drop.UNKNOWN_TARGET)
        if not self.may_punch(request.requester, request.target):
            return self._drop(Drop.PUNCH_REFUSED)
        if limited and not self._all.take(now):
            return self._drop(Drop.RATE_LIMITED)
        self.punches += 1
        return [(PunchCommand(*target).encode(), requester), (PunchCommand(*requester).encode(), target)]

    def _drop(self, reason: Drop) -> list[tuple[bytes, Endpoint]]:
        self.drops[reason] += 1
        return []
