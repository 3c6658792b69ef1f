"""Why a packet could not be sent; the texts reach clients (`spec/tunnel.md` §16)."""

from __future__ import annotations

from pilot_trio.errors import PilotError


class TunnelError(PilotError):
    """A packet was not taken."""


class NoTunnel(TunnelError):
    """Nothing is known of the peer."""

    def __init__(self, node: int) -> None:
        super().__init__(f"no tunnel to node {node}")


class NoAddress(TunnelError):
    """The peer is known, but neither an endpoint nor a relay."""

    def __init__(self, node: int) -> None:
        super().__init__(f"no address for node {node}")


class TooManyPending(TunnelError):
    """Packets wait for too many peers already."""

    def __init__(self) -> None:
        super().__init__("too many pending key exchanges")


class QueueFull(TunnelError):
    """Too many packets wait for this peer's key; transient, streams try again."""

    def __init__(self, node: int) -> None:
        super().__init__(
            "pending queue full: newest packet dropped to preserve ordered prefix while key exchange pending "
            f"(peer_node_id={node})"
        )


class ExchangeFailed(TunnelError):
    """The peer did not answer a whole cycle of key exchanges; it is left alone for a moment."""

    def __init__(self, node: int) -> None:
        super().__init__(f"key exchange pending: peer did not answer (peer_node_id={node})")
