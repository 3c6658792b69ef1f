"""What turns a peer to the relay and back."""

from __future__ import annotations

import pytest

from pilot_trio.proto.tunnel.route import RELAY_ONLY, SILENT, Route

OLD, NEW = ("11.0.0.1", 4000), ("11.0.0.1", 4001)


def silenced(why: str = SILENT) -> Route:
    route = Route(address=OLD)
    route.turn_to_relay(why, pin=True)
    return route


def test_a_new_endpoint_ends_the_relay_that_the_silence_of_the_old_one_began() -> None:
    route = silenced()
    assert route.arrived_directly(NEW, 1.0, newest=True)
    assert (route.address, route.relay, route.pinned, route.why) == (NEW, False, False, "")


@pytest.mark.parametrize(
    ("route", "source", "newest"),
    [(silenced(), OLD, True), (silenced(), NEW, False), (silenced(RELAY_ONLY), NEW, True)],
    ids=["the endpoint is the old one", "the packet is late", "one of both hides its endpoint"],
)
def test_nothing_else_ends_a_pinned_relay(route: Route, source: tuple[str, int], newest: bool) -> None:
    assert not any(route.arrived_directly(source, 1.0, newest=newest) for _ in range(10))
    assert route.relay
