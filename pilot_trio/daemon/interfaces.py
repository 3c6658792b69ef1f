"""The parts of a node as its other parts see them: narrow interfaces, so that each part is tested with small fakes."""

from __future__ import annotations

from typing import Any, Protocol

from pilot_trio.wire.registry import Message


class Registry(Protocol):
    """The registry client."""

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        """Ask and return the answer; raise `RegistryError`."""
        ...


class Lookup(Protocol):
    """The resolver, for those who only want a node's record."""

    async def lookup(self, node_id: int, /) -> Message:
        """Return the registry's record of a node, from a cache where that is fresh enough; raise `RegistryError`."""
        ...
