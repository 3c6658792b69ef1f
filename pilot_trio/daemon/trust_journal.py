"""What operators and programs learn of trust: lines in the log, events on the bus (`spec/services.md` §1.14, §7.1)."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from pilot_trio.address import NodeId
from pilot_trio.daemon.events import EventBus

_log = logging.getLogger("pilot_trio.trust")


@attrs.frozen
class TrustJournal:
    """Writes log lines, publishes events."""

    _events: EventBus

    def log(self, line: str, peer: NodeId, name: str = "peer_node_id", **more: object) -> None:
        """Log something about a peer; `name` is what the line calls it."""
        _log.info(line, extra={"kv": {name: peer, **more}})

    def publish(self, topic: str, data: dict[str, Any]) -> None:
        """Publish an event."""
        self._events.publish(topic, data)

    def trust_changed(self, peer: NodeId, state: str, reason: str) -> None:
        """Publish that trust in a peer was `granted` or `revoked`, and why."""
        self._events.publish("trust.changed", {"peer_node_id": peer, "state": state, "reason": reason})

    def granted_itself(self, peer: NodeId, reason: str) -> None:
        """Publish that trust was granted without the operator."""
        self._events.publish("handshake.auto_approved", {"peer_node_id": peer, "reason": reason})
        self.trust_changed(peer, "granted", reason)
