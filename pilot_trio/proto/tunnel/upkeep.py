"""What the tunnel does on its own: repeat, keep alive, probe, upgrade, give up, forget (`spec/tunnel.md` §7.7, §10.6, §11)."""

from __future__ import annotations

import contextlib
from math import inf

from pilot_trio.address import NodeId
from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import NoAddress
from pilot_trio.proto.tunnel.events import Addr, Drop, Forgotten, GaveUp, PathSuspect, RouteNeeded
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.settings import (
    COOLDOWN,
    EARLY_TIME,
    FORGET_AFTER,
    IDLE_AFTER,
    KEEPALIVE_AFTER,
    PATH_PROBE,
    PROBE_AFTER,
    PROBE_INTERVAL,
    PROBE_PAUSE,
    PROBES_MAX,
    QUEUE_TIME,
    RESET_GAP,
    SENDS_MAX,
    TICK,
    UPGRADE_INTERVAL,
    UPGRADE_PROBE_GAP,
    UPGRADE_PROBES,
)
from pilot_trio.proto.tunnel.upkeep_packets import keepalive, path_probe, upgrade_probe
from pilot_trio.wire.beacon import PunchRequest
from pilot_trio.wire.packet import Packet


class Upkeep:
    """The timers of all peers. Slow ones share a tick; only upgrade probes need a finer one."""

    def __init__(self, core: Core, exchanges: KeyExchanges) -> None:
        self._core = core
        self._exchanges = exchanges
        self._tick_at = inf
        self._upgrading: set[int] = set()

    def next_deadline(self) -> float:
        """Return when `run` is next needed."""
        upgrade = min((self._core.peers[node].upgrade_at for node in self._upgrading), default=inf)
        return min(self._tick_at, upgrade)

    def arm(self, now: float) -> None:
        """Start the tick if there is anybody to look after."""
        if self._tick_at == inf and self._core.peers:
            self._tick_at = now + TICK

    def run(self, now: float) -> None:
        """Do what is due."""
        for node in list(self._upgrading):
            self._continue_upgrade(node, now)
        if self._tick_at > now:
            return
        self._tick_at = now + TICK if self._core.peers else inf
        for peer in list(self._core.peers.values()):
            self._look_after(peer, now)

    def forget(self, node: int) -> None:
        """Stop what is under way for a peer."""
        self._upgrading.discard(node)

    def _look_after(self, peer: Peer, now: float) -> None:
        if peer.exchange is not None and peer.exchange.due_at() <= now:
            self._repeat_exchange(peer, now)
        while peer.queue and now - peer.queue[0][0] > QUEUE_TIME:
            peer.queue.popleft()
            self._core.drop(Drop.QUEUE_EXPIRED)
        while peer.early and now - peer.early[0][0] > EARLY_TIME:
            peer.early.popleft()
        if peer.is_idle(now, IDLE_AFTER):
            # Let it go: no upkeep, and when nothing has passed for long enough, no memory either.
            if not peer.in_use and now - peer.frame_at > FORGET_AFTER and not peer.queue:
                self._core.forget(peer.node)
                self._upgrading.discard(peer.node)
                self._core.events.append(Forgotten(peer.node))
            return
        if peer.session is not None:
            self._keep_alive(peer, now)
            if self._core.settings.path_watch:
                self._watch_path(peer, now)
        if peer.route.relay and not self._core.settings.relay_only:
            self._consider_upgrade(peer, now)

    # --- key exchange ------------------------------------------------------------------------------------------------

    def _repeat_exchange(self, peer: Peer, now: float) -> None:
        assert peer.exchange is not None
        if peer.exchange.attempts >= SENDS_MAX:
            self._give_up(peer, now)
            return
        if not peer.route.relay and self._core.beacon is not None and peer.exchange.attempts >= 1:
            self._core.turn_to_relay(peer, "silent direct attempts", pin=False)
        self._exchanges.start(peer, now, copy=peer.route.relay)

    def _give_up(self, peer: Peer, now: float) -> None:
        peer.exchange = None
        peer.cooldown_until = now + COOLDOWN
        self._core.events.append(GaveUp(peer.node))
        if peer.is_idle(now, IDLE_AFTER) or now - peer.reset_at < RESET_GAP:
            return
        self._core.events.append(PathSuspect(peer.node, "rekey_gave_up", now - peer.opened_at, 0))
        self.reset_path(peer, now)

    # --- paths -------------------------------------------------------------------------------------------------------

    def _keep_alive(self, peer: Peer, now: float) -> None:
        if now - peer.route.last_sent_at >= KEEPALIVE_AFTER:
            self.send_sealed(peer, keepalive(self._core.node_id), now)

    def _watch_path(self, peer: Peer, now: float) -> None:
        if now - peer.opened_at < PROBE_AFTER or now < peer.probe_pause_until or now - peer.probe_at < PROBE_INTERVAL:
            return
        if peer.probes >= PROBES_MAX:
            self._core.events.append(PathSuspect(peer.node, "silent", now - peer.opened_at, peer.probes))
            peer.probe_pause_until = now + PROBE_PAUSE
            self.reset_path(peer, now)
            return
        peer.probes += 1
        peer.probe_at = now
        self.send_sealed(peer, path_probe(self._core.node_id, peer.node, PATH_PROBE), now)

    def reset_path(self, peer: Peer, now: float) -> None:
        """Forget how the peer is reached and start over; what waits for its key keeps waiting (§11.4)."""
        was_relay = peer.route.relay
        peer.reset_at = now
        self._core.end_session(peer)
        peer.exchange = None
        peer.cooldown_until = peer.rekey_at = -inf
        peer.key_request_due = True  # the peer may hold its end of the session, and would not answer a mere key frame
        peer.probes = 0
        peer.route.pinned = False
        peer.route.address = None
        peer.route.first_sent_at = inf
        peer.route.last_direct_at = -inf
        peer.route.relay = was_relay
        self._core.events.append(RouteNeeded(peer.node))

    def send_sealed(self, peer: Peer, packet: Packet, now: float) -> None:
        """Send upkeep under the session, if there is one; it does not count as use of the peer."""
        if peer.session is not None:
            with contextlib.suppress(NoAddress):
                self._core.write(peer, peer.session.seal(packet.encode()), now)
                self._core.traffic.sealed += 1

    def punch(self, node: int) -> None:
        """Ask the beacon to make both ends send at once, so that both NATs have a mapping (§13.4)."""
        core = self._core
        if core.beacon is not None and not core.settings.relay_only:
            core.out.append((PunchRequest(NodeId(core.node_id), NodeId(node)).encode(), core.beacon))

    # --- from relay to direct ----------------------------------------------------------------------------------------

    def _consider_upgrade(self, peer: Peer, now: float) -> None:
        if peer.node not in self._upgrading and now >= peer.upgrade_at + UPGRADE_INTERVAL and peer.session is not None:
            peer.upgrade_at = now
            self._core.events.append(RouteNeeded(peer.node))

    def start_upgrade(self, peer: Peer, to: Addr, now: float) -> None:
        """Probe the direct path of a relayed peer; the probes make the peer turn its own route back (§10.6)."""
        if peer.session is None or peer.node in self._upgrading:
            return
        peer.route.pinned = False
        peer.upgrade_to, peer.upgrade_probes = to, UPGRADE_PROBES
        self._upgrading.add(peer.node)
        self.punch(peer.node)
        self._continue_upgrade(peer.node, now)

    def _continue_upgrade(self, node: int, now: float) -> None:
        peer = self._core.peers.get(node)
        if peer is None or peer.session is None or peer.upgrade_to is None or not peer.upgrade_probes:
            self._upgrading.discard(node)
            return
        if peer.upgrade_probes < UPGRADE_PROBES and peer.upgrade_at > now:
            return
        peer.upgrade_probes -= 1
        peer.upgrade_at = now + UPGRADE_PROBE_GAP
        probe = upgrade_probe(self._core.node_id, node)
        self._core.write_direct(peer.session.seal(probe.encode()), peer.upgrade_to)
        self._core.traffic.sealed += 1
