"""What the node knows of itself: identity, address, names, networks. Written by enrolment and by a few commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from pilot_trio.address import BACKBONE, Address, NetworkId, NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.version import REFERENCE_VERSION as REFERENCE_VERSION


@attrs.define(eq=False)
class TunnelStatistics:
    """What Info and Health say about tunnels to other nodes, at one moment. Sizes are bytes of datagrams."""

    peers: int = 0
    encrypted_peers: int = 0
    authenticated_peers: int = 0
    relay_peers: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    encryption_successes: int = 0
    encryption_failures: int = 0
    list_peers: Callable[[], list[dict[str, Any]]] = list  # makes `peer_list`, `spec/ipc.md` §5.9


@attrs.frozen
class NextKey:
    """A key that the registry may or may not have accepted for a node already (`daemon/key_rotation.py`)."""

    node: NodeId
    identity: Identity


@attrs.define(eq=False)
class NodeState:
    """One node's view of itself. All times are `trio.current_time()` seconds."""

    identity: Identity
    started_at: float
    persistent: bool = False  # the identity is on disk
    next_key: NextKey | None = None  # while it is open whether it has replaced `identity`
    node_id: NodeId = attrs.field(default=NodeId(0))  # 0 until registered
    endpoint: str = ""  # own UDP endpoint as registered, host:port
    lan_endpoints: tuple[Endpoint, ...] = ()  # where neighbours reach this node
    beacon_addr: str = ""
    hostname: str = ""
    email: str = ""
    public: bool = False
    networks: list[NetworkId] = attrs.field(factory=list)  # joined ones, without the backbone
    allowed_ports: dict[NetworkId, frozenset[int]] = attrs.field(factory=dict)  # empty or absent: all ports allowed
    dials_unanswered: int = 0  # in a row
    registry_reachable: bool = False  # the last exchange with the registry got an answer
    tunnel_source: Callable[[], TunnelStatistics] = TunnelStatistics  # set by the tunnel; without one: no peers

    @property
    def tunnel(self) -> TunnelStatistics:
        """The tunnels' counters now."""
        return self.tunnel_source()

    @property
    def registered(self) -> bool:
        """True once the registry has given this node an id."""
        return self.node_id != 0

    def address_in(self, network: NetworkId = BACKBONE) -> Address:
        """This node's address as seen from one network."""
        return Address(network, self.node_id)

    @property
    def address(self) -> Address:
        """This node's backbone address."""
        return Address(BACKBONE, self.node_id)

    def port_allowed(self, network: NetworkId, port: int) -> bool:
        """Say whether the network's port policy admits the port (`spec/services.md` §7.3)."""
        allowed = self.allowed_ports.get(network)
        return not allowed or port in allowed
