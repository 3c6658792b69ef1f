"""Every exception that this package raises on purpose.

The tree draws two lines. *Whose fault*: `LocalProtocolError` means that the caller asked for something the protocol
forbids, `RemoteProtocolError` that a peer did. *Whose words*: `RegistryError` and `DaemonError` carry a text that
arrived over the wire, unchanged; decide on the class, never on the text.

Streams and listeners raise Trio's own `ClosedResourceError` (closed by you) and `BrokenResourceError` (broken by the
world), with one of these as `__cause__`. This module imports nothing, so that the pure strata may use it.
"""

from __future__ import annotations


class PilotError(Exception):
    """Base of every deliberate error in this package."""


class ConfigError(PilotError):
    """A setting has a value that cannot work; the text names the setting, the value and the remedy."""


class StartupError(PilotError):
    """The daemon cannot start; the text is what follows "daemon start: " in the log."""


class ProtocolError(PilotError):
    """Something the protocol forbids."""


class LocalProtocolError(ProtocolError):
    """We were asked for something that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids."""


class DecodeError(RemoteProtocolError):
    """Bytes that are not a message. The text is the one that the protocol prescribes, where it prescribes one."""


class AuthenticationError(RemoteProtocolError):
    """A tag, signature or identity does not verify."""


class IdentityError(PilotError):
    """An identity file cannot be used; the text says why and what to do (`spec/services.md` §6.2)."""


class DialError(PilotError):
    """A stream could not be opened; the text is the one that IPC clients see (`spec/ipc.md` §5.2)."""


class DialRefused(DialError):
    """The peer answered that nobody listens there."""

    def __init__(self) -> None:
        super().__init__("connection refused")


class DialTimeout(DialError):
    """The peer did not answer in time."""


class DialCancelled(DialError):
    """The dialling client cancelled or left."""

    def __init__(self) -> None:
        super().__init__("context canceled")


class NoRoute(DialError):
    """The destination node cannot be reached or is not known."""


class PortsExhausted(DialError):
    """All 16,384 ephemeral ports are in use."""

    def __init__(self) -> None:
        super().__init__("ephemeral ports exhausted")


class PortNotAllowed(DialError):
    """The port policy of the destination's network forbids the port."""

    def __init__(self, port: int, network: int) -> None:
        super().__init__(f"port {port} not allowed by network {network} policy")


class PortInUse(PilotError):
    """The port is bound already."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} already bound")
        self.port = port


REGISTRY_TEXT_MAX = 500  # characters of a registry's error kept; it goes to logs and clients, the longest known has 120


class RegistryError(PilotError):
    """The registry answered a request with an error.

    `str()` is `registry: TEXT`, the form in which it is passed on to clients; `text` is the registry's own, of an endless one the
    beginning.
    """

    def __init__(self, text: str, request: str = "") -> None:
        if len(text) > REGISTRY_TEXT_MAX:
            text = f"{text[:REGISTRY_TEXT_MAX]}… ({len(text)} characters)"
        super().__init__(f"registry: {text}")
        self.text = text
        self.request = request


class RegistryUnavailable(RegistryError):
    """No answer could be had from the registry: refused, closed, timed out, or not yet connected."""


class StoreError(PilotError):
    """The registry's store could not write; what was to be kept waits in memory, and no answer may promise it."""


class CommandError(PilotError):
    """A local client's request failed; the text goes into its error frame unchanged (`spec/ipc.md` §4)."""


class DaemonError(PilotError):
    """The daemon answered a request of ours with an error frame; the text is the daemon's, unchanged."""


class IPCClosedError(PilotError):
    """The IPC connection is gone: nothing can be sent on it, now or later.

    Raised at once, also in tasks that were waiting for room in its queue: a frame is never enqueued silently for a
    client that is not there.
    """


class DaemonUnavailable(IPCClosedError):
    """No daemon answers on the socket; the text names the path, the reason and what to do."""
