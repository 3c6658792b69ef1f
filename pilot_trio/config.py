"""Every setting of a node, as frozen values in groups.

`Config()` is a complete node: an embedded rendezvous on loopback, state below `~/.pilot`. Flags, environment and
configuration files are read elsewhere (`cli`) and end up here. A value that cannot work raises `ConfigError`, which
names the setting, the value and the remedy; so whoever holds a `Config` need not check it again.

Loads without Trio, so that a command line can show its help quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from pilot_trio.errors import ConfigError
from pilot_trio.net.endpoint import Endpoint as Endpoint
from pilot_trio.paths import default_home as default_home
from pilot_trio.paths import default_socket as default_socket
from pilot_trio.rendezvous.settings import RendezvousConfig as RendezvousConfig
from pilot_trio.wire.dataexchange import FRAME_MAX_DEFAULT, FRAME_MAX_LEAST, FRAME_MAX_MOST

KEEPALIVE: Final = 60.0  # seconds between heartbeats; protocol default, `spec/registry.md` §6.2
KEEPALIVE_MIN: Final = 0.1  # seconds; a node that beats faster than this floods its registry
IDLE_TIMEOUT: Final = 120.0  # seconds until an idle stream is closed; protocol default, `spec/services.md` §8.1
STREAM_KEEPALIVE: Final = 60.0  # seconds of silence before a stream probes its peer; protocol default
TIME_WAIT: Final = 10.0  # seconds that a closed stream's ports stay reserved; protocol default
CONNECTIONS_PER_PORT_MAX: Final = 1024  # streams on one listening port; protocol default
CONNECTIONS_TOTAL_MAX: Final = 65_536  # streams in all; protocol default
SYN_RATE_LIMIT: Final = 100  # stream openings per second from others; protocol default
REGISTRY_CONNECTIONS: Final = 4  # TCP connections to the registry; protocol default, `spec/registry.md` §2.5
REGISTRY_CONNECTIONS_MAX: Final = 64  # more would be one node taking the share of many
AUTO_JOIN_MAX: Final = 256  # networks to join at start; each costs a request before the node is ready

_SHA256_HEX_DIGITS: Final = 64


def _endpoint(value: Endpoint | str) -> Endpoint:
    if isinstance(value, Endpoint):
        return value
    try:
        return Endpoint.parse(value)
    except ValueError as exc:
        raise ConfigError(f"endpoint {exc}") from exc


def _optional_endpoint(value: Endpoint | str | None) -> Endpoint | None:
    return None if value is None else _endpoint(value)


def _endpoints(value: Endpoint | str | Iterable[Endpoint | str]) -> tuple[Endpoint, ...]:
    return tuple(_endpoint(item) for item in ([value] if isinstance(value, str | Endpoint) else value))


def _ids(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


def _whitelist(value: Iterable[int] | None) -> frozenset[int] | None:
    return None if value is None else frozenset(value)


def _path(value: Path | str) -> Path:
    return Path(value).expanduser()


def _optional_path(value: Path | str | None) -> Path | None:
    return None if value is None else _path(value)


def _fingerprint(value: str) -> str:
    # Tools print fingerprints in capitals and with colons; the comparison is over lowercase digits.
    return value.replace(":", "").lower()


Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _setting(instance: object, attribute: attrs.Attribute[Any]) -> str:
    group = type(instance).__name__
    return attribute.name if group == "Config" else f"{group}.{attribute.name}"


def _seconds(minimum: float = 0.0) -> Validator:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < math.inf:
            raise ConfigError(
                f"{_setting(instance, attribute)} is {value!r}; give seconds, at least {minimum:g}, for example 60"
            )

    return check


def _count(minimum: int, maximum: int) -> Validator:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ConfigError(
                f"{_setting(instance, attribute)} is {value!r}; give a whole number from {minimum} to {maximum}"
            )

    return check


def _flag(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{_setting(instance, attribute)} is {value!r}; give True or False")


def _text(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{_setting(instance, attribute)} is {value!r}; give a text")


def _secret(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{_setting(instance, attribute)} is not a text; give a text")


def _registry_trust(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("pinned", "system"):
        raise ConfigError(f"{_setting(instance, attribute)} is {value!r}; give 'pinned' or 'system'")


def _sha256(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if value and (len(value) != _SHA256_HEX_DIGITS or not set(value) <= set("0123456789abcdef")):
        raise ConfigError(f"{_setting(instance, attribute)} is {value!r}; give the 64 hex digits of a SHA-256")


def _network_ids(instance: object, attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    bad = [item for item in value if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= 0xFFFF]
    if bad:
        raise ConfigError(f"{_setting(instance, attribute)} holds {bad[0]!r}; give network ids from 0 to 65535")
    if len(value) > AUTO_JOIN_MAX:
        raise ConfigError(f"{_setting(instance, attribute)} holds {len(value)} ids; give at most {AUTO_JOIN_MAX}")


@attrs.frozen(kw_only=True)
class RegistryConfig:
    """How the node reaches its registry (`spec/registry.md` §2.4, §2.5)."""

    endpoint: Endpoint | None = attrs.field(default=None, converter=_optional_endpoint)
    """Where the registry listens; None: the embedded rendezvous."""
    tls: bool = attrs.field(default=False, validator=_flag)
    trust: Literal["pinned", "system"] = attrs.field(default="pinned", validator=_registry_trust)
    """What makes its certificate acceptable: its fingerprint, or the system's authorities and the host name."""
    fingerprint: str = attrs.field(default="", converter=_fingerprint, validator=_sha256)
    """SHA-256 of the certificate in hex; capitals and colons do not matter."""
    fail_fast: bool = attrs.field(default=False, validator=_flag)
    """Give up, as the original does, if the registry cannot be reached at the start, instead of trying for ever."""
    connections: int = attrs.field(default=REGISTRY_CONNECTIONS, validator=_count(1, REGISTRY_CONNECTIONS_MAX))

    def __attrs_post_init__(self) -> None:
        if self.tls and self.trust == "pinned" and not self.fingerprint:
            raise ConfigError(
                "registry TLS with -registry-trust=pinned requires RegistryFingerprint: RegistryConfig.fingerprint is ''; "
                "give the SHA-256 of the registry's certificate, or use trust 'system'"
            )


@attrs.frozen(kw_only=True)
class ServicesConfig:
    """Which built-in services run (`spec/services.md` §2-§4)."""

    echo: bool = attrs.field(default=True, validator=_flag)
    dataexchange: bool = attrs.field(default=True, validator=_flag)
    eventstream: bool = attrs.field(default=True, validator=_flag)
    dataexchange_b64: bool = attrs.field(default=False, validator=_flag)
    """Store the text of messages as base64 as well."""
    dataexchange_frame_max: int = attrs.field(
        default=FRAME_MAX_DEFAULT, validator=_count(FRAME_MAX_LEAST, FRAME_MAX_MOST)
    )
    """Bytes of the largest message that is taken, or file in one piece; what exceeds it closes the stream."""


@attrs.frozen(kw_only=True)
class StreamLimits:
    """Times and counts of streams (`spec/services.md` §8.1). Times in seconds."""

    idle_timeout: float = attrs.field(default=IDLE_TIMEOUT, validator=_seconds())
    keepalive: float = attrs.field(default=STREAM_KEEPALIVE, validator=_seconds(KEEPALIVE_MIN))
    time_wait: float = attrs.field(default=TIME_WAIT, validator=_seconds())
    max_conns_per_port: int = attrs.field(default=CONNECTIONS_PER_PORT_MAX, validator=_count(1, 1 << 20))
    max_conns_total: int = attrs.field(default=CONNECTIONS_TOTAL_MAX, validator=_count(1, 1 << 20))
    syn_rate_limit: int = attrs.field(default=SYN_RATE_LIMIT, validator=_count(1, 1 << 20))


@attrs.frozen(kw_only=True)
class TunnelConfig:
    """Who may have a tunnel, and who is spared its rate limits (`spec/tunnel.md` §7.9). A whitelist of None names all."""

    strict_trust: bool = attrs.field(default=False, validator=_flag)
    """While the node is private, agree on keys with trusted nodes only."""
    syn_whitelist: frozenset[int] | None = attrs.field(default=frozenset(), converter=_whitelist)
    """Nodes whose stream openings are not limited."""
    reply_whitelist: frozenset[int] | None = attrs.field(default=frozenset(), converter=_whitelist)
    """Nodes whose repeated key frames are answered however often they come."""
    rekey_whitelist: frozenset[int] | None = attrs.field(default=frozenset(), converter=_whitelist)
    """Nodes whose undecryptable packets are answered however often they come."""
    path_watch: bool = attrs.field(default=True, validator=_flag)
    """Probe the path to a peer that has fallen silent, and find it anew if that is not answered."""
    address_watch: bool = attrs.field(default=True, validator=_flag)
    """Notice a change of the own address, and tell beacon, peers and registry."""
    receive_watch: bool = attrs.field(default=True, validator=_flag)
    """Register anew when nothing arrives in spite of sending, and after the machine was suspended."""


@attrs.frozen(kw_only=True)
class TrustConfig:
    """Whom the node trusts without asking (`spec/services.md` §1)."""

    auto_approve: bool = attrs.field(default=False, validator=_flag)
    """Approve every handshake request."""


@attrs.frozen(kw_only=True)
class WebhookConfig:
    """Where events are posted (`spec/services.md` §7.2)."""

    url: str = attrs.field(default="", validator=_text)  # "": the one stored in the home directory, if any
    secret: str = attrs.field(default="", repr=False, validator=_secret)


def _default_identity(config: Config) -> Path | None:
    return config.home / "identity.json"


def _default_rendezvous(config: Config) -> RendezvousConfig | None:
    if config.registry.endpoint is not None:
        return None
    return RendezvousConfig(store=config.home / "pilot-trio" / "rendezvous.db")


@attrs.frozen(kw_only=True)
class Config:
    """Settings of one node. Endpoints and paths may be given as text; times are seconds."""

    home: Path = attrs.field(factory=default_home, converter=_path)
    """Directory for what is neither identity nor socket; our own files go to `pilot-trio/` below it."""
    socket: Path = attrs.field(factory=default_socket, converter=_path)
    identity: Path | None = attrs.field(
        default=attrs.Factory(_default_identity, takes_self=True), converter=_optional_path
    )
    """The key file, by default `identity.json` in `home`; None: a key for this run only, nothing about it is kept."""
    registry: RegistryConfig = attrs.field(factory=RegistryConfig)
    rendezvous: RendezvousConfig | None = attrs.field(default=attrs.Factory(_default_rendezvous, takes_self=True))
    """The embedded rendezvous. By default there is one exactly if no registry is named."""
    beacon: tuple[Endpoint, ...] = attrs.field(default=(), converter=_endpoints)
    """Beacons to choose from; empty: the embedded rendezvous's, or none."""
    listen: Endpoint = attrs.field(default=Endpoint("", 0), converter=_endpoint)
    """Where the UDP socket is bound; an empty host is every address, port 0 any free one."""
    endpoint: Endpoint | None = attrs.field(default=None, converter=_optional_endpoint)
    """Own endpoint as others reach it, if known: nothing is discovered then."""
    advertise_endpoint: Endpoint | None = attrs.field(default=None, converter=_optional_endpoint)
    """Endpoint to register in place of the discovered one."""
    relay_only: bool = attrs.field(default=False, validator=_flag)
    """Hide the own endpoint; others come through a beacon."""
    hostname: str = attrs.field(default="", validator=_text)
    email: str = attrs.field(default="", validator=_text)
    """Owner as told to the registry; empty: the stored one, else one made from the key."""
    public: bool = attrs.field(default=False, validator=_flag)
    admin_token: str = attrs.field(default="", repr=False, validator=_secret)
    networks: tuple[int, ...] = attrs.field(default=(), converter=_ids, validator=_network_ids)
    """Networks to join at start; needs `admin_token`."""
    services: ServicesConfig = attrs.field(factory=ServicesConfig)
    streams: StreamLimits = attrs.field(factory=StreamLimits)
    tunnel: TunnelConfig = attrs.field(factory=TunnelConfig)
    trust: TrustConfig = attrs.field(factory=TrustConfig)
    webhook: WebhookConfig = attrs.field(factory=WebhookConfig)
    keepalive: float = attrs.field(default=KEEPALIVE, validator=_seconds(KEEPALIVE_MIN))
    """Time between heartbeats, polls and beacon registrations."""
    encrypt: bool = attrs.field(default=True, validator=_flag)

    def __attrs_post_init__(self) -> None:
        if self.registry.endpoint is None and self.rendezvous is None:
            raise ConfigError(
                "registry.endpoint is None and there is no embedded rendezvous; name a registry, "
                "for example RegistryConfig(endpoint='127.0.0.1:9000'), or leave rendezvous to its default"
            )
        if self.registry.endpoint is None and self.rendezvous is not None and self.rendezvous.registry is None:
            raise ConfigError(
                "the embedded rendezvous has no plaintext registry listener for its own node; "
                "give RendezvousConfig.registry an endpoint, for example 127.0.0.1:9000, or name RegistryConfig.endpoint"
            )
