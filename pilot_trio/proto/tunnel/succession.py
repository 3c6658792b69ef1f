"""Two keys of one peer: the one of a new key frame, and the one that its packets were sealed with until now.

A key frame carries no time. One of an earlier process, replayed from anywhere, looks as that of a new process does, and
replaces a session that is alive. So the session that was replaced is kept until its successor has opened a packet, and is
asked for a sign of life. An answer can only come from the process that has its key: then the frame was an old one, and
everything is put back. A process that has gone does not answer. That something sealed with the old key arrives proves
nothing, as it may have been under way; but it is a reason to ask again.
"""

from __future__ import annotations

from math import inf

from pilot_trio.errors import DecodeError
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.events import Addr, Drop
from pilot_trio.proto.tunnel.peer import Peer, Predecessor
from pilot_trio.proto.tunnel.settings import (
    PATH_PROBE,
    PREDECESSOR_GAP,
    PREDECESSOR_QUESTIONS,
    REFUTED_MAX,
    REFUTED_TIME,
)
from pilot_trio.proto.tunnel.upkeep_packets import ping
from pilot_trio.wire import packet as packets
from pilot_trio.wire.packet import ACK, CONTROL


class Succession:
    """Decides between a session and the one that it has replaced."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def refuses(self, peer: Peer, x25519: bytes, now: float) -> bool:
        """Say whether a key is known to be one of an earlier process, as the present one has answered."""
        if peer.session is None or now >= peer.refuted.get(x25519, now):
            return False
        self._core.refuse(peer.node, Drop.SUPERSEDED_KEY)
        return True

    def keep(self, peer: Peer) -> None:
        """Remember the session that is about to be replaced, if it is known to be that of a living process."""
        session = peer.session
        if session is not None and session.peer_x25519 == peer.proven_x25519:
            peer.predecessor = Predecessor(session, peer.route.address, peer.installed_frame, peer.installed_by_relay)

    def begin(self, peer: Peer, now: float) -> None:
        """Give a session that has just been installed a moment to open something; ask its predecessor after that."""
        before = peer.predecessor
        if before is not None and peer.session is not None:
            if before.session.peer_x25519 == peer.session.peer_x25519:
                self.end(peer)
            else:
                # Old frames can come faster than a question is answered: the one under way stays good, and is not put off.
                before.question = before.question or int.from_bytes(self._core.random_bytes(4), "big")
                before.questions = 0
                peer.predecessor_at = min(peer.predecessor_at, now + PREDECESSOR_GAP)
                self._core.touch(peer)

    def end(self, peer: Peer) -> None:
        """Let go of the predecessor: the session has proven to be that of the living process."""
        peer.predecessor, peer.predecessor_at = None, inf

    def ask(self, peer: Peer, now: float) -> None:
        """Ask the session that was replaced for a sign of life, on both paths."""
        core, before = self._core, peer.predecessor
        if before is None:
            return
        before.questions += 1
        peer.predecessor_at = now + PREDECESSOR_GAP if before.questions < PREDECESSOR_QUESTIONS else inf
        core.touch(peer)
        before.asked_at = now
        question = ping(core.node_id, peer.node, 0, before.question, PATH_PROBE)
        ways: list[Addr | None] = [before.address] if before.address is not None else []
        ways += [None] if core.beacon is not None else []
        for to in ways:
            frame = core.seal(before.session, question)
            if to is None:
                core.relay(peer.node, frame)
            else:
                core.write_direct(frame, to)

    def is_undone(self, peer: Peer, datagram: bytes, now: float) -> bool:
        """Look at a datagram that the session does not open; if it is the answer, put the session before back."""
        before = peer.predecessor
        raw = before.session.peek(datagram) if before is not None else None
        if before is None or raw is None:
            return False
        try:
            packet = packets.decode(raw)
        except DecodeError:
            return False
        if packet.protocol != CONTROL or not packet.flags & ACK or packet.seq != before.question:
            if now - before.asked_at >= PREDECESSOR_GAP:
                self.ask(peer, now)
            return False
        self._put_back(peer, before, now)
        return True

    def _put_back(self, peer: Peer, before: Predecessor, now: float) -> None:
        assert peer.session is not None
        peer.refuted.pop(peer.session.peer_x25519, None)
        if len(peer.refuted) >= REFUTED_MAX:
            del peer.refuted[next(iter(peer.refuted))]
        peer.refuted[peer.session.peer_x25519] = now + REFUTED_TIME
        self._core.end_session(peer)
        peer.session = before.session
        self.end(peer)
        peer.installed_frame, peer.installed_by_relay = before.installed_frame, before.installed_by_relay
        if before.address is not None:
            peer.route.address = before.address
        self._core.refuse(peer.node, Drop.SUPERSEDED_KEY)
        self._core.touch(peer)
