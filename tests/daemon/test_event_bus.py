from __future__ import annotations

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
