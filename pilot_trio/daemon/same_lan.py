"""Nodes behind one router: they reach each other by the addresses that they have inside (`spec/tunnel.md` §10.5).

Few routers send back what comes from inside to their own public address, so the endpoint that the registry knows is of no
use to a neighbour. Private addresses are the same in many homes: one counts only if it is in a network of ours, and if the
rest of the world sees both nodes at one address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from pilot_trio.daemon.resolver import Route
from pilot_trio.net.addresses import is_public, is_unspecified
from pilot_trio.net.endpoint import Endpoint

LAN_PREFIX: Final = 24  # bits that two addresses in one network share; protocol, `spec/tunnel.md` §10.5


def lan_endpoints(hosts: Iterable[str], bound: Endpoint) -> tuple[Endpoint, ...]:
    """Return where neighbours reach a socket.

    Args:
      hosts: this machine's own addresses.
      bound: where the socket is bound; to one address: then that is the only one.
    """
    hosts = hosts if is_unspecified(bound.host) else (bound.host,)
    return tuple(Endpoint(host, bound.port) for host in hosts if _network_of(host) is not None)


def neighbour(route: Route, own_lan: Sequence[Endpoint], own_endpoint: str) -> Endpoint | None:
    """Return where a node is reached inside our own network, None if it is not there."""
    if is_public(route.endpoint.host) and route.endpoint.host != _host(own_endpoint):
        return None
    networks = {_network_of(own.host) for own in own_lan}
    for endpoint in route.lan_endpoints:
        if (
            endpoint.port
            and endpoint not in own_lan
            and (network := _network_of(endpoint.host))
            and network in networks
        ):
            return endpoint
    return None


def _network_of(host: str) -> ipaddress.IPv4Network | None:
    """Return the private network of an address, None if it is in none that neighbours share."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return None
    if not address.is_private or address.is_loopback or address.is_link_local or address.is_unspecified:
        return None
    return ipaddress.IPv4Network((address, LAN_PREFIX), strict=False)


def _host(endpoint: str) -> str:
    try:
        return Endpoint.parse(endpoint).host
    except ValueError:
        return ""
