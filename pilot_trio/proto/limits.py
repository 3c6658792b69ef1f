"""Token buckets: the one implementation behind every rate limit.

A bucket holds up to `burst` tokens and gains `rate` of them per second; an event that finds no token is over the limit.
`KeyedBuckets` keeps one bucket per source in a table with a bound. The table is never full for ever: what is idle goes
first, and if nothing is idle the source that was quiet longest makes room, so a new source is always judged by a bucket
of its own.

`now` may be any clock that counts seconds. A clock that steps back costs no tokens and stops no refill.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

K = TypeVar("K", bound=Hashable)

_SWEEP_PER_TAKE = 2  # idle buckets dropped per call: more than one call can add, so the table shrinks when sources go


@attrs.define(eq=False)
class TokenBucket:
    """One limit. It starts full."""

    rate: float  # tokens per second
    burst: float  # tokens at most, and at the start
    whole: bool = False  # refill in whole tokens only: 0.9 of a period brings nothing, and the rest is kept
    _tokens: float = attrs.field(init=False)
    _filled_at: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        if self.rate <= 0 or self.burst <= 0:
            raise ValueError(f"a bucket needs a positive rate and burst, got {self.rate}/s and {self.burst}")
        self._tokens = self.burst

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take `tokens` if they are there and say whether they were; a refusal takes nothing."""
        self._refill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def available(self, now: float) -> float:
        """Return how many tokens are there at `now`."""
        self._refill(now)
        return self._tokens

    def next_at(self, now: float, tokens: float = 1.0) -> float:
        """Return when `take(…, tokens)` will succeed if nobody takes before: `now`, later, or `math.inf` (over `burst`)."""
        self._refill(now)
        if tokens > self.burst:
            return math.inf
        missing = tokens - self._tokens
        if missing <= 0:
            return now
        if self.whole:
            return self._filled_at + math.ceil(missing) / self.rate
        return now + missing / self.rate

    def _refill(self, now: float) -> None:
        elapsed = now - self._filled_at
        if elapsed <= 0:
            if elapsed < 0:
                self._filled_at = now
            return
        gained = elapsed * self.rate
        if self._tokens + gained >= self.burst:
            self._tokens = self.burst
            self._filled_at = now
        elif self.whole:
            # The small part of a token that rounding may cost is given back: a caller that waits for `next_at` gets it.
            tokens = math.floor(gained + 1e-9)
            self._tokens += tokens
            self._filled_at += tokens / self.rate
        else:
            self._tokens += gained
            self._filled_at = now


@attrs.define(eq=False)
class KeyedBuckets(Generic[K]):
    """One bucket per key, `max_keys` at most; idle ones are forgotten.

    A bucket idle for `burst / rate` seconds is full, that is as good as new, so forgetting it then changes nothing; a
    shorter `idle_after` forgives earlier. Entries are kept in the order of their last use, so both kinds of eviction look
    at the front only.
    """

    rate: float  # tokens per second and key
    burst: float  # tokens at most per key
    max_keys: int
    idle_after: float | None = None  # seconds without use; None: as soon as the bucket is full again
    whole: bool = False
    evicted: int = attrs.field(init=False, default=0)  # buckets dropped for room while still in use
    _buckets: OrderedDict[K, tuple[TokenBucket, float]] = attrs.field(init=False, factory=OrderedDict)

    def __attrs_post_init__(self) -> None:
        if self.max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, got {self.max_keys}")
        TokenBucket(self.rate, self.burst)
        if self.idle_after is None:
            self.idle_after = self.burst / self.rate

    def take(self, key: K, now: float, tokens: float = 1.0) -> bool:
        """Take `tokens` from the bucket of `key` and say whether they were there."""
        self._sweep(now)
        entry = self._buckets.get(key)
        if entry is None:
            if len(self._buckets) >= self.max_keys:
                self._buckets.popitem(last=False)
                self.evicted += 1
            bucket = TokenBucket(self.rate, self.burst, self.whole)
        else:
            bucket = entry[0]
        self._buckets[key] = (bucket, now)
        self._buckets.move_to_end(key)
        return bucket.take(now, tokens)

    def forget(self, key: K) -> None:
        """Drop the bucket of `key`, if there is one."""
        self._buckets.pop(key, None)

    def __len__(self) -> int:
        return len(self._buckets)

    def _sweep(self, now: float) -> None:
        assert self.idle_after is not None
        for _ in range(min(_SWEEP_PER_TAKE, len(self._buckets))):
            key = next(iter(self._buckets))
            used_at = self._buckets[key][1]
            if used_at <= now < used_at + self.idle_after:
                return
            # Idle, or used in the future: the clock stepped back, and waiting for that time could take for ever.
            del self._buckets[key]
