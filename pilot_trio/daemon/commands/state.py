"""Info and Health: what the node says of itself (`spec/ipc.md` §5.9).

Both are built from local state at once: they never wait for the registry, the disk or another client.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import trio

from pilot_trio.address import Address
from pilot_trio.daemon.commands.parts import NodeParts, rows_that_fit
from pilot_trio.daemon.dispatch import Client, CommandTable, Lane, Route
from pilot_trio.daemon.state import REFERENCE_VERSION, TunnelStatistics
from pilot_trio.wire.canonical_json import dumps
from pilot_trio.wire.info_rows import with_paths
from pilot_trio.wire.ipc import JSON_MAX, Code, encode_frame

INFO_CACHE: Final = 0.2  # seconds that one Info body serves all clients; what clients are used to, `spec/ipc.md` §5.9

FEATURES: Final = ("reply_window", "dial_awaits_key", "key_request", "dgram_confirm")
"""What we promise clients: a client that believes a false promise skips the handshake that it needs."""

STATUS_UNREGISTERED: Final = "registering"
"""Health's `status` while the node has no id yet; with one it is `ok`, whatever the registry does meanwhile."""

_HEALTH: Final = (
    '{"accept_queue_drops":%d,"authenticated_peers":%d,"beacon_addr":%s,"bytes_recv":%d,"bytes_sent":%d,'
    '"connections":%d,"encrypted_peers":%d,"handshake_pending_count":%d,"peers":%d,"relay_peer_count":%d,'
    '"status":"%s","uptime_seconds":%d,"webhook_circuit_skips":%d,"webhook_queue_dropped":%d}'
)


def routes(node: NodeParts) -> CommandTable:
    """Return the rows of Info and Health."""
    snapshots = Snapshots(node)
    return {
        Code.INFO: Route(snapshots.info, snapshot=True),
        Code.HEALTH: Route(snapshots.health, lane=Lane.FIFO, snapshot=True),
    }


class Snapshots:
    """Builds the two bodies, and keeps each as long as it is true (Health) or fresh (Info)."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node
        self._health_key: tuple[object, ...] = ()
        self._health_frame = b""
        self._info_frame = b""
        self._info_expires_at = 0.0  # Trio-clock seconds

    def health(self, _client: Client, _payload: bytes) -> bytes:
        """Answer Health. Between two answers mostly nothing has changed, and comparing is cheaper than formatting."""
        node = self._node
        state, streams, webhook = node.state, node.streams, node.webhook
        tunnel = state.tunnel_source()  # another one if anything in it is different
        uptime = int(trio.current_time() - state.started_at)
        key = (
            tunnel,
            uptime,
            state.beacon_addr,
            state.node_id,
            node.trust.pending_count,
            streams.accept_queue_drops,
            streams.active,
            webhook.circuit_skips,
            webhook.dropped,
        )
        if key != self._health_key:
            self._health_key = key
            self._health_frame = encode_frame(Code.HEALTH_OK, _health_body(node, tunnel, uptime))
        return self._health_frame

    def info(self, _client: Client, _payload: bytes) -> bytes:
        """Answer Info."""
        now = trio.current_time()
        if now >= self._info_expires_at:
            peers = self._node.state.tunnel.list_peers()
            body = fit_info(_info_fields(self._node, now), peers, with_paths(self._node.streams.rows(), peers))
            self._info_frame = encode_frame(Code.INFO_OK, body)
            self._info_expires_at = now + INFO_CACHE
        return self._info_frame


def _health_body(node: NodeParts, tunnel: TunnelStatistics, uptime: int) -> bytes:
    body = _HEALTH % (
        node.streams.accept_queue_drops,
        tunnel.authenticated_peers,
        json.dumps(node.state.beacon_addr),
        tunnel.bytes_received,
        tunnel.bytes_sent,
        node.streams.active,
        tunnel.encrypted_peers,
        node.trust.pending_count,
        tunnel.peers,
        tunnel.relay_peers,
        "ok" if node.state.node_id else STATUS_UNREGISTERED,
        uptime,
        node.webhook.circuit_skips,
        node.webhook.dropped,
    )
    return body.encode()


def fit_info(
    fields: dict[str, Any], peers: Iterable[Mapping[str, Any]], connections: Iterable[Mapping[str, Any]]
) -> bytes:
    """Return the Info body with as many rows as its size limit admits.

    Peers yield to connections: first `peer_list` is cut, peers with open connections last, and only if the connections
    alone do not fit, `conn_list`. Counters keep the totals.
    """
    # Empty lists are filled in afterwards: the rows are encoded one by one and no further than they fit.
    frame = {**fields, "peer_list": [], "conn_list": []}
    conns = list(connections)
    budget = JSON_MAX - len(dumps({**frame, "peer_list_truncated": True, "conn_list_truncated": True}))
    conn_rows, budget = rows_that_fit(conns, budget)
    peer_list = list(peers)
    peer_rows, _ = rows_that_fit(peer_list, budget)
    if len(peer_rows) < len(peer_list):
        frame["peer_list_truncated"] = True
        connected = {Address.parse(row["remote_addr"]).node for row in conns}
        peer_list.sort(key=lambda row: (row["node_id"] not in connected, row["node_id"]))
        peer_rows, _ = rows_that_fit(peer_list, budget)
    if len(conn_rows) < len(conns):
        frame["conn_list_truncated"] = True
    # A quote inside a string is escaped, so these two can occur only where the keys are.
    body = dumps(frame).replace(b'"conn_list":[]', b'"conn_list":[' + b",".join(conn_rows) + b"]", 1)
    return body.replace(b'"peer_list":[]', b'"peer_list":[' + b",".join(peer_rows) + b"]", 1)


def _info_fields(node: NodeParts, now: float) -> dict[str, Any]:
    state, tunnel, streams = node.state, node.state.tunnel, node.streams.statistics()
    return {
        "node_id": state.node_id,
        "address": str(state.address),
        "endpoint": state.endpoint,
        "hostname": state.hostname,
        "email": state.email,
        "version": REFERENCE_VERSION,
        "motd": "",
        "beacon_addr": state.beacon_addr,
        "transport": "udp",
        "uptime_secs": int(now - state.started_at),
        "connections": streams.connections,
        "ports": streams.ports,
        "peers": tunnel.peers,
        "encrypted_peers": tunnel.encrypted_peers,
        "authenticated_peers": tunnel.authenticated_peers,
        "relay_peer_count": tunnel.relay_peers,
        "handshake_pending_count": node.trust.pending_count,
        "encrypt": node.config.encrypt,
        "identity": state.persistent,
        "public_key": state.identity.public_key_b64,
        "bytes_sent": tunnel.bytes_sent,
        "bytes_recv": tunnel.bytes_received,
        "pkts_sent": tunnel.packets_sent,
        "pkts_recv": tunnel.packets_received,
        "tunnel_encryption_success": tunnel.encryption_successes,
        "tunnel_encryption_failure": tunnel.encryption_failures,
        "accept_queue_drops": streams.accept_queue_drops,
        "webhook_queue_dropped": node.webhook.dropped,
        "webhook_circuit_skips": node.webhook.circuit_skips,
        "networks": [{"network_id": n, "address": str(state.address_in(n))} for n in state.networks] or None,
        "features": FEATURES,
    }
