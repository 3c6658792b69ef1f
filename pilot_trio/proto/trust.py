"""Whom a node trusts: the records, every transition between them, and their file (`spec/services.md` §1).

All transitions live here; whether a message is to be believed is `proto/handshake.py`. Neither knows streams or the
registry: the shell (`daemon/trust.py`) asks those, hands in what it learned, and does what the returned verdict says. Times
are Unix seconds, because they outlive the process; they come in as `now`.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections import OrderedDict
from enum import Enum
from typing import Final

import attrs

from pilot_trio.address import BACKBONE, NetworkId, NodeId

# What the protocol fixes.
PENDING_MAX: Final = 256  # requests waiting for the operator; §1.1
PENDING_PER_SOURCE_MAX: Final = 16  # of these, delivered by one node; §1.1
OUTGOING_MAX: Final = 4096  # own requests without an answer; the oldest is forgotten, §1.1
REQUEST_LIFETIME: Final = 30 * 86_400  # seconds until a request, own or received, is forgotten; §1.1
REVOKED_COOL_DOWN: Final = 300  # seconds in which a revoked peer's late approval is ignored; §1.1
JUSTIFICATION_MAX: Final = 1024  # bytes of a request's text; §1.5

# What we chose.
TEXT_MAX: Final = 4096  # characters of a text that are looked at: four times what is shown, if some of them must not be
REVOKED_MAX: Final = 4096  # peers that cool down; the one revoked first is forgotten, as it would be within minutes

_NOBODY: Final = NodeId(0)


@attrs.frozen
class TrustedPeer:
    """A peer that may connect. An empty key is unbound: the first key that the registry names is adopted."""

    node_id: NodeId
    approved_at: float
    public_key: str = ""
    mutual: bool = False
    network: NetworkId = BACKBONE


@attrs.frozen
class PendingRequest:
    """A request that waits for the operator."""

    node_id: NodeId
    received_at: float
    public_key: str = ""
    justification: str = ""
    source: NodeId = _NOBODY  # who delivered it: the stream's remote node


class Binding(Enum):
    """How a peer's current key relates to what is recorded (`spec/services.md` §1.8)."""

    NONE = "not trusted"
    HELD = "unchanged"
    ADOPTED = "first key adopted"
    BROKEN = "another key: record deleted"


class Verdict(Enum):
    """What became of a request or an answer."""

    ALREADY = "already trusted"
    MUTUAL = "mutual"
    SAME_NETWORK = "same_network"
    AUTO_APPROVE = "auto_approve"
    PENDING = "pending"
    FULL = "too many pending"
    GRANTED = "granted"
    UNSOLICITED = "no matching request"
    COOLING_DOWN = "revoked a moment ago"
    UNPROVEN_KEY = "another key than the recorded one, and nobody vouches for it"


GRANTING: Final = frozenset({Verdict.MUTUAL, Verdict.SAME_NETWORK, Verdict.AUTO_APPROVE, Verdict.GRANTED})


@attrs.frozen
class Request:
    """A received request with everything that the decision depends on."""

    node_id: NodeId
    source: NodeId
    public_key: str = ""
    justification: str = ""  # as sent; it is sanitised here
    proven: bool = (
        False  # the registry vouches for the sender: its key is the registered one, or it relayed the request
    )
    shared_network: NetworkId = BACKBONE  # a network that both are members of; the backbone does not count


class TrustTable:
    """The four lists and their transitions. `revision` grows with every change that belongs into the file."""

    def __init__(self) -> None:
        self.trusted: dict[NodeId, TrustedPeer] = {}
        self.pending: dict[NodeId, PendingRequest] = {}
        self.outgoing: OrderedDict[NodeId, float] = OrderedDict()  # node -> sent at, oldest first
        self.revoked: dict[NodeId, float] = {}  # node -> until, the one revoked first first
        self.revision = 0
        self._granted: list[NodeId] = []
        self._broken: list[NodeId] = []

    def take_granted(self) -> list[NodeId]:
        """Return the peers that became trusted since the last call; whoever waits for them may go on."""
        granted, self._granted = self._granted, []
        return granted

    def take_broken(self) -> list[NodeId]:
        """Return the peers whose trust ended since the last call because they came with another key."""
        broken, self._broken = self._broken, []
        return broken

    # What the operator does.

    def start_request(self, node: NodeId, now: float) -> bool:
        """Note an own request that is about to be sent; False if the peer is trusted and nothing needs to be sent."""
        if node in self.trusted:
            return False
        self.revision += 1
        self.revoked.pop(node, None)
        self.outgoing.pop(node, None)
        while len(self.outgoing) >= OUTGOING_MAX:
            self.outgoing.popitem(last=False)
        self.outgoing[node] = now
        return True

    def forget_request(self, node: NodeId) -> None:
        """Drop an own request: it was rejected, or could not be delivered at all."""
        if self.outgoing.pop(node, None) is not None:
            self.revision += 1

    def approve(self, node: NodeId, now: float) -> bool:
        """Trust a peer whose request is pending; False, and no change, if there is none."""
        request = self.pending.get(node)
        if request is None:
            return False
        self._grant(TrustedPeer(node, now, request.public_key))
        return True

    def reject(self, node: NodeId) -> bool:
        """Drop a pending request; False if there was none."""
        if self.pending.pop(node, None) is None:
            return False
        self.revision += 1
        return True

    def revoke(self, node: NodeId, now: float) -> bool:
        """Withdraw trust and start the cool-down, also for a peer that was not trusted; False in that case."""
        self.revision += 1
        self.pending.pop(node, None)
        self.outgoing.pop(node, None)
        self.revoked.pop(node, None)
        while len(self.revoked) >= REVOKED_MAX:
            del self.revoked[next(iter(self.revoked))]
        self.revoked[node] = now + REVOKED_COOL_DOWN
        return self.trusted.pop(node, None) is not None

    # What peers do.

    def on_request(self, request: Request, now: float, *, auto_approve: bool = False) -> Verdict:
        """Decide on a request: the first matching row of `spec/services.md` §1.5."""
        node = request.node_id
        record = self.trusted.get(node)
        if record is not None and record.public_key and request.public_key not in ("", record.public_key):
            if not request.proven:
                return Verdict.UNPROVEN_KEY  # else anybody could end a trust while the registry is away
            self.bind_key(node, request.public_key)
        elif record is not None:
            if request.public_key and request.proven:
                self.bind_key(node, request.public_key)
            return Verdict.ALREADY
        if node not in self.pending and not self._has_room(request.source):
            return Verdict.FULL
        verdict = self._judge(request, auto_approve)
        if verdict in GRANTING:
            network = request.shared_network if verdict is Verdict.SAME_NETWORK else BACKBONE
            self._grant(TrustedPeer(node, now, request.public_key, verdict is Verdict.MUTUAL, network))
        else:
            text = sanitise(request.justification)
            self.pending[node] = PendingRequest(node, now, request.public_key, text, request.source)
            self.revision += 1
        return verdict

    def on_accept(self, node: NodeId, public_key: str, now: float) -> Verdict:
        """Take a peer's approval that came over a stream from that very peer."""
        if self._late(node, now):
            return Verdict.COOLING_DOWN
        if node not in self.outgoing:
            return Verdict.UNSOLICITED
        if public_key and self.bind_key(node, public_key) is Binding.BROKEN:
            self.forget_request(node)
            return Verdict.UNPROVEN_KEY
        self._grant(TrustedPeer(node, now, public_key, mutual=True))
        return Verdict.GRANTED

    def on_relayed_accept(self, node: NodeId, now: float) -> Verdict:
        """Take a peer's approval that the registry relayed: it names no key, and may be the second copy."""
        if node in self.trusted:
            return Verdict.ALREADY
        if self._late(node, now):
            return Verdict.COOLING_DOWN
        if node not in self.outgoing:
            return Verdict.UNSOLICITED
        self._grant(TrustedPeer(node, now, mutual=True))
        return Verdict.GRANTED

    def on_relayed_reject(self, node: NodeId, arrived_at: float) -> bool:
        """Take a rejection out of the mailbox; False if it came before the request that is now under way.

        A rejection is sent over a stream and through the relay. Whoever asks again after the first copy must not have
        the new request undone by the second, which has been waiting in the mailbox since.
        """
        if int(self.outgoing.get(node, 0)) > arrived_at:  # relayed times are whole seconds
            return False
        self.forget_request(node)
        return True

    def on_revoke(self, node: NodeId) -> bool:
        """Take back everything about a peer that withdrew its trust; False if it was not trusted."""
        self.pending.pop(node, None)
        self.outgoing.pop(node, None)
        self.revision += 1
        return self.trusted.pop(node, None) is not None

    def bind_key(self, node: NodeId, public_key: str) -> Binding:
        """Hold a peer's current key against its record; another key than the recorded one ends the trust."""
        record = self.trusted.get(node)
        if record is None:
            return Binding.NONE
        if not record.public_key:
            self.trusted[node] = attrs.evolve(record, public_key=public_key)
            self.revision += 1
            return Binding.ADOPTED
        if hmac.compare_digest(record.public_key.encode(), public_key.encode("utf-8", "surrogateescape")):
            return Binding.HELD
        del self.trusted[node]
        self._broken.append(node)
        self.revision += 1
        return Binding.BROKEN

    def reap(self, now: float) -> int:
        """Forget what has expired; return how many pending requests that were. Call every few minutes."""
        stale = [node for node, request in self.pending.items() if now - request.received_at > REQUEST_LIFETIME]
        for node in stale:
            del self.pending[node]
        unanswered = [node for node, sent_at in self.outgoing.items() if now - sent_at > REQUEST_LIFETIME]
        for node in unanswered:
            del self.outgoing[node]
        cooled = [node for node, until in self.revoked.items() if until <= now]
        for node in cooled:
            del self.revoked[node]
        if stale or unanswered or cooled:
            self.revision += 1
        return len(stale)

    def _late(self, node: NodeId, now: float) -> bool:
        """Say whether an approval comes after we withdrew: it answers a request that is no longer meant."""
        if self.revoked.get(node, 0) <= now:
            return False
        self.forget_request(node)
        return True

    def _has_room(self, source: NodeId) -> bool:
        if len(self.pending) >= PENDING_MAX:
            return False
        return sum(request.source == source for request in self.pending.values()) < PENDING_PER_SOURCE_MAX

    def _judge(self, request: Request, auto_approve: bool) -> Verdict:
        if request.proven:
            if request.node_id in self.outgoing:
                return Verdict.MUTUAL
            if request.shared_network != BACKBONE:
                return Verdict.SAME_NETWORK
        return Verdict.AUTO_APPROVE if auto_approve else Verdict.PENDING

    def _grant(self, record: TrustedPeer) -> None:
        self.trusted[record.node_id] = record
        self.pending.pop(record.node_id, None)
        self.outgoing.pop(record.node_id, None)
        self.revision += 1
        self._granted.append(record.node_id)


def sanitise(text: str) -> str:
    """Return a peer's text as it may be shown: printable characters, at most `JUSTIFICATION_MAX` bytes.

    Letters, marks, numbers, punctuation, symbols and the ASCII space stay; no control or format character does.
    """
    shown = "".join(c for c in text[:TEXT_MAX] if c == " " or unicodedata.category(c)[0] in "LMNPS")
    return shown.encode("utf-8", "ignore")[:JUSTIFICATION_MAX].decode("utf-8", "ignore")
