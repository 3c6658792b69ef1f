"""The ways to name a node and a port."""

from __future__ import annotations

from pilot_trio.address import BACKBONE, BROADCAST_NODE, PORT_MAX, Address, NodeId, Port, SocketAddress
from pilot_trio.errors import DecodeError

Target = Address | SocketAddress | str | int
"""A node: its address, its id, `"0:0000.0000.0001"`, `"1"` or a host name; with `:port` at the end where a port is due."""


def parse_target(target: Target, port: int | None) -> tuple[Address | str, Port]:
    """Return the node, as an address or else as a host name that has to be resolved, and the port.

    `port` wins over one in a `SocketAddress`.

    Raises:
      DecodeError: there is no port, or one of the two is not well formed.
    """
    if isinstance(target, SocketAddress):
        return target.address, check_port(target.port if port is None else port)
    if port is None:
        if not isinstance(target, str) or ":" not in target:
            raise DecodeError(f"{target} names no port")
        target, _, text = target.rpartition(":")
        port = _decimal(text)
        if port is None:
            raise DecodeError(f"{text!r} is not a port")
    return _parse_node(target), check_port(port)


def check_port(port: int) -> Port:
    """Return `port` if it is one; raise `DecodeError` if not."""
    if not 0 <= port <= PORT_MAX:
        raise DecodeError(f"{port} is not a port")
    return Port(port)


def _parse_node(target: Address | str | int) -> Address | str:
    if isinstance(target, Address):
        return target
    node = target if isinstance(target, int) else _decimal(target)
    if node is not None:
        if not 0 <= node <= BROADCAST_NODE:
            raise DecodeError(f"{node} is not a node id")
        return Address(BACKBONE, NodeId(node))
    assert isinstance(target, str)
    return Address.parse(target) if ":" in target else target


def _decimal(text: str) -> int | None:
    """Return the value of a short decimal number, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
