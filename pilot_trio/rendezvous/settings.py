"""What an operator can choose about a rendezvous: where it listens, what it keeps, who may administer it.

A plain value without I/O; `config` re-exports it and reads it from flags and files.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

import attrs

from pilot_trio.errors import ConfigError
from pilot_trio.net.endpoint import Endpoint

REGISTRY_ENDPOINT: Final = Endpoint("127.0.0.1", 9000)  # the protocol's default port; registry terms
BEACON_ENDPOINT: Final = Endpoint("127.0.0.1", 9001)  # the protocol's default port; registry terms
STALE_THRESHOLD: Final = 30 * 60.0  # seconds without a heartbeat before a node's record is reaped; registry §9.1

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Local programs are free of limits by source: many nodes may share a machine, and a local flood needs no network.
LOOPBACK_NETWORKS: Final[tuple[IPNetwork, ...]] = (
    ipaddress.IPv4Network("127.0.0.0/8"),
    ipaddress.IPv6Network("::1/128"),
)


def _networks(value: tuple[str | IPNetwork, ...]) -> tuple[IPNetwork, ...]:
    parsed: list[IPNetwork] = []
    for item in value:
        try:
            parsed.append(ipaddress.ip_network(item))
        except ValueError as exc:
            raise ConfigError(f"rendezvous unlimited network {item!r}: {exc}; write for example 10.0.0.0/8") from exc
    return tuple(parsed)


def _stale_threshold(_instance: object, _attribute: object, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"rendezvous stale threshold {value!r} must be positive; write for example 1800")


@attrs.frozen(kw_only=True)
class RendezvousConfig:
    """Settings of one rendezvous. Ports may be 0: the handle of the running server says which ones were taken."""

    registry: Endpoint | None = REGISTRY_ENDPOINT  # plaintext listener; None: TLS only
    tls: Endpoint | None = None  # additional listener that speaks TLS
    tls_certificate: Path | None = None  # PEM chain; None: a self-signed one is made and kept beside the store
    tls_key: Path | None = None  # PEM, unencrypted; goes with `tls_certificate`
    beacon: Endpoint | None = BEACON_ENDPOINT
    beacon_advertise: str = ""  # host:port that relay-only nodes are listed under; "": the beacon's own endpoint
    http: Endpoint | None = None  # pages for people and monitoring; None: none
    store: Path | None = None  # database file; None: in memory, forgotten at the end
    admin_token: str = attrs.field(default="", repr=False)  # "": administrative requests are refused
    allow_unsigned: bool = False  # take registrations without signature, as daemons before 1.13 send them
    stale_threshold: float = attrs.field(default=STALE_THRESHOLD, validator=_stale_threshold)  # seconds
    unlimited: tuple[IPNetwork, ...] = attrs.field(  # sources free of limits that go by source
        default=LOOPBACK_NETWORKS, converter=_networks
    )

    def __attrs_post_init__(self) -> None:
        if self.registry is None and self.tls is None:
            raise ConfigError("a rendezvous needs a registry listener: give it a plaintext or a TLS endpoint")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("a TLS certificate and its key go together: give both files or neither")
        if self.tls_certificate is not None and self.tls is None:
            raise ConfigError("a TLS certificate without a TLS endpoint would not be used: give the endpoint too")
