"""The daemon's event bus: topics to subscribers, inside the process (`spec/services.md` §7.1).

Publishing never waits and never fails: a subscriber whose queue is full loses the event, and its loss is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

SUBSCRIBERS_MAX: Final = 64  # in-process parts that listen; a larger number means that one forgets to leave


class Event(NamedTuple):
    """One thing that happened. `data` is a JSON object, or None where the protocol sends none."""

    topic: str
    data: dict[str, Any] | None


Listener = Callable[[Event], None]


class EventBus:
    """Fan-out of events to plain functions, in subscription order, in the publisher's task.

    A listener must not wait; to do more, put the event into a bounded channel of your own (`send_nowait`).
    """

    def __init__(self) -> None:
        self._listeners: dict[int, tuple[Listener, str]] = {}
        self._heard: frozenset[str] = frozenset()  # topics that somebody listens to; the empty one is all of them
        self._next_key = 1

    def hears(self, topic: str) -> bool:
        """Say whether anybody listens to a topic. Ask before data is put together for what happens often."""
        return topic in self._heard or "" in self._heard

    def hears_any(self, topics: Iterable[str]) -> bool:
        """Say whether anybody listens to one of some topics."""
        return "" in self._heard or not self._heard.isdisjoint(topics)

    def publish(self, topic: str, data: dict[str, Any] | None = None) -> None:
        """Tell every listener. Costs next to nothing without listeners."""
        if self.hears(topic):
            event = Event(topic, data)
            for listener, wanted in list(self._listeners.values()):
                if not wanted or wanted == topic:
                    listener(event)

    def subscribe(self, listener: Listener, topic: str = "") -> Callable[[], None]:
        """Add a listener, to one topic or to all; the function returned removes it again."""
        if len(self._listeners) >= SUBSCRIBERS_MAX:
            raise RuntimeError(
                f"{SUBSCRIBERS_MAX} listeners already: one of the parts subscribes without unsubscribing"
            )
        key, self._next_key = self._next_key, self._next_key + 1
        self._listeners[key] = (listener, topic)
        self._note_topics()

        def unsubscribe() -> None:
            self._listeners.pop(key, None)
            self._note_topics()

        return unsubscribe

    def _note_topics(self) -> None:
        self._heard = frozenset(topic for _, topic in self._listeners.values())
