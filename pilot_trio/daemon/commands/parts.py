"""What the command handlers need of the node, as narrow interfaces, and how they phrase answers and errors.

The handlers see only these, so the tests drive them with small fakes, and the type checker proves that the real node
fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from pilot_trio.address import NetworkId
from pilot_trio.config import Config
from pilot_trio.daemon.datagrams import Datagrams
from pilot_trio.daemon.dispatch import Later
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.interfaces import Lookup, Registry
from pilot_trio.daemon.key_rotation import KeyRotation
from pilot_trio.daemon.managed import ManagedNetworks
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.daemon.trust import TrustService
from pilot_trio.errors import CommandError, DecodeError, DialError, RegistryError
from pilot_trio.wire.canonical_json import dumps
from pilot_trio.wire.ipc import JSON_MAX, encode_frame
from pilot_trio.wire.registry import Message


class Resolver(Lookup, Protocol):
    """Lookups with caches."""

    def known_hostname(self, name: str) -> Message | None:
        """Return the registry's answer for a name if it is fresh enough to need no question."""
        ...

    async def resolve_hostname(self, name: str, *, by: float) -> Message:
        """Return the registry's answer for a name, by a certain time; raise `RegistryError`."""
        ...

    async def resolve(self, node: int, /) -> object:
        """Find the route to a node; raise `NoRoute`."""
        ...

    def forget(self, node: int, /) -> None:
        """Drop what is cached about a node."""
        ...

    def forget_hostname(self, name: str) -> None:
        """Drop the cached answer for a name."""
        ...


class Networks(Protocol):
    """The joined networks and their policies."""

    async def joined(self, network: NetworkId, reply: Message) -> None:
        """Take up a network that was just joined."""
        ...

    async def left(self, network: NetworkId) -> None:
        """Forget a network that was just left."""
        ...


class WebhookSink(Protocol):
    """The webhook, where events are posted."""

    @property
    def dropped(self) -> int:
        """Events lost because the queue was full."""
        ...

    @property
    def circuit_skips(self) -> int:
        """Events discarded while the circuit was open."""
        ...

    def set_url(self, url: str) -> None:
        """Post to another URL from now on; empty: nowhere."""
        ...


class Paths(Protocol):
    """The tunnels, as far as clients may touch them."""

    async def reset_path(self, node: int, /) -> Mapping[str, Any]:
        """Forget how a node is reached, find it anew and make contact; say what there was and what came of it."""
        ...


class NodeParts(Protocol):
    """The node."""

    @property
    def config(self) -> Config:
        """Its settings."""
        ...

    @property
    def state(self) -> NodeState:
        """What it knows of itself."""
        ...

    @property
    def registry(self) -> Registry: ...

    @property
    def resolver(self) -> Resolver: ...

    @property
    def rotation(self) -> KeyRotation: ...

    @property
    def networks(self) -> Networks: ...

    @property
    def streams(self) -> StreamTable: ...

    @property
    def datagrams(self) -> Datagrams: ...

    @property
    def tunnel(self) -> Paths: ...

    @property
    def trust(self) -> TrustService: ...

    @property
    def managed(self) -> ManagedNetworks: ...

    @property
    def webhook(self) -> WebhookSink: ...

    @property
    def events(self) -> EventBus: ...


def reply(code: int, body: Mapping[str, Any]) -> bytes:
    """Return the frame of a success body.

    Raises:
      CommandError: the body is above the limit of a frame, which would cost the client its connection
        (`spec/ipc.md` §5.9), or holds what JSON has no form for (a registry may write `1e999`, which reads as infinity).
    """
    try:
        encoded = dumps(body)
    except (ValueError, RecursionError) as exc:
        raise CommandError(f"reply cannot be encoded: {exc}") from exc
    if len(encoded) > JSON_MAX:
        raise CommandError(f"reply too large: {len(encoded)} bytes (max {JSON_MAX})")
    return encode_frame(code, encoded)


def passed_through(code: int, message: Message) -> bytes:
    """Return the frame of an object that the registry sent.

    Its key `error` goes, if it has one: clients take any object with that key for a failure (`spec/ipc.md` §5.10).
    """
    return reply(code, {key: value for key, value in message.items() if key != "error"})


def rows_that_fit(rows: Iterable[Mapping[str, Any]], budget: int) -> tuple[list[bytes], int]:
    """Encode leading rows while they fit into `budget` bytes, a comma each; return them and what is left."""
    encoded: list[bytes] = []
    for row in rows:
        text = dumps(row)
        if len(text) + 1 > budget:
            break
        budget -= len(text) + 1
        encoded.append(text)
    return encoded, budget


@contextmanager
def prefixed(prefix: str) -> Generator[None]:
    """Put `prefix` before the text of every error that a client may see."""
    try:
        yield
    except (CommandError, DecodeError, DialError, RegistryError) as exc:
        raise CommandError(prefix + str(exc)) from exc


def later(prefix: str, run: Callable[[], Awaitable[bytes | None]]) -> Later:
    """Return the waiting part of a request, its errors prefixed."""

    async def prefixed_run() -> bytes | None:
        with prefixed(prefix):
            return await run()

    return Later(prefixed_run)
