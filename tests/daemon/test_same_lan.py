from __future__ import annotations

import pytest

from pilot_trio.daemon.resolver import Route
from pilot_trio.daemon.same_lan import lan_endpoints, neighbour
from pilot_trio.net.endpoint import Endpoint

OWN = (Endpoint("192.168.1.5", 4000),)
OUTSIDE = "8.8.4.4"


def route(*lan: str, outside: str = f"{OUTSIDE}:4001") -> Route:
    return Route(Endpoint.parse(outside), tuple(map(Endpoint.parse, lan)))


@pytest.mark.parametrize(
    ("lan", "outside", "found"),
    [
        (["192.168.1.9:4001"], "8.8.4.4:4001", "192.168.1.9:4001"),
        (["10.0.0.9:1", "192.168.1.9:4001"], "8.8.4.4:4001", "192.168.1.9:4001"),
        (["192.168.1.9:4001"], "192.168.1.9:4001", "192.168.1.9:4001"),
        (["192.168.2.9:4001"], "8.8.4.4:4001", None),
        (["192.168.1.9:4001"], "8.8.4.5:4001", None),
        (["192.168.1.5:4000"], "8.8.4.4:4001", None),
        (["192.168.1.9:0"], "8.8.4.4:4001", None),
        (["[fd00::1]:4001"], "8.8.4.4:4001", None),
        ([], "8.8.4.4:4001", None),
    ],
    ids=[
        "the same network and router", "one of several", "a registry inside the same network", "another network",
        "the same addresses behind another router", "ourselves", "no port", "IPv6", "nothing known",
    ],
)  # fmt: skip
def test_a_neighbour_is_in_our_network_and_behind_our_router(lan: list[str], outside: str, found: str | None) -> None:
    endpoint = neighbour(route(*lan, outside=outside), OWN, f"{OUTSIDE}:4000")
    assert (None if endpoint is None else str(endpoint)) == found


def test_who_is_in_no_network_has_no_neighbours() -> None:
    assert neighbour(route("192.168.1.9:1"), (), f"{OUTSIDE}:4000") is None
    assert neighbour(route("192.168.1.9:1"), OWN, "") is None


@pytest.mark.parametrize(
    ("hosts", "bound", "expected"),
    [
        (["192.168.1.5"], "0.0.0.0", ["192.168.1.5:4000"]),
        (["192.168.1.5", "8.8.8.8", "127.0.0.1", "169.254.1.1", "0.0.0.0", "::1", "name"], "::", ["192.168.1.5:4000"]),
        (["192.168.1.5"], "127.0.0.1", []),
        (["192.168.1.5"], "10.1.1.1", ["10.1.1.1:4000"]),
        ([], "0.0.0.0", []),
    ],
    ids=["everywhere", "only private ones", "on loopback", "on one address", "no way out"],
)
def test_neighbours_are_told_private_addresses_only(hosts: list[str], bound: str, expected: list[str]) -> None:
    assert [str(endpoint) for endpoint in lan_endpoints(hosts, Endpoint(bound, 4000))] == expected
