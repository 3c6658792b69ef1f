"""Endpoints as text: what a registry stores for a node that advertises itself (`spec/registry.md` §4.1)."""

from __future__ import annotations

import ipaddress
from typing import Final

_PRIVATE: Final = tuple(
    ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)


def join_host_port(host: str, port: int | str) -> str:
    """Return `host:port`, with brackets around an IPv6 literal."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, int] | None:
    """Return host and port of `host:port`, None if it is not that. The host may be empty."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 0xFFFF:
        return None
    return host, int(port)


def stored_endpoint(advertised: str, source_host: str, source_port: int) -> str:
    """Return the endpoint to store: as advertised, but a host that others cannot reach becomes the source address."""
    if not advertised:
        return join_host_port(source_host, source_port)
    parts = split_host_port(advertised)
    if parts is None:
        return advertised
    host, port = parts
    return join_host_port(source_host, port) if not host or _unreachable(host) else advertised


def _unreachable(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name: whoever resolves it knows better
    if address.is_unspecified or address.is_loopback or address.is_link_local:
        return True
    return any(address.version == net.version and address in net for net in _PRIVATE)
