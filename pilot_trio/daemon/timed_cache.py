"""A bounded table of answers with the time at which they were given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

FRESH: Final = 60.0  # seconds during which the registry is not asked again; protocol, `spec/ipc.md` §5.4
STALE: Final = 3600.0  # seconds during which an answer serves while it cannot be asked; protocol, registry §4.4

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TimedCache(Generic[K, V]):
    """Keeps the `max_entries` newest values. How old is too old is the reader's question: `get` takes a `max_age`."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, now: float) -> None:
        """Keep `value` as of `now`; the oldest entry makes room."""
        self._entries[key] = (now, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def get(self, key: K, now: float, max_age: float) -> V | None:
        """Return the value if it is younger than `max_age` seconds."""
        entry = self._entries.get(key)
        return entry[1] if entry is not None and now - entry[0] < max_age else None

    def rows(self) -> Iterator[tuple[K, float, V]]:
        """Yield keys, times and values, the oldest first."""
        return ((key, at, value) for key, (at, value) in self._entries.items())

    def make_older(self, key: K, now: float, age: float) -> None:
        """Take the entry, if there is one, for at least `age` seconds old."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries[key] = (min(entry[0], now - age), entry[1])

    def forget(self, key: K) -> None:
        """Drop the entry, if there is one."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()
