"""One request and where it came from, with the protocol's way of reading fields (`spec/registry.md` §2.1)."""

from __future__ import annotations

from typing import Any, Final

import attrs

from pilot_trio.address import NodeId
from pilot_trio.wire.registry import Message

_U32_MAX: Final = 0xFFFFFFFF
_U16_MAX: Final = 0xFFFF


@attrs.define(eq=False)
class PeerInfo:
    """The connection that a request came by. The server makes one per connection and keeps it as long."""

    host: str  # source address as the kernel reports it
    port: int
    connection_id: int  # unique among the connections of one server run
    loopback: bool = False
    authenticated_node: NodeId | None = None  # whose valid signature this connection carried last; §3.4
    authenticated_key: str = ""  # the key that made it: when the node's key changes, the proof is void


@attrs.define(eq=False)
class Request:
    """What a handler gets. A field of the wrong JSON type reads as absent: 0, "", False."""

    message: Message
    peer: PeerInfo
    now: float  # unix seconds

    @property
    def type(self) -> str:
        """The request's kind."""
        return self.text("type")

    def number(self, name: str, maximum: int = _U32_MAX) -> int:
        """Return an unsigned number; another type, a fraction, or a value out of range reads as 0, as in §2.1."""
        value = self.message.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        return value if type(value) is int and 0 <= value <= maximum else 0

    def node(self, name: str = "node_id") -> NodeId:
        """Return a node id, 0 if there is none."""
        return NodeId(self.number(name))

    def network(self) -> int:
        """Return `network_id`, 0 if there is none."""
        return self.number("network_id", _U16_MAX)

    def text(self, name: str) -> str:
        """Return a string that can be encoded: halves of surrogate pairs, legal in JSON, become question marks."""
        value = self.message.get(name)
        if not isinstance(value, str):
            return ""
        return value if value.isascii() else value.encode("utf-8", "replace").decode()

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        return self.message.get(name) is True

    def raw(self, name: str) -> Any:
        """Return a field as it came, None if absent."""
        return self.message.get(name)
