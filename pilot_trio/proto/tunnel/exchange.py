"""Key exchange: asking for a peer's key frame, and answering with ours (`spec/tunnel.md` §7.1, §7.2, §7.5, §7.6)."""

from __future__ import annotations

import contextlib

from pilot_trio.errors import DecodeError
from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import (
    Addr,
    Drop,
)
from pilot_trio.proto.tunnel.peer import Exchange, Peer
from pilot_trio.proto.tunnel.settings import (
    KEY_FRAME_BURST,
    KEY_FRAME_RATE,
    REKEY_GAP,
    SOURCES_MAX,
    STRANGER_RATE,
    listed,
)
from pilot_trio.wire import tunnel as wire


class KeyExchanges:
    """Asks and answers, within limits."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._frame = b""  # our key frame; the same bytes for everybody while the identity lasts
        self._frame_for: tuple[int, bytes] = (0, b"")
        self._by_ip: KeyedBuckets[str] = KeyedBuckets(KEY_FRAME_RATE, KEY_FRAME_BURST, SOURCES_MAX)
        self._by_node: KeyedBuckets[int] = KeyedBuckets(KEY_FRAME_RATE, KEY_FRAME_BURST, SOURCES_MAX)
        self._strangers = TokenBucket(STRANGER_RATE, STRANGER_RATE)
        self._stranger_gap: KeyedBuckets[int] = KeyedBuckets(1 / REKEY_GAP, 1, SOURCES_MAX)

    # --- asking ------------------------------------------------------------------------------------------------------

    def key_frame(self) -> bytes:
        """Return our authenticated key frame."""
        core = self._core
        current = (core.node_id, core.identity.public_key)
        if self._frame_for != current:
            x25519 = core.keypair.public
            signature = core.identity.sign(wire.signed_bytes(core.node_id, x25519))
            frame = wire.KeyExchange(core.node_id, x25519, core.identity.public_key, signature)
            self._frame, self._frame_for = wire.encode_key_exchange(frame), current
        return self._frame

    def key_request(self) -> bytes:
        """Return our key request: "I have no session for you, send me your key frame"."""
        return wire.encode_key_request(wire.KeyRequest(self._core.node_id, self._core.keypair.public))

    def start(self, peer: Peer, now: float, *, copy: bool, again: bool = False) -> None:
        """Send a key exchange on the peer's path, with a copy on the other one if asked for (§7.2)."""
        core = self._core
        if not core.settings.encrypt or not core.node_id:
            return
        frames = [self.key_frame()]
        unanswered = peer.exchange is not None and peer.exchange.attempts > 0
        if peer.session is None and (peer.key_request_due or unanswered or again):
            frames.append(self.key_request())
            peer.key_request_due = False
        by_relay = peer.route.relay
        for frame in frames:
            with contextlib.suppress(NoAddress):
                core.write(peer, frame, now)
            if copy and peer.route.address is not None:
                if not by_relay:
                    core.relay(peer.node, frame)
                elif not peer.route.pinned:
                    # One lost frame is no proof against the direct path, and the peer may not be known to the beacon.
                    core.write_direct(frame, peer.route.address)
        if now >= peer.cooldown_until:
            exchange = peer.exchange = peer.exchange or Exchange()
            exchange.attempts += 1
            exchange.last_sent_at = now
            core.touch(peer)

    def request(self, peer: Peer, now: float) -> bool:
        """Ask for the peer's key frame because something could not be opened (§7.6); False if it was asked just now."""
        if now - peer.rekey_at < REKEY_GAP and not listed(self._core.settings.rekey_whitelist, peer.node):
            return False
        peer.rekey_at = now
        peer.key_request_due = True
        self.start(peer, now, copy=True, again=True)
        return True

    def request_again(self, peer: Peer, now: float) -> None:
        """Ask for the key frame of a peer whose packets the session does not open, and keep the session."""
        peer.rekey_at = now
        core = self._core
        for frame in (self.key_frame(), self.key_request()):
            with contextlib.suppress(NoAddress):
                core.write(peer, frame, now)
            if not peer.route.relay:
                core.relay(peer.node, frame)

    def answer_stranger(self, node: int, source: Addr, now: float, *, relayed: bool) -> bool:
        """Answer a sealed packet of a node that we hold nothing for: both key frames, and no state."""
        whitelisted = listed(self._core.settings.rekey_whitelist, node)
        if not self._core.node_id or not (whitelisted or self._stranger_gap.take(node, now)):
            return False
        if not self._strangers.take(now):
            self._core.drop(Drop.STRANGER_RATE)
            return False
        for frame in (self.key_frame(), self.key_request()):
            if relayed:
                self._core.relay(node, frame)
            else:
                self._core.write_direct(frame, source)
                self._core.relay(node, frame)
        return True

    # --- answering ---------------------------------------------------------------------------------------------------

    def admits(self, node: int, source: Addr, now: float, *, relayed: bool) -> bool:
        """Judge a key frame by its source before any work is done for it."""
        core = self._core
        fine = self._by_node.take(node, now) if relayed else self._by_ip.take(source[0], now)
        if not fine:
            core.drop(Drop.KEY_FRAME_RATE)
        elif not core.node_id:
            # What a session without our id seals has no sender that anybody knows, for as long as it lives. They ask again.
            core.drop(Drop.UNREGISTERED)
        elif node == core.node_id or node == 0:
            core.drop(Drop.OWN_NODE)
        elif not core.settings.admits(node):
            core.drop(Drop.UNTRUSTED)
        else:
            return True
        return False

    def receive_request(self, data: bytes, source: Addr, now: float, *, relayed: bool) -> None:
        """Answer a key request with our key frame. It never makes a session, whatever the registry says (§7.5)."""
        try:
            request = wire.decode_key_request(data)
        except DecodeError:
            self._core.drop(Drop.SHORT)
            return
        if not self.admits(request.node, source, now, relayed=relayed):
            return
        peer = self._core.peers.get(request.node)
        if relayed:
            self._core.relay(request.node, self.key_frame())
        else:
            self._core.write_direct(self.key_frame(), source)
        if peer is not None and peer.session is None and peer.exchange is None:
            self.start(peer, now, copy=False)
