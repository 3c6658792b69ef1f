"""Key exchange: asking, answering, installing (`spec/tunnel.md` §7)."""

from __future__ import annotations

import contextlib

import attrs

from pilot_trio.crypto.identity import verify
from pilot_trio.errors import AuthenticationError, DecodeError
from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import (
    Addr,
    Drop,
    Established,
    KeyNeeded,
    KeyUpdated,
    Refused,
    Salvaged,
    SameSession,
)
from pilot_trio.proto.tunnel.peer import Exchange, Peer
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import (
    DEBOUNCE,
    KEY_FRAME_BURST,
    KEY_FRAME_RATE,
    KEYS_MAX,
    NEGATIVE_TIME,
    REKEY_GAP,
    RELAYED_FIRST_TIME,
    SOURCES_MAX,
    STALE_AFTER,
    STALE_REPLY_GAP,
    STRANGER_RATE,
    listed,
)
from pilot_trio.proto.tunnel.succession import Succession
from pilot_trio.proto.tunnel.upkeep_packets import path_probe
from pilot_trio.wire import tunnel as wire


@attrs.frozen
class _Arrival:
    """A key frame that waits for its sender's key."""

    data: bytes
    source: Addr
    relayed: bool
    refetched: bool


class KeyExchanges:
    """The key exchange side of the machine."""

    def __init__(self, core: Core, succession: Succession) -> None:
        self._core = core
        self._succession = succession
        self._frame = b""  # our key frame; the same bytes for everybody while the identity lasts
        self._frame_for: tuple[int, bytes] = (0, b"")
        self._keys: dict[int, bytes] = {}  # Ed25519 keys of peers, as the registry has them; the newest last
        self._unknown_until: dict[int, float] = {}  # nodes whose lookup failed
        self._waiting: dict[int, _Arrival] = {}  # {node: its latest key frame}, a lookup under way for each
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
        if not self.admits(request.node, source, now, relayed=relayed) or not self._core.node_id:
            return
        peer = self._core.peers.get(request.node)
        if relayed:
            self._core.relay(request.node, self.key_frame())
        else:
            self._core.write_direct(self.key_frame(), source)
        if peer is not None and peer.session is None and peer.exchange is None:
            self.start(peer, now, copy=False)

    def receive_key_frame(self, data: bytes, source: Addr, now: float, *, relayed: bool) -> None:
        """Work in an authenticated key frame, or keep it until its sender's key is known (§7.3)."""
        try:
            frame = wire.decode_key_exchange(data)
        except DecodeError:
            self._core.drop(Drop.SHORT)
            return
        if self.admits(frame.node, source, now, relayed=relayed):
            self._judge(frame, _Arrival(data[:136], source, relayed, refetched=False), now)

    def on_key(self, node: int, key: bytes | None, now: float) -> None:
        """Take the answer to `KeyNeeded`: the node's Ed25519 key, or None if it could not be had."""
        arrival = self._waiting.pop(node, None)
        if key is None:
            self._forget_unknown(now)
            if len(self._unknown_until) < SOURCES_MAX:
                self._unknown_until[node] = now + NEGATIVE_TIME
            if arrival is not None:
                self._refuse(node, Drop.UNKNOWN_NODE)
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

    def _judge(self, frame: wire.KeyExchange, arrival: _Arrival, now: float) -> None:
        core, node = self._core, frame.node
        peer = core.peers.get(node)
        if peer is not None and peer.session is not None and peer.installed_frame == arrival.data:
            self._accept(peer, frame, arrival, now)  # the very bytes that were verified before
            return
        expected = self._keys.get(node)
        if expected is None or (expected != frame.ed25519 and not arrival.refetched):
            self._ask_for_key(node, arrival, now, fresh=expected is not None)
            return
        if expected != frame.ed25519:
            self._refuse(node, Drop.KEY_MISMATCH)
        elif not verify(frame.ed25519, frame.signature, frame.signed_bytes):
            self._refuse(node, Drop.BAD_SIGNATURE)
        else:
            if arrival.refetched:
                core.events.append(KeyUpdated(node))
            self._accept(core.peer(node, now), frame, arrival, now)

    def _ask_for_key(self, node: int, arrival: _Arrival, now: float, *, fresh: bool) -> None:
        if self._unknown_until.get(node, now) > now:
            self._refuse(node, Drop.UNKNOWN_NODE)
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

    def _refuse(self, node: int, drop: Drop) -> None:
        self._core.drop(drop)
        self._core.events.append(Refused(node, drop))

    # --- installing --------------------------------------------------------------------------------------------------

    def _accept(self, peer: Peer, frame: wire.KeyExchange, arrival: _Arrival, now: float) -> None:
        """Classify a verified key frame against the session (§7.3 step 6)."""
        session = peer.session
        peer.frame_at = now
        if self._succession.refuses(peer, frame.x25519, now):
            return
        if session is None or session.peer_x25519 != frame.x25519:
            self._install(peer, frame, arrival, now)
        else:
            age = now - session.created_at
            if age > DEBOUNCE:
                self._core.events.append(SameSession(peer.node, peer.route.address, arrival.relayed, age))
                self._consider_endpoint(peer, arrival, now)
            elif not arrival.relayed and peer.installed_by_relay and now - peer.installed_at <= RELAYED_FIRST_TIME:
                # The relayed copy of a restarted peer's frame came first; this one tells where the peer is now.
                peer.route.address = arrival.source
            self._answer_stale(peer, now)
        peer.exchange = None

    def _install(self, peer: Peer, frame: wire.KeyExchange, arrival: _Arrival, now: float) -> None:
        core, old = self._core, peer.session
        try:
            key = core.keypair.derive(frame.x25519)
        except AuthenticationError:
            self._refuse(peer.node, Drop.BAD_KEY)
            return
        self._succession.keep(peer)
        core.end_session(peer)
        before = peer.route.address
        peer.session = Session(key, core.node_id, frame.x25519, core.random_bytes, now, core.past(frame.x25519))
        core.touch(peer)
        peer.installed_at = peer.used_at = peer.opened_at = now
        peer.installed_frame, peer.installed_by_relay = arrival.data, arrival.relayed
        peer.route.key_came_by_relay = arrival.relayed
        peer.cooldown_until = -float("inf")
        if not arrival.relayed:
            peer.route.address = arrival.source
        elif peer.route.address is None:
            core.turn_to_relay(peer, "key came by relay", pin=True)
        core.events.append(Established(peer.node, peer.route.address, arrival.relayed, rekeyed=old is not None))
        # Our key frame goes first: whatever precedes it is lost to a peer that cannot open it yet.
        with contextlib.suppress(NoAddress):
            core.write(peer, self.key_frame(), now)
        if arrival.relayed and not peer.route.relay:
            core.relay(peer.node, self.key_frame())
        self._succession.begin(peer, now)
        if peer.predecessor is None and not arrival.relayed and before is not None and before != arrival.source:
            # If the frame was a replay, the peer is where it was, and its answer moves the endpoint back.
            self._probe(peer, before)
        self._salvage(peer, old, now)
        self.flush(peer, now)

    def _salvage(self, peer: Peer, old: Session | None, now: float) -> None:
        packets = old.salvage(now) if old is not None else []
        if not packets or peer.session is None:
            return
        with contextlib.suppress(NoAddress):
            for packet in packets:
                self._core.write(peer, peer.session.seal(packet), now)
                self._core.traffic.sealed += 1
        self._core.events.append(Salvaged(peer.node, len(packets)))

    def flush(self, peer: Peer, now: float) -> None:
        """Send the packets that waited for the key, in order (§8.3)."""
        session = peer.session
        if session is None:
            return
        while peer.queue:
            _, packet = peer.queue.popleft()
            with contextlib.suppress(NoAddress):
                self._core.write(peer, session.seal(packet), now)
                self._core.traffic.sealed += 1

    def _consider_endpoint(self, peer: Peer, arrival: _Arrival, now: float) -> None:
        """A repeated key frame from elsewhere proves nothing: it may be a replay. Ask there; the answer moves the endpoint."""
        if arrival.relayed or arrival.source == peer.route.address or peer.session is None:
            return
        self._probe(peer, arrival.source)

    def _probe(self, peer: Peer, to: Addr) -> None:
        assert peer.session is not None
        probe = path_probe(self._core.node_id, peer.node)
        self._core.write_direct(peer.session.seal(probe.encode()), to)
        self._core.traffic.sealed += 1

    def _answer_stale(self, peer: Peer, now: float) -> None:
        """The peer may have lost our frame: answer, but only if it has been silent, and not too often (§7.4)."""
        if now - peer.opened_at <= STALE_AFTER:
            return
        if now - peer.stale_reply_at < STALE_REPLY_GAP and not listed(self._core.settings.reply_whitelist, peer.node):
            return
        peer.stale_reply_at = now
        with contextlib.suppress(NoAddress):
            self._core.write(peer, self.key_frame(), now)
