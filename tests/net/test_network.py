"""What the machine's own network says of a route."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import pytest

from pilot_trio.net.network import ROUTE_MTU_LEAST, Endpoint, SystemNetwork


def test_the_loopback_interface_says_what_it_takes() -> None:
    linux = sys.platform == "linux"  # elsewhere nothing tells
    assert SystemNetwork().route_mtu(Endpoint("127.0.0.1", 9)) >= (16_384 if linux else ROUTE_MTU_LEAST)


@pytest.mark.parametrize("host", ["no address at all", "999.1.1.1"])
def test_where_there_is_no_way_nothing_is_promised(host: str) -> None:
    assert SystemNetwork().route_mtu(Endpoint(host, 9)) == ROUTE_MTU_LEAST


NO_NAMES = ["a..b", ".a", "a" * 300, "☃☃.☃", "xn--a", "\ud800", "a\x00b", "a b", "[v1]", "\u0661.2.3.4"]
WAYS: list[Callable[[SystemNetwork, Endpoint], Awaitable[object]]] = [
    SystemNetwork.resolve,
    SystemNetwork.open_tcp,
    SystemNetwork.open_udp,
    SystemNetwork.listen_tcp,
]


@pytest.mark.parametrize("host", NO_NAMES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_host_that_can_be_no_name_is_an_error_of_the_network(
    way: Callable[[SystemNetwork, Endpoint], Awaitable[object]], host: str
) -> None:
    with pytest.raises(OSError, match=r".+"):
        await way(SystemNetwork(), Endpoint(host, 9))


@pytest.mark.parametrize("host", NO_NAMES)
def test_what_can_be_no_name_has_no_way(host: str) -> None:
    assert SystemNetwork().source_host(Endpoint(host, 9)) == ""
    assert SystemNetwork().route_mtu(Endpoint(host, 9)) == ROUTE_MTU_LEAST
