"""Network address translation as home routers do it (RFC 4787): pure, with no clock of its own.

Hosts behind a `Nat` have private addresses. What they send leaves with the router's address and a port that stands for the
sender; what comes back is let in as the kind of NAT decides. Ports are handed out in order, so runs repeat.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Final

import attrs

from pilot_trio.net.endpoint import Endpoint

MAPPING_TIMEOUT: Final = (
    120.0  # seconds without outgoing traffic after which a mapping ends; RFC 4787 asks for at least that
)
MAPPINGS_MAX: Final = (
    4096  # mappings of one router, and remembered peers of one mapping; the one unused longest goes first
)
_FIRST_PORT: Final = 20_000
_LAST_PORT: Final = 59_999


class NatType(enum.Enum):
    """Who may answer, and at which port."""

    FULL_CONE = "full cone"
    """One port per sender; anybody may send to it."""
    RESTRICTED = "restricted"
    """One port per sender; hosts that it sent to may answer, from any port."""
    PORT_RESTRICTED = "port-restricted"
    """One port per sender; endpoints that it sent to may answer."""
    SYMMETRIC = "symmetric"
    """One port per sender and destination, which alone may answer: what a beacon sees is not what a peer would."""


@attrs.define
class _Mapping:
    inside: Endpoint
    port: int
    used_at: float
    peers: OrderedDict[Endpoint | str, float] = attrs.field(factory=OrderedDict)  # {who may answer: last sent to}


class Nat:
    """One router.

    Args:
      kind: what it lets in.
      address: its public address.
      mapping_timeout: seconds.
    """

    def __init__(self, kind: NatType, address: str, *, mapping_timeout: float = MAPPING_TIMEOUT) -> None:
        self.kind: Final = kind
        self.address: Final = address
        self.mapping_timeout = mapping_timeout
        self._by_inside: OrderedDict[tuple[Endpoint, Endpoint | None], _Mapping] = OrderedDict()
        self._by_port: dict[int, _Mapping] = {}
        self._next_port = _FIRST_PORT

    def __len__(self) -> int:
        """How many mappings there are, ended ones that nobody has missed yet included."""
        return len(self._by_inside)

    def outgoing(self, inside: Endpoint, to: Endpoint, now: float) -> Endpoint:
        """Return what `to` sees as the source of a datagram that `inside` sends."""
        key = (inside, to if self.kind is NatType.SYMMETRIC else None)
        mapping = self._by_inside.get(key)
        if mapping is None or now - mapping.used_at > self.mapping_timeout:
            self._drop(key)
            if len(self._by_inside) >= MAPPINGS_MAX:
                self._drop(next(iter(self._by_inside)))
            mapping = _Mapping(inside, self._free_port(), now)
            self._by_inside[key] = self._by_port[mapping.port] = mapping
        mapping.used_at = now
        self._by_inside.move_to_end(key)
        peer = to.host if self.kind is NatType.RESTRICTED else to
        mapping.peers[peer] = now
        mapping.peers.move_to_end(peer)
        if len(mapping.peers) > MAPPINGS_MAX:
            mapping.peers.popitem(last=False)
        return Endpoint(self.address, mapping.port)

    def incoming(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        """Return whom a datagram to `port` is for, None if it is not let in."""
        mapping = self._by_port.get(port)
        if mapping is None or now - mapping.used_at > self.mapping_timeout:
            return None
        if self.kind is not NatType.FULL_CONE:
            peer = source.host if self.kind is NatType.RESTRICTED else source
            sent_at = mapping.peers.get(peer)
            if sent_at is None or now - sent_at > self.mapping_timeout:
                return None
        return mapping.inside

    def rebind(self) -> None:
        """Forget every mapping, as a router does that restarts: what is sent from now on comes from other ports."""
        self._by_inside.clear()
        self._by_port.clear()

    def _drop(self, key: tuple[Endpoint, Endpoint | None]) -> None:
        mapping = self._by_inside.pop(key, None)
        if mapping is not None:
            del self._by_port[mapping.port]

    def _free_port(self) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < _LAST_PORT else _FIRST_PORT
            if port not in self._by_port:  # there are more ports than mappings
                return port
