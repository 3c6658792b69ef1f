"""Where nodes were last seen by the beacon, and whom it may poke now. Pure: datagrams are `beacon_server`'s affair.

An entry is a claim: a discover is not signed. So the table takes only nodes that the registry knows, a claim cannot
replace a fresh one at once, and what is decided by it (relay, punch, notify) is best effort by protocol. But a claim that
says what the node has registered, which is signed, is taken at once: a node that restarts again and again stays reachable.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

import attrs

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint

# Fixed by what nodes expect (`spec/tunnel.md` §14.2).
ENTRY_TTL: Final = 600.0  # seconds since the last discover; nodes repeat it every minute
MOVE_INTERVAL: Final = 30.0  # seconds between two changes of a node's endpoint; slows down who fights for an id

# Ours.
HOME_TIME: Final = (
    150.0  # seconds since a claim from a node's own host in which none from elsewhere counts: two keepalives
)
NODES_MAX: Final = 200_000  # entries, about 60 MB; beyond it the one silent longest goes, until its next discover
NOTIFY_INTERVAL: Final = 5.0  # seconds between two notifies to a node; at this pace daemons act on every one of them
NOTIFY_QUEUE_MAX: Final = 10_000  # nodes inside their interval; beyond it a node finds out at its next poll


class Noted(Enum):
    """What became of a claim."""

    NEW = "new"
    REFRESHED = "refreshed"
    MOVED = "moved"
    TOO_SOON = "too soon"  # another endpoint before `MOVE_INTERVAL` was over: the old one stays


@attrs.define
class Entry:
    """What is known of a node."""

    endpoint: Endpoint
    seen_at: float
    moved_at: float
    multi: bool = False  # wants relayed frames with their destination
    moved_at_once_at: float = -math.inf
    at_home: bool = False  # the last claim came from the host that the node has registered


class Row(NamedTuple):
    """One node as it is stored."""

    node: int
    endpoint: Endpoint
    age: float  # seconds since it was heard of
    multi: bool


@attrs.define(eq=False)
class EndpointTable:
    """Node id to endpoint, in the order in which the nodes were last heard of. Times are seconds of any one clock."""

    max_nodes: int = NODES_MAX
    evicted: int = attrs.field(default=0, init=False)  # entries dropped for room
    changes: int = attrs.field(default=0, init=False)  # claims taken so far
    news: int = attrs.field(default=0, init=False)  # those of them that said more than that a node is still there
    _entries: OrderedDict[NodeId, Entry] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._entries)

    def note(
        self,
        node: NodeId,
        endpoint: Endpoint,
        now: float,
        *,
        multi: bool = False,
        registered: bool = False,
        home: bool = True,
    ) -> Noted:
        """Take a claim that `node` is at `endpoint`.

        Args:
          node: who is said to be there.
          endpoint: where the claim came from.
          now: the table's clock.
          multi: the node wants relayed frames with their destination.
          registered: it has registered this very endpoint, with its signature.
          home: it has registered an endpoint on this host, or one that says nothing.
        """
        self.expire(now)
        entry = self._entries.get(node)
        if entry is None:
            # A first claim may be replaced at once: it says nothing about who came first.
            self._add(node, Entry(endpoint, now, -math.inf, multi, at_home=home))
            return Noted.NEW
        if entry.endpoint == endpoint:
            noted = Noted.REFRESHED
        elif not home and entry.at_home and now - entry.seen_at < HOME_TIME:
            return Noted.TOO_SOON
        elif not registered and now - entry.moved_at < MOVE_INTERVAL:
            return Noted.TOO_SOON  # and no refresh either: a stranger's claims do not keep an entry alive
        else:
            noted = Noted.MOVED
            self.news += 1
            entry.endpoint, entry.moved_at = endpoint, now
        entry.seen_at, entry.at_home = now, home
        entry.multi = multi
        self.changes += 1
        self._entries.move_to_end(node)
        return noted

    def note_at_once(self, node: NodeId, endpoint: Endpoint, now: float) -> Noted:
        """Take a claim that cannot wait, because somebody is about to send there: once per interval it wins at once."""
        entry = self.entry(node, now)
        if entry is not None and entry.endpoint != endpoint and now - entry.moved_at_once_at >= MOVE_INTERVAL:
            entry.moved_at_once_at = now
            entry.moved_at = -math.inf
        return self.note(node, endpoint, now, multi=entry is not None and entry.multi)

    def entry(self, node: NodeId, now: float) -> Entry | None:
        """Return what is known of `node`, None if that is nothing or too old."""
        entry = self._entries.get(node)
        if entry is None or now - entry.seen_at >= ENTRY_TTL:
            return None
        return entry

    def find(self, node: NodeId, now: float) -> Endpoint | None:
        """Return where `node` was last seen, None if that is unknown or too long ago."""
        entry = self.entry(node, now)
        return None if entry is None else entry.endpoint

    def rows(self, now: float) -> list[Row]:
        """Return everything that `restore` needs, the node silent longest first."""
        return [Row(node, entry.endpoint, now - entry.seen_at, entry.multi) for node, entry in self._entries.items()]

    def restore(self, rows: Iterable[Row], now: float) -> None:
        """Take rows that were stored, except nodes that are known already and rows past their time."""
        for row in sorted(rows, key=lambda row: -row.age):
            if row.age < ENTRY_TTL and NodeId(row.node) not in self._entries:
                self._add(NodeId(row.node), Entry(row.endpoint, now - max(0.0, row.age), -math.inf, row.multi))

    def _add(self, node: NodeId, entry: Entry) -> None:
        if len(self._entries) >= self.max_nodes:
            self._entries.popitem(last=False)
            self.evicted += 1
        self._entries[node] = entry
        self.changes += 1
        self.news += 1

    def expire(self, now: float) -> None:
        """Forget entries past their time. Cheap: they are at the front."""
        while self._entries:
            node, entry = next(iter(self._entries.items()))
            if now - entry.seen_at < ENTRY_TTL:
                return
            del self._entries[node]


@attrs.define
class _Quiet:
    until: float
    again: bool = False  # something came in the meantime: notify when the interval is over


@attrs.define(eq=False)
class NotifySchedule:
    """At most one notify per node and `NOTIFY_INTERVAL`; what comes too soon is sent at the end of the interval.

    All intervals have one length, so the table is in order of their ends.
    """

    max_nodes: int = NOTIFY_QUEUE_MAX
    forgotten: int = attrs.field(default=0, init=False)  # notifies not sent for want of room
    _quiet: OrderedDict[NodeId, _Quiet] = attrs.field(factory=OrderedDict, init=False)

    def offer(self, node: NodeId, now: float) -> bool:
        """Say whether to notify `node` now; if it is only too soon, `due` returns it when its time has come."""
        while self._quiet:
            first, quiet = next(iter(self._quiet.items()))
            if quiet.again or quiet.until > now:
                break
            del self._quiet[first]
        if node in self._quiet:
            self._quiet[node].again = True
            return False
        if len(self._quiet) >= self.max_nodes:
            self.forgotten += 1
            return False
        self._quiet[node] = _Quiet(now + NOTIFY_INTERVAL)
        return True

    def due(self, now: float) -> list[NodeId]:
        """Return the nodes whose postponed notify is to be sent now."""
        nodes = []
        while self._quiet and next(iter(self._quiet.values())).until <= now:
            node, quiet = self._quiet.popitem(last=False)
            if quiet.again:
                nodes.append(node)
        for node in nodes:
            self._quiet[node] = _Quiet(now + NOTIFY_INTERVAL)
        return nodes

    def next_deadline(self) -> float:
        """Return when to call `due` next, `math.inf` if nothing is postponed."""
        return next((quiet.until for quiet in self._quiet.values() if quiet.again), math.inf)
