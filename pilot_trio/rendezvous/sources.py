"""Who a request comes from, as far as limits go: one host, or one IPv6 network, which a single host can fill."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from pilot_trio.errors import LocalProtocolError
from pilot_trio.net.addresses import is_public
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.settings import IPNetwork
from pilot_trio.wire.beacon import normalise_host

IPV6_PREFIX: Final = 64  # bits; whoever has one address has all of its /64 to come from
_REMEMBERED: Final = 4096  # hosts whose parsed form is kept; parsing costs more than the limit that it serves


@lru_cache(_REMEMBERED)
def source_of(host: str) -> str:
    """Return what limits count by: the host itself, or its /64 for IPv6. What is no address counts as it is."""
    try:
        address = ipaddress.ip_address(normalise_host(host))
    except LocalProtocolError:
        return host
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((int(address), IPV6_PREFIX), strict=False))


def may_come_from(host: str, registered: str) -> bool:
    """Say whether a datagram from a host may be of a node that has registered an endpoint, host:port.

    A name, or an address in a private network, says too little to refuse anything but the opposite.
    """
    try:
        own = normalise_host(Endpoint.parse(registered).host)
    except (ValueError, LocalProtocolError):
        return True
    return host == own if is_public(own) else not is_public(host)


@lru_cache(_REMEMBERED)
def is_loopback(host: str) -> bool:
    """Say whether a host is this machine."""
    try:
        return ipaddress.ip_address(normalise_host(host)).is_loopback
    except LocalProtocolError:
        return False


class Privileged:
    """The hosts that are free of limits by source."""

    def __init__(self, networks: Collection[IPNetwork]) -> None:
        self._networks = tuple(networks)
        self.contains = lru_cache(_REMEMBERED)(self._contains)
        """Say whether a host is among them."""

    def _contains(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(normalise_host(host))
        except LocalProtocolError:
            return False
        return any(address in network for network in self._networks)
