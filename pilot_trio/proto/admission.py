"""Which strangers may open a stream: rate limits and the reply window (`spec/transport.md` §3.3). Pure: time comes in."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT, HANDSHAKE_PORT

SYN_RATE_PER_SOURCE: Final = 10.0  # SYNs per second and node; protocol §3.3
SYN_BURST_PER_SOURCE: Final = 64  # SYNs; protocol §3.3
SYN_SOURCES_MAX: Final = 4096  # nodes tracked; protocol §3.3
SYN_SOURCE_IDLE: Final = 10.0  # seconds after which an unused bucket is forgotten; protocol §3.3
REPLY_WINDOW: Final = 300.0  # seconds in which a peer that we contacted may answer on its own; protocol §3.3.1
REPLY_GRAIN: Final = 0.1  # seconds; to less than this nobody will ever see a difference
REPLY_PEERS_MAX: Final = 4096  # peers that may; protocol §3.3.1
REPLY_PORTS: Final = frozenset(
    {DATA_EXCHANGE_PORT, HANDSHAKE_PORT}
)  # where they may: data exchange and trust; protocol §3.3.1


class SynLimits:
    """How many SYNs are answered: per source first, then over all."""

    def __init__(self, rate: float, whitelist: frozenset[int] | None = frozenset()) -> None:
        """Take the global rate per second (also its burst), and the nodes that skip both limits (None: all)."""
        self._whitelist = whitelist
        self._per_source: KeyedBuckets[int] = KeyedBuckets(
            SYN_RATE_PER_SOURCE, SYN_BURST_PER_SOURCE, SYN_SOURCES_MAX, SYN_SOURCE_IDLE
        )
        self._all = TokenBucket(rate, rate, whole=True) if rate > 0 else None

    def admits(self, node: int, now: float) -> bool:
        """Say whether one more SYN of a node is answered."""
        if self._whitelist is None or node in self._whitelist:
            return True
        return self._per_source.take(node, now) and (self._all is None or self._all.take(now))


class ReplyWindow:
    """Peers that this node contacted a short while ago. Filled by our own acts only."""

    def __init__(self) -> None:
        self._until: OrderedDict[int, float] = OrderedDict()  # {node: until}, oldest first: one duration for all

    def note(self, node: int, now: float) -> None:
        """Remember that we contacted a node. When the table is full of live entries, it is not remembered."""
        if self._until.get(node, now) > now + REPLY_WINDOW - REPLY_GRAIN:
            return  # noted a moment ago: a short dial costs less than this table would
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if node in self._until:
            del self._until[node]
        elif len(self._until) >= REPLY_PEERS_MAX:
            return
        self._until[node] = now + REPLY_WINDOW

    def admits(self, node: int, port: int, now: float) -> bool:
        """Say whether a node may open a stream to a port although nobody trusts it."""
        return port in REPLY_PORTS and self._until.get(node, now) > now
