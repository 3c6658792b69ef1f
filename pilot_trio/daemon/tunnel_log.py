"""What tunnels tell the operator: lines in the log and events on the bus (`spec/tunnel.md` §16).

Strangers can cause many of these lines, and peers most of them. So they are limited per cause and peer, all but the one that
says that a peer has a tunnel now; so are the events of refusals. Other events come as often as what they tell, which limits
below this one bound (`KEY_FRAME_RATE`). The counters in `Tunnel.statistics` have it all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import trio

from pilot_trio.daemon.events import EventBus
from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.proto.tunnel import events as tunnel
from pilot_trio.proto.tunnel.machine import DIAL_FALLBACK

REPEATS: Final = 4  # lines of one cause and peer at once; enough to see a pattern
REPEAT_RATE: Final = 1 / 600  # lines per second after that; six an hour, however often the peer repeats itself
CAUSES_MAX: Final = 4096  # causes and peers remembered; the longest silent one is forgotten first
PUNCH_RATE: Final = 1.0  # lines per second about punches, whoever sends them; anybody can
PUNCH_BURST: Final = 16.0  # lines; a few peers at once
QUEUE_FULL_GAP: Final = 5.0  # seconds between two lines about one peer's full queue; protocol, `spec/tunnel.md` §8.2

_log = logging.getLogger("pilot_trio.tunnel")

_REFUSED: Final = {
    tunnel.Drop.UNKNOWN_NODE: (
        logging.WARNING,
        "auth key exchange rejected: cannot verify peer identity from registry",
    ),
    tunnel.Drop.KEY_MISMATCH: (logging.ERROR, "auth key exchange: Ed25519 pubkey mismatch with registry"),
    tunnel.Drop.BAD_SIGNATURE: (logging.ERROR, "auth key exchange signature verification failed"),
    tunnel.Drop.BAD_KEY: (logging.ERROR, "auth key exchange failed"),
    tunnel.Drop.SUPERSEDED_KEY: (
        logging.WARNING,
        "auth key exchange: key of an earlier process, the present one answers",
    ),
    tunnel.Drop.NO_SESSION: (logging.WARNING, "encrypted packet from node but no key"),
    tunnel.Drop.UNDECRYPTABLE: (logging.ERROR, "tunnel decrypt error"),
    tunnel.Drop.REPLAY: (logging.WARNING, "tunnel nonce replay detected"),
    tunnel.Drop.OUTSIDE_WINDOW: (logging.WARNING, "tunnel packet outside replay window"),
    tunnel.Drop.MALFORMED_PACKET: (logging.WARNING, "tunnel unmarshal error after decrypt"),
    tunnel.Drop.SPOOFED_SOURCE: (logging.WARNING, "tunnel: dropping frame with spoofed source node"),
    tunnel.Drop.QUEUE_FULL: (
        logging.WARNING,
        "tunnel pending queue full; dropped newest to preserve ordered prefix",
    ),
}
_NOT_FROM_BEACON: Final = {
    4: "dropping punch command from non-beacon source",
    6: "dropping relay-deliver from non-beacon source",
}
_DROPPED: Final = {
    tunnel.Drop.UNDECRYPTABLE: "tunnel: peer crypto key divergence detected, dropping session and re-handshaking",
    tunnel.Drop.REPLAY: "tunnel: peer counter reset detected, dropping session and re-handshaking",
    tunnel.Drop.OUTSIDE_WINDOW: "tunnel: peer replay-window diverged irrecoverably, dropping session and re-handshaking",
}
_RELAYED: Final = {
    "direct path silent": "direct path silent, flipping to relay",
    "silent direct attempts": "rekey relay fallback: flipping peer to relay after silent direct attempts",
    "direct path unreachable": "direct path ICMP-unreachable, flipping to relay",
    DIAL_FALLBACK: "direct dial timed out, switching to relay",
}


class _Line(NamedTuple):
    level: int
    text: str
    kv: Mapping[str, object]


class TunnelLog:
    """Reports the tunnel machine's events.

    Args:
      events: the bus.
      is_trusted: whether a node is trusted; only then may subscribers learn from `tunnel.established` who it is.
    """

    def __init__(self, events: EventBus, is_trusted: Callable[[int], bool]) -> None:
        self._events = events
        self._is_trusted = is_trusted
        self._limits: KeyedBuckets[tuple[object, int]] = KeyedBuckets(REPEAT_RATE, REPEATS, CAUSES_MAX)
        self._punches = TokenBucket(PUNCH_RATE, PUNCH_BURST)
        self._queue_full: KeyedBuckets[int] = KeyedBuckets(1 / QUEUE_FULL_GAP, 1, CAUSES_MAX)
        self._reporters: dict[type[tunnel.Event], Callable[[Any], None]] = {
            tunnel.Established: self._established,
            tunnel.SameSession: self._same_session,
            tunnel.SessionDropped: self._session_dropped,
            tunnel.Refused: self._refused,
            tunnel.RelayActivated: self._relay_activated,
            tunnel.RelayCleared: self._relay_cleared,
            tunnel.GaveUp: self._gave_up,
            tunnel.PathSuspect: self._path_suspect,
            tunnel.PathRecovered: self._path_recovered,
            tunnel.Salvaged: self._salvaged,
            tunnel.PeerAdded: self._peer_added,
            tunnel.Punched: self._punched,
            tunnel.KeyUpdated: self._key_updated,
            tunnel.Forgotten: self._forgotten,
        }

    def report(self, event: tunnel.Event) -> None:
        """Log and publish one event; those that are work and no news are ignored."""
        reporter = self._reporters.get(type(event))
        if reporter is not None:
            reporter(event)

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _established(self, event: tunnel.Established) -> None:
        if not event.rekeyed or self._admits("rekeyed", event.node):
            text = "peer rekeyed (auth), re-establishing tunnel" if event.rekeyed else "encrypted tunnel established"
            _say(_Line(logging.INFO, text, {"auth": True, **_where(event.node, event.endpoint, event.relay)}))
        self._publish_established(event.node, relay=event.relay, rekeyed=event.rekeyed)

    def _same_session(self, event: tunnel.SameSession) -> None:
        if _log.isEnabledFor(logging.DEBUG) and self._admits("same session", event.node):
            kv = {**_where(event.node, event.endpoint, event.relay), "age": f"{event.age:.3f}s"}
            _say(_Line(logging.DEBUG, "auth key exchange: same-session keepalive", kv))
        self._publish_established(event.node, relay=event.relay, rekeyed=False)

    def _publish_established(self, node: int, *, relay: bool, rekeyed: bool) -> None:
        data: dict[str, Any] = {"authenticated": True, "relay": relay, "rekeyed": rekeyed}
        if self._is_trusted(node):
            data["peer_node_id"] = node
        self._events.publish("tunnel.established", data)

    def _session_dropped(self, event: tunnel.SessionDropped) -> None:
        if self._admits(("dropped", event.drop), event.node):
            _say(_Line(logging.WARNING, _DROPPED[event.drop], {"peer_node_id": event.node}))

    def _salvaged(self, event: tunnel.Salvaged) -> None:
        data = {"peer_node_id": event.node, "replayed": event.replayed}
        if self._admits("salvaged", event.node):
            _say(_Line(logging.INFO, "desync salvage replayed", data))
        self._events.publish("tunnel.desync_salvage", data)

    def _key_updated(self, event: tunnel.KeyUpdated) -> None:
        if self._admits("key updated", event.node):
            text = "auth key exchange: peer pubkey updated from registry"
            _say(_Line(logging.INFO, text, {"peer_node_id": event.node}))

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _refused(self, event: tunnel.Refused) -> None:
        if event.drop is tunnel.Drop.NOT_FROM_BEACON:
            self._not_from_beacon(event.detail)
            return
        if event.drop is tunnel.Drop.QUEUE_FULL:
            if not self._queue_full.take(event.node, trio.current_time()):
                return
        elif not self._admits(event.drop, event.node):
            return
        level, text = _REFUSED[event.drop]
        kv: dict[str, object] = {"peer_node_id": event.node}
        if event.drop is tunnel.Drop.NO_SESSION:
            kv["rekey_sent"] = bool(event.detail)
        elif event.drop is tunnel.Drop.BAD_KEY:
            kv["error"] = "ecdh: crypto/ecdh: bad X25519 remote ECDH input: low order point"
        elif event.drop is tunnel.Drop.REPLAY:
            kv["counter"] = event.detail
            self._events.publish("security.nonce_replay", {"peer_hash": redacted(event.node), "counter": event.detail})
        elif event.drop is tunnel.Drop.SPOOFED_SOURCE:
            kv["claimed_src"] = event.detail
            data = {"authenticated_peer_hash": redacted(event.node), "claimed_src_hash": redacted(event.detail)}
            self._events.publish("security.src_spoofed", data)
        _say(_Line(level, text, kv))

    def _not_from_beacon(self, kind: int) -> None:
        if self._admits(("not from beacon", kind), 0):
            _say(_Line(logging.WARNING, _NOT_FROM_BEACON.get(kind, "dropping message from non-beacon source"), {}))

    # --- paths -------------------------------------------------------------------------------------------------------

    def _relay_activated(self, event: tunnel.RelayActivated) -> None:
        text = _RELAYED.get(event.why)
        if self._admits(("relay", event.why), event.node):
            level = logging.DEBUG if text is None else logging.INFO
            kv = {"peer_node_id": event.node, "why": event.why}
            _say(_Line(level, text or "peer reached by relay", kv))
        self._events.publish("tunnel.relay_activated", {"peer_node_id": event.node})

    def _relay_cleared(self, event: tunnel.RelayCleared) -> None:
        if self._admits("relay cleared", event.node):
            text = "relay→direct auto-cleared on direct packet receipt"
            _say(_Line(logging.INFO, text, {"peer_node_id": event.node}))

    def _gave_up(self, event: tunnel.GaveUp) -> None:
        data = {"peer_node_id": event.node}
        if self._admits("gave up", event.node):
            _say(_Line(logging.WARNING, "rekey retransmit gave up after maxRekeyAttempts", data))
        self._events.publish("tunnel.rekey_gave_up", data)

    def _path_suspect(self, event: tunnel.PathSuspect) -> None:
        data: dict[str, Any] = {"peer_node_id": event.node}
        if event.probes:
            text = "path watchdog: peer inbound-silent past probe budget — resetting path"
            data |= {"silent_for_seconds": int(event.silent_for), "probes_sent": event.probes}
        else:
            text = "rekey gave up (session desync) — reset peer path"
            data["reason"] = event.reason
        if self._admits(("suspect", event.reason), event.node):
            _say(_Line(logging.WARNING, text, data))
        self._events.publish("tunnel.path_suspect", data)

    def _path_recovered(self, event: tunnel.PathRecovered) -> None:
        data = {"peer_node_id": event.node}
        if self._admits("recovered", event.node):
            _say(_Line(logging.INFO, "path watchdog: peer path recovered", data))
        self._events.publish("tunnel.path_recovered", data)

    def _punched(self, event: tunnel.Punched) -> None:
        host, port = event.source
        if _log.isEnabledFor(logging.DEBUG) and self._punches.take(trio.current_time()):
            _say(_Line(logging.DEBUG, "NAT punch received", {"from": f"{host}:{port}"}))

    def _peer_added(self, event: tunnel.PeerAdded) -> None:
        self._events.publish("tunnel.peer_added", {"peer_node_id": event.node})

    def _forgotten(self, event: tunnel.Forgotten) -> None:
        _say(_Line(logging.DEBUG, "reaping stale peer", {"peer_node_id": event.node}))

    def _admits(self, cause: object, node: int) -> bool:
        return self._limits.take((cause, node), trio.current_time())


def redacted(node: int) -> str:
    """Return what events show in place of a node id: the same for the same node, and no more than that."""
    return hashlib.sha256(str(node).encode()).hexdigest()[:16]


def _where(node: int, endpoint: tunnel.Addr | None, relay: bool) -> dict[str, object]:
    return {
        "peer_node_id": node,
        "endpoint": "" if endpoint is None else f"{endpoint[0]}:{endpoint[1]}",
        "relay": relay,
    }


def _say(line: _Line) -> None:
    _log.log(line.level, line.text, extra={"kv": line.kv})
