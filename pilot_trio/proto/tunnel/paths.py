"""Finding a peer again: paths in doubt, the way back from the relay, starting over (`spec/tunnel.md` §10.6, §11.4).

A path dies without a word: a router restarts, a mapping ends, the peer moves. What shows is that something was sent and
nothing comes back. Then the peer is in doubt: it is asked on both paths, directly and by relay, its route is resolved
anew, and the beacon is asked to make both ends send at once. Whichever answer comes first says how it is reached.
"""

from __future__ import annotations

import contextlib
from math import inf

from pilot_trio.address import NodeId
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import Addr, RouteNeeded
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.settings import (
    DOUBT_GAPS,
    RESOLVE_GAP,
    UPGRADE_INTERVAL,
    UPGRADE_PROBE_GAP,
    UPGRADE_PROBES,
    UPGRADE_RESOLVE_GAP,
)
from pilot_trio.proto.tunnel.upkeep_packets import path_probe
from pilot_trio.wire.beacon import PunchRequest
from pilot_trio.wire.packet import Packet


class Paths:
    """What is done about the paths of peers; when it is time for it is `Upkeep`'s business."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # --- what is sent ------------------------------------------------------------------------------------------------

    def send_sealed(self, peer: Peer, packet: Packet, now: float) -> None:
        """Send upkeep under the session, if there is one; it does not count as use of the peer."""
        if peer.session is not None:
            with contextlib.suppress(NoAddress):
                self._core.write(peer, self._core.seal(peer.session, packet), now)

    def send_directly(self, peer: Peer, packet: Packet, to: Addr) -> None:
        """Send upkeep to an endpoint at which the peer may be."""
        if peer.session is not None and to != self._core.beacon:
            self._core.write_direct(self._core.seal(peer.session, packet), to)

    def punch(self, peer: Peer) -> None:
        """Ask the beacon to make both ends send at once, so that both NATs have a mapping (§13.4)."""
        core = self._core
        if core.beacon is not None and not core.settings.relay_only and not peer.route.hidden:
            core.out.append((PunchRequest(NodeId(core.node_id), NodeId(peer.node)).encode(), core.beacon))

    # --- doubt -------------------------------------------------------------------------------------------------------

    def doubt(self, peer: Peer, now: float, *, resolve: bool) -> None:
        """Ask a peer for a sign of life on every path there is, and again until one comes."""
        if peer.session is None:
            return  # the key exchange repeats itself, on both paths
        peer.asked_at = now
        peer.doubts = 1
        self._ask_everywhere(peer, now, resolve=resolve)

    def look_for_answer(self, peer: Peer, now: float) -> None:
        """Look whether what was sent has been answered; called when `peer.doubt_at` has come."""
        peer.doubt_at = inf
        if peer.session is None or peer.opened_at >= peer.asked_at or peer.doubts >= len(DOUBT_GAPS):
            # If it was not, the slow watch of paths takes over, and the next packet that wants an answer begins anew.
            peer.doubts = 0
        elif peer.doubts:
            self._ask_everywhere(peer, now, resolve=True)
        else:
            # Not everything is answered, a datagram for one. A single probe tells a silent peer from a dead path.
            self._wait_for_answer(peer, now)
            self.send_sealed(peer, path_probe(self._core.node_id, peer.node), now)

    def _wait_for_answer(self, peer: Peer, now: float) -> None:
        peer.doubt_at = now + DOUBT_GAPS[peer.doubts]
        peer.doubts += 1
        self._core.touch(peer)

    def _ask_everywhere(self, peer: Peer, now: float, *, resolve: bool) -> None:
        core, route = self._core, peer.route
        self._wait_for_answer(peer, now)
        probe = path_probe(core.node_id, peer.node)
        self.send_sealed(peer, probe, now)
        if not route.relay:
            if core.beacon is not None and peer.session is not None:
                core.relay(peer.node, core.seal(peer.session, probe))
        elif route.address is not None and not route.hidden:
            self.send_directly(peer, probe, route.address)
        self.punch(peer)
        if resolve and now >= peer.resolved_at + RESOLVE_GAP:
            peer.resolved_at = now
            core.events.append(RouteNeeded(peer.node, fresh=True))

    def try_endpoint(self, peer: Peer, to: Addr, now: float) -> None:
        """Probe where the registry says that a peer is, if that is news; its answer moves the endpoint."""
        if peer.route.relay:
            self.start_upgrade(peer, to, now)
        elif peer.doubts and to != peer.route.address:
            self.send_directly(peer, path_probe(self._core.node_id, peer.node), to)

    # --- from relay to direct ----------------------------------------------------------------------------------------

    def consider_upgrade(self, peer: Peer, now: float) -> None:
        """Find out whether the direct path of a relayed peer works by now; called when `peer.upgrade_at` has come."""
        peer.upgrade_at = now + UPGRADE_INTERVAL
        if peer.session is not None and not peer.upgrade_probes:
            if peer.route.address is not None and not peer.route.hidden:
                self.start_upgrade(peer, peer.route.address, now)  # the registry may take its time, or be away
            fresh = not peer.route.hidden and now >= peer.resolved_at + UPGRADE_RESOLVE_GAP
            peer.resolved_at = now if fresh else peer.resolved_at
            self._core.events.append(RouteNeeded(peer.node, fresh=fresh))

    def start_upgrade(self, peer: Peer, to: Addr, now: float) -> None:
        """Probe the direct path of a relayed peer; the probes make the peer turn its own route back (§10.6).

        They ask for answers, unlike the reference's: once the peer has turned back these come directly, and turn us back too.
        The registry may not have heard yet that the peer has moved, and the peer may have moved since it was last heard, so
        both endpoints are tried.
        """
        if peer.session is None:
            return
        if peer.upgrade_probes and to in peer.upgrade_to:
            return
        peer.route.pinned = False
        endpoints = {to: None} if peer.route.address is None else {to: None, peer.route.address: None}
        peer.upgrade_to, peer.upgrade_probes = tuple(endpoints), UPGRADE_PROBES
        self.punch(peer)
        self.continue_upgrade(peer, now)

    def continue_upgrade(self, peer: Peer, now: float) -> None:
        """Send the next probes; called when `peer.upgrade_probe_at` has come."""
        core = self._core
        peer.upgrade_probe_at = inf
        if peer.session is None:
            peer.upgrade_probes = 0
            return
        for endpoint in peer.upgrade_to:
            self.send_directly(peer, path_probe(core.node_id, peer.node), endpoint)
        peer.upgrade_probes -= 1
        if peer.upgrade_probes:
            peer.upgrade_probe_at = now + UPGRADE_PROBE_GAP
            core.touch(peer)

    # --- starting over -----------------------------------------------------------------------------------------------

    def reset(self, peer: Peer, now: float) -> None:
        """Forget how the peer is reached and start over; what waits for its key keeps waiting (§11.4)."""
        core, route = self._core, peer.route
        peer.reset_at = peer.resolved_at = now
        core.end_session(peer)
        peer.exchange = None
        peer.cooldown_until = peer.rekey_at = -inf
        peer.key_request_due = True  # the peer may hold its end of the session, and would not answer a mere key frame
        peer.probes = peer.doubts = peer.upgrade_probes = 0
        peer.doubt_at = peer.upgrade_probe_at = inf
        route.pinned = False
        route.address = None
        route.first_sent_at = inf
        route.last_direct_at = -inf
        core.events.append(RouteNeeded(peer.node, fresh=True))
