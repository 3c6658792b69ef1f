"""The trust service: requests and answers between nodes, over streams where possible, else through the registry.

What to do is decided in `proto/trust.py` (`spec/services.md` §1). Here is what operators and local programs do about it. The
other parts: `trust_messages` takes what peers say, `courier` carries what is said to them, `mailbox` fetches what waits for
this node at the registry, `trust_store` has the table and its file, `trust_journal` tells the log and the event bus.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from pilot_trio.address import NodeId
from pilot_trio.daemon.courier import Courier, Dial
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.interfaces import Lookup, Registry
from pilot_trio.daemon.mailbox import Mailbox
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.trust_journal import TrustJournal
from pilot_trio.daemon.trust_messages import PeerMessages
from pilot_trio.daemon.trust_store import TrustStore
from pilot_trio.errors import CommandError, DialError, RegistryError
from pilot_trio.proto.trust import TrustTable
from pilot_trio.wire.handshake import HandshakeMessage, Kind

WAIT_MAX: Final = 30.0  # seconds that a client may wait for trust; protocol, `spec/ipc.md` §5.5
APPROVAL_RETRY: Final = 0.25  # seconds for the registry to learn of an approval, after which the peer can be found
PARTING_TIMEOUT: Final = 5.0  # seconds to reach a peer that is to learn that it is not trusted any more
PARTING_LINGER: Final = 1.0  # seconds that its tunnel stays then, for the message to arrive, a lost packet included
REAP_INTERVAL: Final = 300.0  # seconds between clean-ups of expired records; protocol, `spec/services.md` §1.13

_log = logging.getLogger("pilot_trio.trust")


class TrustService:
    """Trust between this node and others.

    Args:
      state: who we are.
      registry: relays requests and answers, and learns of trust.
      resolver: names the keys and networks of others.
      events: where changes are published.
      dial: opens a stream to a port of a node; raises `DialError`.
      path: `trust.json`; None keeps nothing.
      auto_approve: approve every request.
      keepalive: seconds between polls of an idle node.
      wall_time: Unix seconds.
      jitter: a number from 0 to 1, anew with each call.
    """

    def __init__(
        self,
        *,
        state: NodeState,
        registry: Registry,
        resolver: Lookup,
        events: EventBus,
        dial: Dial,
        path: Path | None = None,
        auto_approve: bool = False,
        keepalive: float = 60.0,
        wall_time: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._state = state
        self._now = wall_time
        self._journal = TrustJournal(events)
        self._store = TrustStore(path, wall_time)
        self._courier = Courier(state, registry, dial, wall_time)
        self._messages = PeerMessages(
            state,
            resolver,
            self._store,
            self._courier,
            self._journal,
            self._settle,
            self._changed,
            wall_time,
            auto_approve,
        )
        self._mailbox: Mailbox = Mailbox(
            state, registry, self._messages.on_relayed_request, self._messages.on_relayed_response, keepalive, jitter
        )
        self._requesting: set[NodeId] = set()
        self._waiters: dict[NodeId, trio.lowlevel.ParkingLot] = {}
        self.on_asked: Callable[[int], None] = _ignore
        """Called when a peer is about to be asked for trust, directly or through the registry: it may dial us to answer."""
        self.on_parted: Callable[[int], None] = _ignore
        """Called when a peer has been told that trust in it is revoked, or could not be: its tunnel is of no use any more."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is stored, report the start, and serve until cancelled; what changed is stored on the way out."""
        await self._store.load()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._store.run)
                nursery.start_soon(self._mailbox.run)
                nursery.start_soon(self._reap)
                self._courier.nursery = nursery
                task_status.started()
        finally:
            self._courier.nursery = None
            await self._store.flush()  # last, because a poll that was under way may have brought something

    # What others ask

    @property
    def _table(self) -> TrustTable:
        return self._store.table

    @property
    def pending_count(self) -> int:
        """How many requests wait for the operator."""
        return len(self._table.pending)

    def is_trusted(self, node: int) -> bool:
        """Say whether a peer is on the trusted list; the own id is not, unless it shook hands with itself."""
        return node in self._table.trusted

    def admits(self, node: int) -> bool:
        """Say whether a node may reach us as a trusted one: a trusted peer, or ourselves."""
        return node in self._table.trusted or (node == self._state.node_id and self._state.registered)

    def trusted_ids(self) -> list[NodeId]:
        """Return the trusted peers; enrolment reports them again after the registry lost them."""
        return list(self._table.trusted)

    def known_key(self, node: int) -> str:
        """Return the key recorded for a trusted peer, empty if none is."""
        record = self._table.trusted.get(NodeId(node))
        return "" if record is None else record.public_key

    def pending_rows(self) -> list[dict[str, Any]]:
        """Return the pending requests as clients see them (`spec/ipc.md` §5.5)."""
        return [
            {
                "node_id": request.node_id,
                "public_key": request.public_key,
                "justification": request.justification,
                "received_at": int(request.received_at),
            }
            for request in self._table.pending.values()
        ]

    def trusted_rows(self) -> list[dict[str, Any]]:
        """Return the trusted peers as clients see them (`spec/ipc.md` §5.5)."""
        return [
            {
                "node_id": peer.node_id,
                "public_key": peer.public_key,
                "approved_at": int(peer.approved_at),
                "mutual": peer.mutual,
                "network": peer.network,
            }
            for peer in self._table.trusted.values()
        ]

    def poke(self) -> None:
        """Fetch the mailbox soon: the beacon says that something waits there. Rate-limited."""
        self._mailbox.poke()

    def may_be_answered(self, node: int) -> bool:
        """Say whether a request to this node was sent lately, so that asking the registry may bring its answer."""
        return self._mailbox.awaits(NodeId(node))

    @property
    def poll_due(self) -> bool:
        """Whether `poll` would wait; if not, what is known is as fresh as it gets."""
        return self._mailbox.due

    async def poll(self) -> None:
        """Fetch the mailbox for a local client: at most one poll in 2 s, and at most 3 s of waiting."""
        await self._mailbox.poll_for_client()

    async def wait(self, node: int, timeout: float) -> bool:
        """Wait until a node is trusted, at most `timeout` seconds (and at most `WAIT_MAX`); say whether it is."""
        with trio.move_on_after(min(timeout, WAIT_MAX)):
            if not self.admits(node) and self.may_be_answered(node):
                await self.poll()
            lot = self._waiters.setdefault(NodeId(node), trio.lowlevel.ParkingLot())
            try:
                while not self.admits(node):
                    await lot.park()
            finally:
                if not lot and self._waiters.get(NodeId(node)) is lot:
                    del self._waiters[NodeId(node)]
        return self.admits(node)

    # What the operator does

    async def request(self, node: int, justification: str) -> bool:
        """Ask a node for trust; False if such a request is under way already.

        Returns when the request was delivered or parked at the registry. A trusted node is not asked again.

        Raises:
          CommandError: it could be neither delivered nor parked.
        """
        if not self._state.registered:
            raise CommandError("this node is not registered yet: its registry has not answered")
        peer = NodeId(node)
        if peer in self._requesting:
            self._mailbox.expect(peer)
            return False
        if not self._table.start_request(peer, self._now()):
            return True
        self._changed()
        self._mailbox.expect(peer)
        self._requesting.add(peer)
        try:
            self.on_asked(peer)
            await self._courier.request(peer, justification)
        except RegistryError as exc:
            self._table.forget_request(peer)  # nobody has it, so nobody can answer
            self._mailbox.settle(peer)
            self._changed()
            raise CommandError(f"handshake relay: {exc}") from exc
        finally:
            self._requesting.discard(peer)
        return True

    def approve(self, node: int) -> None:
        """Trust a node whose request is pending; without one nothing happens."""
        peer = NodeId(node)
        if not self._table.approve(peer, self._now()):
            return
        self._journal.log("handshake approved", peer)
        self._journal.publish("handshake.approved", {"peer_node_id": peer})
        self._journal.trust_changed(peer, "granted", "approved")
        self._changed()
        self._courier.soon(self._courier.vouch, peer)
        self._courier.soon(self._tell_approved, peer)
        if not self.known_key(peer):  # a relayed request does not name one
            self._courier.soon(self._messages.back_fill_key, peer)

    def reject(self, node: int, reason: str) -> None:
        """Drop a pending request and tell the node."""
        peer = NodeId(node)
        self._table.reject(peer)
        self._journal.log("handshake rejected", peer, reason=reason)
        self._journal.publish("handshake.rejected", {"peer_node_id": peer, "reason": reason})
        self._changed()
        self._courier.soon(self._courier.respond, peer, False)
        self._courier.soon(self._courier.tell, peer, Kind.REJECT, reason)

    def revoke(self, node: int) -> None:
        """Withdraw trust and tell the node and the registry.

        Raises:
          CommandError: the node was not trusted. What it still had pending is gone all the same.
        """
        peer = NodeId(node)
        was_trusted = self._table.revoke(peer, self._now())
        self._mailbox.settle(peer)
        self._changed()
        if not was_trusted:
            raise CommandError(f"node {node} was not trusted")
        self._journal.log("trust revoked", peer)
        self._journal.publish("trust.revoked", {"peer_node_id": peer})
        self._journal.trust_changed(peer, "revoked", "local")
        self._courier.soon(self._part_with, peer)

    async def _tell_approved(self, peer: NodeId) -> None:
        """Tell a peer that it is trusted. The registry lets us find a private one only once it knows of the approval."""
        try:
            await self._courier.tell(peer, Kind.ACCEPT)
        except DialError:
            await trio.sleep(APPROVAL_RETRY)
            await self._courier.tell(peer, Kind.ACCEPT)

    async def _part_with(self, peer: NodeId) -> None:
        """Tell the peer as long as there is a way to it: without the registry's help and without a tunnel there is none."""
        try:
            with trio.move_on_after(PARTING_TIMEOUT):
                await self._courier.tell(peer, Kind.REVOKE, "trust revoked")
        except (DialError, trio.BrokenResourceError) as exc:
            _log.debug("peer not told of revoked trust", extra={"kv": {"peer_node_id": peer, "error": str(exc)}})
        self._courier.soon(self._courier.withdraw, peer)
        await trio.sleep(PARTING_LINGER)
        if not self.is_trusted(peer):
            self.on_parted(peer)

    # What peers say

    async def receive(self, message: HandshakeMessage, stream_peer: int) -> None:
        """Take a message that came over a stream from `stream_peer`; whatever is wrong with it, nobody is told."""
        await self._messages.receive(message, stream_peer)

    # Small change

    def _settle(self, peer: NodeId) -> None:
        """Stop polling for an answer of a peer."""
        self._mailbox.settle(peer)

    def _changed(self) -> None:
        """Follow every input to the table: wake who waited, publish broken bindings, have the file written."""
        for peer in self._table.take_granted():
            self._mailbox.settle(peer)
            if lot := self._waiters.get(peer):
                lot.unpark_all()
        for peer in self._table.take_broken():
            self._journal.log("trust ended: peer has another key", peer)
            self._journal.trust_changed(peer, "revoked", "key_changed")
        self._store.changed()

    async def _reap(self) -> None:
        while True:
            await trio.sleep(REAP_INTERVAL)
            now = self._now()
            self._messages.reap(now)
            if stale := self._table.reap(now):
                _log.info("reaped stale pending handshakes", extra={"kv": {"count": stale, "ttl_hours": 720}})
            self._changed()


def _ignore(_: int) -> None:
    """Stand in for whoever keeps tunnels."""
