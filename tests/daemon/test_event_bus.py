from __future__ import annotations

import pytest

from pilot_trio.daemon.events import Event, EventBus


def test_listeners_get_all_topics_or_the_one_that_they_want() -> None:
    bus = EventBus()
    everything: list[Event] = []
    some: list[Event] = []
    stop = bus.subscribe(everything.append)
    bus.subscribe(some.append, "b")
    bus.publish("a", {"x": 1})
    bus.publish("b")
    assert everything == [("a", {"x": 1}), ("b", None)]
    assert some == [("b", None)]
    stop()
    stop()
    bus.publish("b")
    assert len(everything) == 2
    assert len(some) == 2


def test_a_topic_is_heard_while_somebody_listens() -> None:
    bus = EventBus()
    assert not bus.hears("a")
    leave = bus.subscribe(lambda event: None, "a")
    assert (bus.hears("a"), bus.hears("b")) == (True, False)
    leave_all = bus.subscribe(lambda event: None)
    assert bus.hears("b")
    leave_all()
    leave()
    assert not bus.hears("a")


def test_sixty_five_listeners_are_a_defect_and_those_that_left_do_not_count() -> None:
    bus = EventBus()
    leave = [bus.subscribe(lambda event: None, "a") for _ in range(64)]
    with pytest.raises(RuntimeError, match="64 listeners already"):
        bus.subscribe(lambda event: None)
    leave[0]()
    bus.subscribe(lambda event: None)
