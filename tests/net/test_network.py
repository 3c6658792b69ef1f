"""What the machine's own network says of a route."""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from pilot_trio.net.network import ROUTE_MTU_LEAST, Endpoint, SystemNetwork


def test_the_loopback_interface_says_what_it_takes() -> None:
    linux = sys.platform == "linux"  # elsewhere nothing tells
    assert SystemNetwork().route_mtu(Endpoint("127.0.0.1", 9)) >= (16_384 if linux else ROUTE_MTU_LEAST)


@pytest.mark.parametrize("host", ["no address at all", "999.1.1.1"])
def test_where_there_is_no_way_nothing_is_promised(host: str) -> None:
    assert SystemNetwork().route_mtu(Endpoint(host, 9)) == ROUTE_MTU_LEAST


class BothFamilies(trio.abc.HostnameResolver):
    """A name service that prefers IPv6, as many machines do."""

    async def getaddrinfo(
        self,
        host: object,
        port: object,
        family: int = 0,
        type: int = 0,  # noqa: A002 - its callers name it
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        rows = [(socket.AF_INET6, "2001:db8::9"), (socket.AF_INET, "192.0.2.9")]
        return [(kind, type, 0, "", (address, port)) for kind, address in rows if family in (0, kind)]

    async def getnameinfo(self, sockaddr: object, flags: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("at", "host"),
    [(None, "2001:db8::9"), ("::", "2001:db8::9"), ("0.0.0.0", "192.0.2.9"), ("192.0.2.1", "192.0.2.9")],
)
async def test_a_socket_is_told_an_address_that_it_can_send_to(at: str | None, host: str) -> None:
    trio.socket.set_custom_hostname_resolver(BothFamilies())
    bound = None if at is None else Endpoint(at, 4000)
    assert await SystemNetwork().resolve(Endpoint("dual.example", 9001), bound) == Endpoint(host, 9001)


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
