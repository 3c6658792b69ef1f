"""What the tunnel does on its own: repeat, keep alive, probe, give up, forget (`spec/tunnel.md` §7.7, §11).

Every peer has one deadline, the earliest of all that may be due for it, and they stand in one heap. Whoever makes something
due earlier touches the peer (`Core.touch`); what moves a deadline later leaves it be, and the look at the peer, when it
comes, finds nothing to do and sets the next one. So a peer costs nothing between its deadlines, and packets cost none.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.events import Drop, Forgotten, GaveUp, PathSuspect
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.paths import Paths
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.settings import (
    COOLDOWN,
    EARLY_TIME,
    FORGET_AFTER,
    IDLE_AFTER,
    KEEPALIVE_AFTER,
    LOOK_GAP,
    OVERDUE_GAP,
    PROBE_AFTER,
    PROBE_INTERVAL,
    PROBE_PAUSE,
    PROBES_MAX,
    QUEUE_TIME,
    RESET_GAP,
    SENDS_MAX,
    UPGRADE_FIRST,
)
from pilot_trio.proto.tunnel.succession import Succession
from pilot_trio.proto.tunnel.upkeep_packets import keepalive, path_probe


class Upkeep:
    """The timers of all peers."""

    def __init__(self, core: Core, exchanges: KeyExchanges, paths: Paths, succession: Succession) -> None:
        self._core = core
        self._succession = succession
        self._exchanges = exchanges
        self._paths = paths
        self._heap: list[tuple[float, int]] = []  # (deadline, node); an entry that is not the peer's `due_at` is void

    def next_deadline(self) -> float:
        """Return when `run` is next needed."""
        core, heap = self._core, self._heap
        if core.touched:
            for node in core.touched:
                peer = core.peers.get(node)
                if peer is not None:
                    self._schedule(peer, self._due_at(peer, max(peer.frame_at, peer.used_at)))
            core.touched.clear()
        while heap:
            due_at, node = heap[0]
            peer = core.peers.get(node)
            if peer is not None and peer.due_at == due_at:
                return due_at
            heappop(heap)
        return inf

    def run(self, now: float) -> None:
        """Do what is due."""
        heap, peers = self._heap, self._core.peers
        while self.next_deadline() <= now:
            _, node = heappop(heap)
            peer = peers[node]
            peer.due_at = inf
            self._look_after(peer, now)
            if node in peers:
                due_at = self._due_at(peer, now)
                self._schedule(peer, due_at if due_at > now else now + OVERDUE_GAP)

    def _schedule(self, peer: Peer, due_at: float) -> None:
        if due_at < peer.due_at:
            peer.due_at = due_at
            heappush(self._heap, (due_at, peer.node))

    def _due_at(self, peer: Peer, reference: float) -> float:
        """Return when something may be due for a peer next; `reference`: the last moment at which somebody looked at it."""
        due_at = min(peer.doubt_at, peer.upgrade_probe_at, peer.predecessor_at, reference + LOOK_GAP)
        if peer.exchange is not None:
            due_at = min(due_at, peer.exchange.due_at())
        if peer.queue:
            due_at = min(due_at, peer.queue[0][0] + QUEUE_TIME)
        if peer.early:
            due_at = min(due_at, peer.early[0][0] + EARLY_TIME)
        idle_at = inf if peer.in_use else peer.used_at + IDLE_AFTER
        regular_at = self._regular_at(peer, reference)
        if regular_at < idle_at:
            return min(due_at, regular_at)
        return min(due_at, max(idle_at, peer.frame_at + FORGET_AFTER))

    def _regular_at(self, peer: Peer, reference: float) -> float:
        """Return when upkeep is next due that a peer gets unless it is idle."""
        regular_at = inf
        settings = self._core.settings
        if peer.session is not None:
            regular_at = peer.route.last_sent_at + KEEPALIVE_AFTER
            if settings.path_watch:
                regular_at = min(regular_at, _watch_at(peer))
        if peer.route.relay and not settings.relay_only:
            # Not at once: who has just been turned to the relay is about to be sent something there.
            regular_at = min(regular_at, max(peer.upgrade_at, reference + UPGRADE_FIRST))
        return regular_at

    # --- one peer ----------------------------------------------------------------------------------------------------

    def _look_after(self, peer: Peer, now: float) -> None:
        core, paths = self._core, self._paths
        if peer.exchange is not None and peer.exchange.due_at() <= now:
            self._repeat_exchange(peer, now)
        self._let_expire(peer, now)
        if peer.predecessor_at <= now:
            self._succession.ask(peer, now)
        if peer.doubt_at <= now:
            paths.look_for_answer(peer, now)
        if peer.upgrade_probe_at <= now:
            paths.continue_upgrade(peer, now)
        if not peer.is_idle(now, IDLE_AFTER):
            self._keep_up(peer, now)
        elif peer.frame_at + FORGET_AFTER <= now and not peer.queue:
            core.forget(peer.node)
            core.events.append(Forgotten(peer.node))

    def _let_expire(self, peer: Peer, now: float) -> None:
        while peer.queue and peer.queue[0][0] + QUEUE_TIME <= now:
            peer.queue.popleft()
            self._core.drop(Drop.QUEUE_EXPIRED)
        while peer.early and peer.early[0][0] + EARLY_TIME <= now:
            peer.early.popleft()

    def _keep_up(self, peer: Peer, now: float) -> None:
        """Keep a peer's path open, and see whether it still is (§11.1, §11.3). Idle peers are let go instead (§11.5)."""
        core, paths = self._core, self._paths
        if peer.session is not None:
            if peer.route.last_sent_at + KEEPALIVE_AFTER <= now:
                paths.send_sealed(peer, keepalive(core.node_id), now)
            if core.settings.path_watch and _watch_at(peer) <= now:
                self._watch_path(peer, now)
        if peer.route.relay and not core.settings.relay_only and peer.upgrade_at <= now:
            paths.consider_upgrade(peer, now)

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
        self._paths.reset(peer, now)

    def _watch_path(self, peer: Peer, now: float) -> None:
        if peer.probes >= PROBES_MAX:
            self._core.events.append(PathSuspect(peer.node, "silent", now - peer.opened_at, peer.probes))
            peer.probe_pause_until = now + PROBE_PAUSE
            self._paths.reset(peer, now)
            return
        peer.probes += 1
        peer.probe_at = now
        self._paths.send_sealed(peer, path_probe(self._core.node_id, peer.node), now)


def _watch_at(peer: Peer) -> float:
    """Return when a silent path is due for its next probe, or for a reset (§11.3)."""
    return max(peer.opened_at + PROBE_AFTER, peer.probe_pause_until, peer.probe_at + PROBE_INTERVAL)
