"""Which handshake messages are believed: age, sender, key, signature, and that none is a replay (`spec/services.md` §1.3).

What a good message means is `proto/trust.py`. Times are Unix seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from enum import Enum
from typing import Final

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import verify
from pilot_trio.wire.handshake import HandshakeMessage, Kind
from pilot_trio.wire.registry import handshake_text

# What the protocol fixes.
MESSAGE_AGE_MAX: Final = 300  # seconds that a message may be old; `spec/services.md` §1.3
MESSAGE_AHEAD_MAX: Final = 30  # seconds that a message may come from the future; §1.3

# What we chose.
REPLAY_LIFETIME: Final = 600  # seconds; twice the age at which a message is too old anyway
REPLAY_MAX: Final = 8192  # messages remembered; the oldest go first
REPLAY_PER_PEER_MAX: Final = 256  # of these, from one node, so that one flood does not push out everybody else's


class Drop(Enum):
    """Why a message was dropped; the value is the log line. Nothing is ever said to the sender."""

    TOO_OLD = "handshake message too old"
    FROM_FUTURE = "handshake message from future"
    REPLAYED = "handshake replay detected"
    NO_KEY = "handshake: request without public key"
    NO_SIGNATURE = "handshake: public key without signature"
    KEY_MISMATCH = "handshake: pubkey mismatch with registry"
    BAD_SIGNATURE = "handshake: P2P signature verification failed"
    WRONG_SENDER = "handshake: message not from the node it names"
    UNKNOWN_TYPE = "handshake: unknown message type"


class ReplayMemory:
    """Messages seen lately, oldest first. Not kept over a restart: what is older than five minutes is refused anyway.

    The key covers the timestamp too, unlike the reference's: signatures between two nodes are always the same, so
    without it the second request of a peer would look like a replay of the first for a quarter of an hour.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[float, NodeId]] = OrderedDict()
        self._per_peer: dict[NodeId, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def seen(self, message: HandshakeMessage, receiver: NodeId) -> bool:
        """Say whether this very message was recorded."""
        return _replay_key(message, receiver) in self._seen

    def record(self, message: HandshakeMessage, receiver: NodeId, now: float) -> None:
        """Remember a message that was found good."""
        key, peer = _replay_key(message, receiver), NodeId(message.node_id)
        if key in self._seen:
            return
        of_peer = self._per_peer.setdefault(peer, OrderedDict())
        if len(of_peer) >= REPLAY_PER_PEER_MAX:
            self._forget(next(iter(of_peer)))
        elif len(self._seen) >= REPLAY_MAX:
            self._forget(next(iter(self._seen)))
        self._seen[key] = (now, peer)
        self._per_peer.setdefault(peer, of_peer)[key] = None

    def reap(self, now: float) -> None:
        """Forget what is too old to be accepted again."""
        while self._seen:
            key, (seen_at, _) = next(iter(self._seen.items()))
            if now - seen_at <= REPLAY_LIFETIME:
                return
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        _, peer = self._seen.pop(key)
        of_peer = self._per_peer[peer]
        del of_peer[key]
        if not of_peer:
            del self._per_peer[peer]


def screen(message: HandshakeMessage, stream_peer: NodeId, now: float) -> Drop | Kind:
    """Do the cheap checks of a message, before anybody is asked: return its kind, or why it is dropped."""
    if now - message.timestamp > MESSAGE_AGE_MAX:
        return Drop.TOO_OLD
    if message.timestamp - now > MESSAGE_AHEAD_MAX:
        return Drop.FROM_FUTURE
    try:
        kind = Kind(message.type)
    except ValueError:
        return Drop.UNKNOWN_TYPE
    if kind is Kind.REQUEST and not message.public_key:
        return Drop.NO_KEY
    if message.public_key and not message.signature:
        return Drop.NO_SIGNATURE
    # A request may be delivered by somebody else; the others are believed because of who sent them.
    if kind is not Kind.REQUEST and stream_peer != message.node_id:
        return Drop.WRONG_SENDER
    return kind


def check_signature(message: HandshakeMessage, receiver: NodeId, registered_key: str) -> Drop | None:
    """Check a message that carries a key against the registered one (empty: unknown) and its signature."""
    if registered_key and registered_key != message.public_key:
        return Drop.KEY_MISMATCH
    try:
        key = base64.b64decode(message.public_key, validate=True)
        signature = base64.b64decode(message.signature, validate=True)
    except (ValueError, binascii.Error):
        return Drop.BAD_SIGNATURE
    signed = handshake_text(message.node_id, receiver).encode()
    return None if verify(key, signature, signed) else Drop.BAD_SIGNATURE


def _replay_key(message: HandshakeMessage, receiver: NodeId) -> bytes:
    signed = handshake_text(message.node_id, receiver)
    parts = (message.type, signed, message.signature, str(message.timestamp))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
