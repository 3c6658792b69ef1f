"""What the machine's own network says of a route."""

from __future__ import annotations

import sys

import pytest

from pilot_trio.net.network import ROUTE_MTU_LEAST, Endpoint, SystemNetwork


def test_the_loopback_interface_says_what_it_takes() -> None:
    linux = sys.platform == "linux"  # elsewhere nothing tells
    assert SystemNetwork().route_mtu(Endpoint("127.0.0.1", 9)) >= (16_384 if linux else ROUTE_MTU_LEAST)


@pytest.mark.parametrize("host", ["no address at all", "999.1.1.1"])
def test_where_there_is_no_way_nothing_is_promised(host: str) -> None:
    assert SystemNetwork().route_mtu(Endpoint(host, 9)) == ROUTE_MTU_LEAST
