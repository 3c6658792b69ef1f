"""What peers say about trust: requests, answers and revocations, over streams and through the registry's relay.

What follows from a message is decided by `proto.handshake` and `proto.trust`; here is what is done about it, and what is
asked of the registry first (`spec/services.md` §1.4, §1.5, §1.7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from pilot_trio.address import BACKBONE, NetworkId, NodeId
from pilot_trio.daemon.courier import Courier
from pilot_trio.daemon.interfaces import Lookup
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.trust_journal import TrustJournal
from pilot_trio.daemon.trust_store import TrustStore
from pilot_trio.errors import RegistryError
from pilot_trio.proto.handshake import Drop, ReplayMemory, check_signature, screen
from pilot_trio.proto.trust import GRANTING, Request, Verdict, sanitise
from pilot_trio.wire.handshake import HandshakeMessage, Kind
from pilot_trio.wire.registry import Message

KEY_TEXT_MAX: Final = 64  # characters; a key in base64 has 44

_APPROVED_LINE: Final = {
    Verdict.MUTUAL: "mutual handshake auto-approved",
    Verdict.SAME_NETWORK: "same network handshake auto-approved",
    Verdict.AUTO_APPROVE: "handshake auto-approved (trust-auto-approve enabled)",
}


@attrs.define(eq=False)
class PeerMessages:
    """The receiving side of trust.

    Args:
      state: who we are.
      resolver: names the keys and networks of others.
      store: has the table.
      courier: carries answers.
      journal: tells operators and programs.
      settle: called when a peer has answered: its answer need not be polled for any more.
      changed: called after every input to the table.
      now: the time, Unix seconds.
      auto_approve: approve every request.
    """

    _state: NodeState
    _resolver: Lookup
    _store: TrustStore
    _courier: Courier
    _journal: TrustJournal
    _settle: Callable[[NodeId], None]
    _changed: Callable[[], None]
    _now: Callable[[], float]
    _auto_approve: bool
    _replays: ReplayMemory = attrs.field(factory=ReplayMemory, init=False)

    def reap(self, now: float) -> None:
        """Forget messages so old that they would not be believed again."""
        self._replays.reap(now)

    # Over a stream

    async def receive(self, message: HandshakeMessage, stream_peer: int) -> None:
        """Take a message that came over a stream from `stream_peer`; whatever is wrong with it, nobody is told."""
        kind = screen(message, NodeId(stream_peer), self._now())
        if isinstance(kind, Drop):
            return self._dropped(message, kind)
        own, sender = self._state.node_id, NodeId(message.node_id)
        record: Message = {}
        if message.public_key:
            record = await self._record_of(sender)
            if drop := check_signature(message, own, _key(record)):
                return self._dropped(message, drop)
        if self._replays.seen(message, own):
            return self._dropped(message, Drop.REPLAYED)
        self._replays.record(message, own, self._now())
        if kind is Kind.REQUEST:
            self._on_request(message, NodeId(stream_peer), record)
        elif kind is Kind.ACCEPT:
            self._on_accept(sender, message.public_key)
        elif kind is Kind.REJECT:
            self._on_reject(sender, message.reason)
        else:
            self._on_revoke(sender)
        return None

    def _on_request(self, message: HandshakeMessage, source: NodeId, record: Message) -> None:
        peer, text = NodeId(message.node_id), sanitise(message.justification)
        self._journal.log("handshake request received", peer, justification=text)
        self._journal.publish("handshake.received", {"peer_node_id": peer, "justification": text})
        request = Request(
            peer,
            source,
            message.public_key,
            text,
            proven=_key(record) == message.public_key,
            shared_network=self._shared_network(record),
        )
        verdict = self._store.table.on_request(request, self._now(), auto_approve=self._auto_approve)
        self._after_request(request, verdict, relayed=False)
        if verdict in GRANTING:
            self._journal.granted_itself(peer, verdict.value)
        if verdict in GRANTING or verdict is Verdict.ALREADY:
            self._courier.soon(self._courier.vouch, peer)  # also for one that asks again: it has not learnt of it
            self._courier.soon(self._courier.tell, peer, Kind.ACCEPT)

    def _on_accept(self, peer: NodeId, public_key: str) -> None:
        verdict = self._store.table.on_accept(peer, public_key, self._now())
        self._changed()
        if verdict is not Verdict.GRANTED:
            self._journal.log(
                "dropping handshake acceptance with no matching outgoing request", peer, why=verdict.value
            )
            return
        self._journal.log("handshake accepted by peer", peer)
        self._journal.trust_changed(peer, "granted", "accepted")
        self._courier.soon(self._courier.report, peer)

    def _on_reject(self, peer: NodeId, reason: str) -> None:
        self._store.table.forget_request(peer)
        self._settle(peer)
        self._journal.log("handshake rejected by peer", peer, reason=sanitise(reason))
        self._changed()

    def _on_revoke(self, peer: NodeId) -> None:
        was_trusted = self._store.table.on_revoke(peer)
        self._settle(peer)
        self._journal.log("trust revoked by peer", peer)
        self._journal.publish("trust.revoked_by_peer", {"peer_node_id": peer})
        self._journal.trust_changed(peer, "revoked", "by_peer")
        self._changed()
        if was_trusted:
            self._courier.soon(self._courier.withdraw, peer)

    # Through the registry

    async def on_relayed_request(self, peer: NodeId, justification: str) -> None:
        """Take a request that waited at the registry, which vouches for the sender."""
        text = sanitise(justification)
        self._journal.log("relayed handshake request received", peer, "from_node_id", justification=text)
        self._journal.publish("handshake.received", {"peer_node_id": peer, "justification": text})
        shared = BACKBONE
        if self._state.networks and peer not in self._store.table.trusted:
            shared = self._shared_network(await self._record_of(peer))
        request = Request(peer, peer, "", text, proven=True, shared_network=shared)
        verdict = self._store.table.on_request(request, self._now(), auto_approve=self._auto_approve)
        self._after_request(request, verdict, relayed=True)
        if verdict is Verdict.AUTO_APPROVE:
            self._journal.granted_itself(peer, "auto_approve_relayed")
        if verdict in GRANTING or verdict is Verdict.ALREADY:
            self._courier.soon(self._courier.respond, peer, True)
            self._courier.soon(self.back_fill_key, peer)
        if verdict in GRANTING and verdict is not Verdict.MUTUAL:
            self._courier.soon(self._courier.report, peer)

    def on_relayed_response(self, peer: NodeId, accept: bool, arrived_at: float) -> None:
        """Take an answer that waited there since `arrived_at` (Unix seconds)."""
        if not accept:
            return self._on_relayed_reject(peer, arrived_at)
        self._journal.log("relayed handshake approval received", peer)
        verdict = self._store.table.on_relayed_accept(peer, self._now())
        self._changed()
        if verdict is Verdict.GRANTED:
            self._journal.log("trust established via relayed approval", peer)
            self._journal.trust_changed(peer, "granted", "accepted")
            self._courier.soon(self.back_fill_key, peer)
        return None

    def _on_relayed_reject(self, peer: NodeId, arrived_at: float) -> None:
        self._journal.log("relayed handshake rejection received", peer)
        if self._store.table.on_relayed_reject(peer, arrived_at):
            self._settle(peer)
        self._changed()

    def _after_request(self, request: Request, verdict: Verdict, *, relayed: bool) -> None:
        peer = request.node_id
        if verdict is Verdict.PENDING:
            line = "relayed handshake request pending approval" if relayed else "handshake request pending approval"
            self._journal.log(line, peer, "from_node_id" if relayed else "peer_node_id")
            data = {"peer_node_id": peer, "justification": request.justification}
            self._journal.publish("handshake.pending", data)
        elif verdict in GRANTING:
            self._journal.log(_APPROVED_LINE[verdict], peer)
        elif verdict is not Verdict.ALREADY:
            self._journal.log("handshake request dropped", peer, why=verdict.value)
        self._changed()

    async def back_fill_key(self, peer: NodeId) -> None:
        """Learn the key of a trusted peer from the registry: a relayed request does not name one."""
        if key := _key(await self._resolver.lookup(peer)):
            self._store.table.bind_key(peer, key)
            self._changed()

    # Small change

    async def _record_of(self, node: NodeId) -> Message:
        """Return what the registry knows of a node; nothing if it cannot be asked."""
        if node == self._state.node_id:
            return {"public_key": self._state.identity.public_key_b64}
        try:
            return await self._resolver.lookup(node)
        except RegistryError:
            return {}

    def _shared_network(self, record: Message) -> NetworkId:
        theirs = record.get("networks")
        members = theirs if isinstance(theirs, list) else []
        return next((network for network in self._state.networks if network in members), BACKBONE)

    def _dropped(self, message: HandshakeMessage, drop: Drop) -> None:
        self._journal.log(drop.value, NodeId(message.node_id))


def _key(record: Message) -> str:
    key = record.get("public_key")
    return key if isinstance(key, str) and key.isascii() and len(key) <= KEY_TEXT_MAX else ""
