"""What a genuine key frame does: a session is installed, kept, or replaced (`spec/tunnel.md` §7.3, §7.4, §7.8)."""

from __future__ import annotations

import contextlib
from math import inf

import attrs

from pilot_trio.errors import AuthenticationError
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import Addr, Drop, Established, Salvaged, SameSession
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import DEBOUNCE, RELAYED_FIRST_TIME, STALE_AFTER, STALE_REPLY_GAP, listed
from pilot_trio.proto.tunnel.succession import Succession
from pilot_trio.proto.tunnel.upkeep_packets import path_probe
from pilot_trio.wire import tunnel as wire


@attrs.frozen
class Arrival:
    """A key frame as it came."""

    data: bytes
    source: Addr
    relayed: bool
    refetched: bool  # the registry was asked again, because the key it had named before was another one


class Installation:
    """Makes sessions out of key frames."""

    def __init__(self, core: Core, exchanges: KeyExchanges, succession: Succession) -> None:
        self._core = core
        self._exchanges = exchanges
        self._succession = succession

    def accept(self, peer: Peer, frame: wire.KeyExchange, arrival: Arrival, now: float) -> None:
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
            self._answer_repeated(peer, now)
        peer.exchange = None

    def _install(self, peer: Peer, frame: wire.KeyExchange, arrival: Arrival, now: float) -> None:
        core, old = self._core, peer.session
        try:
            key = core.keypair.derive(frame.x25519)
        except AuthenticationError:
            self._core.refuse(peer.node, Drop.BAD_KEY)
            return
        self._succession.keep(peer)
        core.end_session(peer)
        before = peer.route.address
        peer.session = Session(key, core.node_id, frame.x25519, core.random_bytes, now, core.past(frame.x25519))
        core.touch(peer)
        peer.installed_at = peer.used_at = peer.opened_at = now
        peer.installed_frame, peer.installed_by_relay = arrival.data, arrival.relayed
        peer.route.key_came_by_relay = arrival.relayed
        peer.cooldown_until = -inf
        if not arrival.relayed:
            peer.route.address = arrival.source
        elif peer.route.address is None:
            core.turn_to_relay(peer, "key came by relay", pin=True)
        core.events.append(Established(peer.node, peer.route.address, arrival.relayed, rekeyed=old is not None))
        # Our key frame goes first: whatever precedes it is lost to a peer that cannot open it yet.
        with contextlib.suppress(NoAddress):
            core.write(peer, self._exchanges.key_frame(), now)
        if arrival.relayed and not peer.route.relay:
            core.relay(peer.node, self._exchanges.key_frame())
        self._succession.begin(peer, now)
        if peer.predecessor is None and not arrival.relayed and before is not None and before != arrival.source:
            # If the frame was a replay, the peer is where it was, and its answer moves the endpoint back.
            self._probe(peer, before)
        self._salvage(peer, old, now)
        self._flush(peer, now)

    def _salvage(self, peer: Peer, old: Session | None, now: float) -> None:
        packets = old.salvage(now) if old is not None else []
        if not packets or peer.session is None:
            return
        with contextlib.suppress(NoAddress):
            for packet in packets:
                self._core.write(peer, peer.session.seal(packet), now)
                self._core.traffic.sealed += 1
        self._core.events.append(Salvaged(peer.node, len(packets)))

    def _flush(self, peer: Peer, now: float) -> None:
        """Send the packets that waited for the key, in order (§8.3)."""
        session = peer.session
        if session is None:
            return
        while peer.queue:
            _, packet = peer.queue.popleft()
            with contextlib.suppress(NoAddress):
                self._core.write(peer, session.seal(packet), now)
                self._core.traffic.sealed += 1

    def _consider_endpoint(self, peer: Peer, arrival: Arrival, now: float) -> None:
        """A repeated key frame from elsewhere proves nothing: it may be a replay. Ask there; the answer moves the endpoint."""
        if arrival.relayed or arrival.source == peer.route.address or peer.session is None:
            return
        self._probe(peer, arrival.source)

    def _probe(self, peer: Peer, to: Addr) -> None:
        assert peer.session is not None
        probe = path_probe(self._core.node_id, peer.node)
        self._core.write_direct(self._core.seal(peer.session, probe), to)

    def _answer_repeated(self, peer: Peer, now: float) -> None:
        """Answer a known key frame if the peer may not have ours, but not too often (§7.4).

        It may have lost ours if it has been silent, or if it shows its key a second time and has used no session in between.
        The latter counts now and then only: on a long path two nodes would go on answering each other's answers.
        """
        asks = peer.opened_at < peer.shown_at <= now - DEBOUNCE and now - peer.stale_reply_at >= STALE_AFTER
        if now - peer.shown_at >= DEBOUNCE:  # else it is a copy that took another path
            peer.shown_at = now
        if now - peer.opened_at <= STALE_AFTER and not asks:
            return
        if now - peer.stale_reply_at < STALE_REPLY_GAP and not listed(self._core.settings.reply_whitelist, peer.node):
            return
        peer.stale_reply_at = now
        with contextlib.suppress(NoAddress):
            self._core.write(peer, self._exchanges.key_frame(), now)
