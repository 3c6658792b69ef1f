"""What happens to datagrams on their way from one host to another: pure, seeded, with no clock of its own.

`Link` says what a path is like; `Direction` applies it to one datagram after the other, one way. Every direction has its own
random numbers, so what happens between two hosts depends on the seed and on what these two send, and on nobody else.
"""

from __future__ import annotations

import random
from math import inf
from typing import Any, Final, NamedTuple

import attrs

HEADERS: Final = 28  # bytes of IPv4 and UDP before every datagram; they take their share of the rate and of the MTU
_CORRUPTED_BITS_MAX: Final = 4  # bits flipped in a corrupted datagram, at most


def _share(_: object, field: attrs.Attribute[Any], value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{field.name} is a share between 0 and 1, not {value!r}")


def _not_negative(_: object, field: attrs.Attribute[Any], value: float) -> None:
    if not value >= 0.0:
        raise ValueError(f"{field.name} must not be negative, it is {value!r}")


def _positive(_: object, field: attrs.Attribute[Any], value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{field.name} must be positive, it is {value!r}")


@attrs.frozen(kw_only=True)
class Link:
    """What one direction of a path does to datagrams. The default is a perfect path.

    Shares are of all datagrams, independent of each other but for `burst`.
    """

    delay: float = attrs.field(default=0.0, validator=_not_negative)
    """Seconds from one end to the other."""
    jitter: float = attrs.field(default=0.0, validator=_not_negative)
    """Seconds added at most, evenly distributed; keeps the order, as a queue does."""
    loss: float = attrs.field(default=0.0, validator=_share)
    """Share that never arrives."""
    burst: float = attrs.field(default=1.0, validator=_positive)
    """How many are lost in a row, on average; above 1, losses come in bursts, the share stays the same."""
    duplication: float = attrs.field(default=0.0, validator=_share)
    """Share that arrives twice."""
    reordering: float = attrs.field(default=0.0, validator=_share)
    """Share that is held up for `reordering_delay`, so that later ones overtake it."""
    reordering_delay: float = attrs.field(default=0.01, validator=_not_negative)
    """Seconds."""
    corruption: float = attrs.field(default=0.0, validator=_share)
    """Share that arrives with flipped bits."""
    rate: float = attrs.field(default=inf, validator=_positive)
    """Bytes per second, headers included, that the narrowest hop carries."""
    queue: float = attrs.field(default=256 * 1024, validator=_positive)
    """Bytes that wait before the narrowest hop; what exceeds them is lost."""
    mtu: int = attrs.field(default=65_535, validator=_positive)
    """Bytes of the largest packet, headers included; larger ones are lost, as where fragments are filtered."""


class Arrival(NamedTuple):
    """A datagram, or a copy of it, that will arrive."""

    at: float
    data: bytes


@attrs.define
class LinkStatistics:
    """What one direction, or all of them together, did to datagrams."""

    sent: int = 0
    sent_bytes: int = 0  # payload only
    carried: int = 0  # copies included; what arrives at a full or closed socket too
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    too_long: int = 0  # beyond the MTU
    queue_full: int = 0

    def add(self, other: LinkStatistics) -> None:
        """Add the counters of another direction to these."""
        for field in attrs.fields(LinkStatistics):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Direction:
    """One direction of a path, and what it has carried so far.

    Args:
      link: what it is like; may be replaced at any time.
      seed: equal seeds and equal datagrams at equal times give equal fates.
    """

    def __init__(self, link: Link, seed: str) -> None:
        self.link = link
        self.counted: Final = LinkStatistics()
        self._random = random.Random(seed)
        self._busy_until = 0.0  # when the narrowest hop has sent what waits there
        self._last_arrival = 0.0  # of those in order
        self._losing = False  # inside a burst

    def carry(self, data: bytes, now: float) -> list[Arrival]:
        """Return when, and as what, a datagram sent now arrives: nowhere, once or twice."""
        link, counted = self.link, self.counted
        counted.sent += 1
        counted.sent_bytes += len(data)
        size = len(data) + HEADERS
        if size > link.mtu:
            counted.too_long += 1
            return []
        leaves = self._leaves(size, now)
        if leaves is None:
            counted.queue_full += 1
            return []
        if self._is_lost():
            counted.lost += 1
            return []
        arrivals = [self._arrival(data, leaves)]
        if self._happens(link.duplication):
            counted.duplicated += 1
            arrivals.append(self._arrival(data, leaves))
        counted.carried += len(arrivals)
        return arrivals

    def _leaves(self, size: int, now: float) -> float | None:
        """Return when the narrowest hop has sent a packet, None if its queue is full."""
        if self.link.rate == inf:
            return now
        start = max(now, self._busy_until)
        if (start - now) * self.link.rate + size > self.link.queue:
            return None
        self._busy_until = start + size / self.link.rate
        return self._busy_until

    def _is_lost(self) -> bool:
        """Decide on a loss: a path that is either fine or losing everything (Gilbert's model)."""
        loss, burst = self.link.loss, max(1.0, self.link.burst)
        if loss >= 1.0 or burst == 1.0:
            return self._happens(loss)
        starts = min(1.0, loss / (burst * (1.0 - loss)))
        self._losing = not self._happens(1.0 / burst) if self._losing else self._happens(starts)
        return self._losing

    def _arrival(self, data: bytes, leaves: float) -> Arrival:
        link = self.link
        at = leaves + link.delay
        if link.jitter:
            at += self._random.random() * link.jitter
        if self._happens(link.reordering):
            self.counted.reordered += 1
            at += link.reordering_delay
        else:
            at = self._last_arrival = max(at, self._last_arrival)
        if data and self._happens(link.corruption):
            self.counted.corrupted += 1
            data = self._corrupted(data)
        return Arrival(at, data)

    def _corrupted(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        bits = range(len(data) * 8)
        for bit in self._random.sample(bits, min(len(bits), self._random.randint(1, _CORRUPTED_BITS_MAX))):
            damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    def _happens(self, share: float) -> bool:
        # No number is drawn for what cannot happen: switching one impairment on leaves the others' luck alone at share 0.
        return share > 0.0 and self._random.random() < share
