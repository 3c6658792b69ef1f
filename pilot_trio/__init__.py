"""A Pilot Protocol node on Trio.

General layout
--------------
- `serve` runs a node; `Config` says how; `NodeHandle` is what a running one tells.
- `open_driver` connects to a running daemon, ours or the original.
- `serve_rendezvous` runs a registry and beacon alone.
- Everything that is raised on purpose derives from `PilotError`.
- `pilot_trio.testing` has what tests of programs on top of this need.

What is named here is public; implementation modules may change. The names are loaded on first use: a command line that
only shows its help, or a driver that never serves, does not pay for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from pilot_trio.version import __version__ as __version__

if TYPE_CHECKING:
    from pilot_trio.address import Address as Address
    from pilot_trio.address import NodeId as NodeId
    from pilot_trio.address import SocketAddress as SocketAddress
    from pilot_trio.config import Config as Config
    from pilot_trio.config import RegistryConfig as RegistryConfig
    from pilot_trio.config import RendezvousConfig as RendezvousConfig
    from pilot_trio.config import ServicesConfig as ServicesConfig
    from pilot_trio.config import StreamLimits as StreamLimits
    from pilot_trio.config import TrustConfig as TrustConfig
    from pilot_trio.config import WebhookConfig as WebhookConfig
    from pilot_trio.daemon.node import NodeStatistics as NodeStatistics
    from pilot_trio.driver import Driver as Driver
    from pilot_trio.driver import open_driver as open_driver
    from pilot_trio.errors import AuthenticationError as AuthenticationError
    from pilot_trio.errors import CommandError as CommandError
    from pilot_trio.errors import ConfigError as ConfigError
    from pilot_trio.errors import DaemonError as DaemonError
    from pilot_trio.errors import DaemonUnavailable as DaemonUnavailable
    from pilot_trio.errors import DecodeError as DecodeError
    from pilot_trio.errors import DialCancelled as DialCancelled
    from pilot_trio.errors import DialError as DialError
    from pilot_trio.errors import DialRefused as DialRefused
    from pilot_trio.errors import DialTimeout as DialTimeout
    from pilot_trio.errors import IdentityError as IdentityError
    from pilot_trio.errors import IPCClosedError as IPCClosedError
    from pilot_trio.errors import LocalProtocolError as LocalProtocolError
    from pilot_trio.errors import NoRoute as NoRoute
    from pilot_trio.errors import PilotError as PilotError
    from pilot_trio.errors import PortInUse as PortInUse
    from pilot_trio.errors import PortNotAllowed as PortNotAllowed
    from pilot_trio.errors import PortsExhausted as PortsExhausted
    from pilot_trio.errors import ProtocolError as ProtocolError
    from pilot_trio.errors import RegistryError as RegistryError
    from pilot_trio.errors import RegistryUnavailable as RegistryUnavailable
    from pilot_trio.errors import RemoteProtocolError as RemoteProtocolError
    from pilot_trio.errors import StartupError as StartupError
    from pilot_trio.errors import StoreError as StoreError
    from pilot_trio.net.endpoint import Endpoint as Endpoint
    from pilot_trio.rendezvous.serve import RendezvousHandle as RendezvousHandle
    from pilot_trio.rendezvous.serve import serve_rendezvous as serve_rendezvous
    from pilot_trio.serving import NodeHandle as NodeHandle
    from pilot_trio.serving import serve as serve

_HOMES: Final = {
    "pilot_trio.address": ("Address", "NodeId", "SocketAddress"),
    "pilot_trio.config": (
        "Config",
        "RegistryConfig",
        "RendezvousConfig",
        "ServicesConfig",
        "StreamLimits",
        "TrustConfig",
        "WebhookConfig",
    ),
    "pilot_trio.daemon.node": ("NodeStatistics",),
    "pilot_trio.driver": ("Driver", "open_driver"),
    "pilot_trio.errors": (
        "AuthenticationError",
        "CommandError",
        "ConfigError",
        "DaemonError",
        "DecodeError",
        "DialError",
        "IPCClosedError",
        "DaemonUnavailable",
        "DialCancelled",
        "DialRefused",
        "DialTimeout",
        "NoRoute",
        "PortInUse",
        "PortNotAllowed",
        "PortsExhausted",
        "StoreError",
        "IdentityError",
        "LocalProtocolError",
        "PilotError",
        "ProtocolError",
        "RegistryError",
        "RegistryUnavailable",
        "RemoteProtocolError",
        "StartupError",
    ),
    "pilot_trio.net.endpoint": ("Endpoint",),
    "pilot_trio.rendezvous.serve": ("RendezvousHandle", "serve_rendezvous"),
    "pilot_trio.serving": ("NodeHandle", "serve"),
}
_HOME_OF: Final = {name: module for module, names in _HOMES.items() for name in names}

# Checkers read the imports above instead.
__all__ = ["__version__", *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
