"""What an IP address is good for."""

from __future__ import annotations

import ipaddress

from pilot_trio.net.endpoint import Endpoint

_LOOPBACK_OF = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (compared with, not bound)


def is_literal(host: str) -> bool:
    """Say whether `host` is an address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_unspecified(host: str) -> bool:
    """Say whether `host` means every address of this machine."""
    return host in _LOOPBACK_OF


def is_public(host: str) -> bool:
    """Say whether `host` is an address literal that others on the Internet can reach."""
    if not is_literal(host):
        return False
    address = ipaddress.ip_address(host)
    unusable = (
        address.is_private,
        address.is_loopback,
        address.is_link_local,
        address.is_unspecified,
        address.is_multicast,
    )
    return not any(unusable)


def on_this_machine(endpoint: Endpoint) -> Endpoint:
    """Return where a socket bound to `endpoint` is reached from its own machine: one on every address, on loopback."""
    return Endpoint(_LOOPBACK_OF.get(endpoint.host, endpoint.host), endpoint.port)
