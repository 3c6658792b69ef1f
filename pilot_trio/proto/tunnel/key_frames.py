"""Key frames in: believed once the registry's key verifies them (`spec/tunnel.md` §7.3, §7.10).

A frame of a node whose key is not known waits for the shell's answer to `KeyNeeded`: one frame for each node, one lookup at
a time. A key that the registry names is remembered; so is, for a moment, that it names none.
"""

from __future__ import annotations

import attrs

from pilot_trio.crypto.identity import verify
from pilot_trio.errors import DecodeError
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.events import Addr, Drop, KeyNeeded, KeyUpdated
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.installation import Arrival, Installation
from pilot_trio.proto.tunnel.settings import KEYS_MAX, NEGATIVE_TIME, SOURCES_MAX
from pilot_trio.wire import tunnel as wire


class KeyFrames:
    """Judges key frames, and hands on those that are genuine."""

    def __init__(self, core: Core, exchanges: KeyExchanges, installation: Installation) -> None:
        self._core = core
        self._exchanges = exchanges
        self._installation = installation
        self._keys: dict[int, bytes] = {}  # Ed25519 keys of peers, as the registry has them; the newest last
        self._unknown_until: dict[int, float] = {}  # nodes whose lookup failed
        self._waiting: dict[int, Arrival] = {}  # {node: its latest key frame}, a lookup under way for each

    def receive(self, data: bytes, source: Addr, now: float, *, relayed: bool) -> None:
        """Work in an authenticated key frame, or keep it until its sender's key is known (§7.3)."""
        try:
            frame = wire.decode_key_exchange(data)
        except DecodeError:
            self._core.drop(Drop.SHORT)
            return
        if self._exchanges.admits(frame.node, source, now, relayed=relayed):
            self._judge(frame, Arrival(data[:136], source, relayed, refetched=False), now)

    def on_key(self, node: int, key: bytes | None, now: float) -> None:
        """Take the answer to `KeyNeeded`: the node's Ed25519 key, or None if it could not be had."""
        arrival = self._waiting.pop(node, None)
        if key is None:
            self._forget_unknown(now)
            if len(self._unknown_until) < SOURCES_MAX:
                self._unknown_until[node] = now + NEGATIVE_TIME
            if arrival is not None:
                self._core.refuse(node, Drop.UNKNOWN_NODE)
            return
        self._keys.pop(node, None)
        if len(self._keys) >= KEYS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[node] = key
        if arrival is not None:
            self._judge(wire.decode_key_exchange(arrival.data), arrival, now)

    def _forget_unknown(self, now: float) -> None:
        for node in [node for node, until in self._unknown_until.items() if until <= now]:
            del self._unknown_until[node]

    def _judge(self, frame: wire.KeyExchange, arrival: Arrival, now: float) -> None:
        core, node = self._core, frame.node
        peer = core.peers.get(node)
        if peer is not None and peer.session is not None and peer.installed_frame == arrival.data:
            self._installation.accept(peer, frame, arrival, now)  # the very bytes that were verified before
            return
        expected = self._keys.get(node)
        if expected is None or (expected != frame.ed25519 and not arrival.refetched):
            self._ask_for_key(node, arrival, now, fresh=expected is not None)
            return
        if expected != frame.ed25519:
            self._core.refuse(node, Drop.KEY_MISMATCH)
        elif not verify(frame.ed25519, frame.signature, frame.signed_bytes):
            self._core.refuse(node, Drop.BAD_SIGNATURE)
        else:
            if arrival.refetched:
                core.events.append(KeyUpdated(node))
            self._installation.accept(core.peer(node, now), frame, arrival, now)

    def _ask_for_key(self, node: int, arrival: Arrival, now: float, *, fresh: bool) -> None:
        if self._unknown_until.get(node, now) > now:
            self._core.refuse(node, Drop.UNKNOWN_NODE)
            return
        arrival = attrs.evolve(arrival, refetched=fresh)
        if node not in self._waiting and len(self._waiting) >= SOURCES_MAX:
            self._core.drop(Drop.KEY_FRAME_RATE)
            return
        earlier = self._waiting.get(node)
        if earlier is None:
            self._core.events.append(KeyNeeded(node, fresh))
        elif arrival.relayed and not earlier.relayed and arrival.data == earlier.data:
            return  # the copy that came by relay says less than the direct one
        self._waiting[node] = arrival
