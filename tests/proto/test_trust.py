"""Transitions between trusted, pending, outgoing and revoked (`spec/services.md` §1)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.proto.trust import (
    GRANTING,
    JUSTIFICATION_MAX,
    OUTGOING_MAX,
    PENDING_MAX,
    PENDING_PER_SOURCE_MAX,
    REQUEST_LIFETIME,
    REVOKED_COOL_DOWN,
    REVOKED_MAX,
    TEXT_MAX,
    Binding,
    Request,
    TrustTable,
    Verdict,
    sanitise,
)

NOW = 1_795_458_600.0
PEER = NodeId(7)
KEY, OTHER_KEY = "S0VZ", "T1RIRVI="


def request(node: int = PEER, **fields: Any) -> Request:
    return Request(**{"node_id": NodeId(node), "source": NodeId(node), "public_key": KEY, **fields})


@pytest.fixture
def table() -> TrustTable:
    return TrustTable()


def trusting(key: str = KEY) -> TrustTable:
    table = TrustTable()
    table.on_request(request(public_key=key), NOW, auto_approve=True)
    assert table.take_granted() == [PEER]
    return table


class TestRequests:
    def test_a_stranger_is_put_before_the_operator(self, table: TrustTable) -> None:
        assert table.on_request(request(justification="hi\n", source=NodeId(9)), NOW) is Verdict.PENDING
        (pending,) = table.pending.values()
        assert (pending.node_id, pending.public_key, pending.justification) == (PEER, KEY, "hi")
        assert (pending.source, pending.received_at) == (NodeId(9), NOW)
        assert not table.trusted
        assert table.take_granted() == []

    def test_asking_each_other_is_mutual_trust(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        assert table.on_request(request(proven=True), NOW) is Verdict.MUTUAL
        assert table.trusted[PEER].mutual
        assert PEER not in table.outgoing
        assert table.take_granted() == [PEER]

    def test_an_unproven_request_is_not_mutual(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        assert table.on_request(request(proven=False), NOW) is Verdict.PENDING

    def test_a_shared_network_is_enough_if_the_sender_is_proven(self, table: TrustTable) -> None:
        asked = request(proven=True, shared_network=NetworkId(3))
        assert table.on_request(attrs.evolve(asked, proven=False), NOW) is Verdict.PENDING
        assert table.on_request(asked, NOW) is Verdict.SAME_NETWORK
        assert table.trusted[PEER].network == 3
        assert not table.trusted[PEER].mutual
        assert not table.pending

    def test_auto_approve_needs_no_proof(self, table: TrustTable) -> None:
        assert table.on_request(request(), NOW, auto_approve=True) is Verdict.AUTO_APPROVE
        assert not table.trusted[PEER].mutual

    def test_a_trusted_peer_is_answered_again(self) -> None:
        table = trusting()
        before = table.trusted[PEER]
        assert table.on_request(request(), NOW + 5) is Verdict.ALREADY
        assert table.on_request(request(public_key=""), NOW + 5) is Verdict.ALREADY
        assert table.trusted[PEER] == before

    def test_a_proven_new_key_ends_the_trust_and_asks_anew(self) -> None:
        table = trusting()
        assert table.on_request(request(public_key=OTHER_KEY, proven=True), NOW) is Verdict.PENDING
        assert table.take_broken() == [PEER]
        assert PEER not in table.trusted

    def test_an_unproven_new_key_changes_nothing(self) -> None:
        table = trusting()
        assert table.on_request(request(public_key=OTHER_KEY), NOW, auto_approve=True) is Verdict.UNPROVEN_KEY
        assert table.trusted[PEER].public_key == KEY
        assert table.take_broken() == []

    def test_an_unbound_record_adopts_only_a_proven_key(self) -> None:
        table = trusting(key="")
        assert table.on_request(request(), NOW) is Verdict.ALREADY
        assert table.trusted[PEER].public_key == ""
        assert table.on_request(request(proven=True), NOW) is Verdict.ALREADY
        assert table.trusted[PEER].public_key == KEY

    def test_pending_requests_are_bounded(self, table: TrustTable) -> None:
        for node in range(1, PENDING_MAX + 1):
            assert table.on_request(request(node), NOW) is Verdict.PENDING
        stranger = request(PENDING_MAX + 1, proven=True)
        assert table.on_request(stranger, NOW, auto_approve=True) is Verdict.FULL
        assert table.on_request(request(1, justification="again"), NOW + 1) is Verdict.PENDING
        assert len(table.pending) == PENDING_MAX
        table.reject(NodeId(5))
        assert table.on_request(stranger, NOW) is Verdict.PENDING

    def test_one_source_may_bring_only_a_few(self, table: TrustTable) -> None:
        for node in range(1, PENDING_PER_SOURCE_MAX + 1):
            assert table.on_request(request(node, source=NodeId(99)), NOW) is Verdict.PENDING
        assert table.on_request(request(50, source=NodeId(99)), NOW) is Verdict.FULL
        assert table.on_request(request(50, source=NodeId(98)), NOW) is Verdict.PENDING


class TestAnswers:
    def test_an_approval_of_our_request_is_trust(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        assert table.on_accept(PEER, KEY, NOW + 2) is Verdict.GRANTED
        peer = table.trusted[PEER]
        assert (peer.public_key, peer.mutual, peer.approved_at) == (KEY, True, NOW + 2)
        assert table.take_granted() == [PEER]

    def test_an_unsolicited_approval_is_ignored(self, table: TrustTable) -> None:
        assert table.on_accept(PEER, KEY, NOW) is Verdict.UNSOLICITED
        assert table.on_relayed_accept(PEER, NOW) is Verdict.UNSOLICITED
        assert not table.trusted

    def test_a_second_copy_of_an_approval_is_harmless(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        table.on_accept(PEER, KEY, NOW)
        assert table.on_relayed_accept(PEER, NOW + 1) is Verdict.ALREADY
        assert table.on_accept(PEER, KEY, NOW + 1) is Verdict.UNSOLICITED
        assert table.trusted[PEER].public_key == KEY

    @pytest.mark.parametrize("relayed", [False, True])
    def test_an_approval_right_after_a_revocation_is_too_late(self, table: TrustTable, relayed: bool) -> None:
        def accept(now: float) -> Verdict:
            return table.on_relayed_accept(PEER, now) if relayed else table.on_accept(PEER, KEY, now)

        table.revoke(PEER, NOW)
        table.outgoing[PEER] = NOW  # the request was out before
        assert accept(NOW + REVOKED_COOL_DOWN - 1) is Verdict.COOLING_DOWN
        assert PEER not in table.outgoing
        table.outgoing[PEER] = NOW
        assert accept(NOW + REVOKED_COOL_DOWN) is Verdict.GRANTED

    def test_a_new_request_ends_the_cool_down(self, table: TrustTable) -> None:
        table.revoke(PEER, NOW)
        assert table.start_request(PEER, NOW + 1)
        assert table.on_accept(PEER, KEY, NOW + 2) is Verdict.GRANTED

    def test_an_approval_with_another_key_breaks_the_binding(self) -> None:
        table = trusting()
        table.outgoing[PEER] = NOW
        assert table.on_accept(PEER, OTHER_KEY, NOW) is Verdict.UNPROVEN_KEY
        assert PEER not in table.trusted
        assert PEER not in table.outgoing
        assert table.take_broken() == [PEER]

    def test_a_rejection_of_an_earlier_request_is_void(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        assert not table.on_relayed_reject(PEER, NOW - 1)
        assert PEER in table.outgoing
        assert table.on_relayed_reject(PEER, NOW)
        assert PEER not in table.outgoing

    def test_a_peer_takes_its_trust_back(self) -> None:
        table = trusting()
        assert table.on_revoke(PEER)
        assert not table.on_revoke(PEER)
        assert PEER not in table.revoked  # it may ask again at once


class TestOperator:
    def test_approving_takes_the_key_of_the_request(self, table: TrustTable) -> None:
        table.on_request(request(), NOW)
        assert table.approve(PEER, NOW + 9)
        assert table.trusted[PEER].public_key == KEY
        assert not table.trusted[PEER].mutual
        assert not table.pending
        assert table.take_granted() == [PEER]

    def test_approving_nothing_changes_nothing(self, table: TrustTable) -> None:
        assert not table.approve(PEER, NOW)
        assert not table.reject(PEER)
        assert table.revision == 0

    def test_a_trusted_peer_is_not_asked(self) -> None:
        table = trusting()
        revision = table.revision
        assert not table.start_request(PEER, NOW)
        assert table.revision == revision

    def test_revoking_forgets_everything_and_cools_down_even_without_trust(self, table: TrustTable) -> None:
        table.start_request(PEER, NOW)
        table.on_request(request(), NOW)
        assert not table.revoke(PEER, NOW)
        assert not table.outgoing
        assert not table.pending
        assert table.revoked == {PEER: NOW + REVOKED_COOL_DOWN}

    def test_the_oldest_own_request_makes_room(self, table: TrustTable) -> None:
        for node in range(OUTGOING_MAX + 1):
            table.start_request(NodeId(node), NOW + node)
        assert len(table.outgoing) == OUTGOING_MAX
        assert 0 not in table.outgoing
        assert 1 in table.outgoing
        table.start_request(NodeId(1), NOW + OUTGOING_MAX + 1)  # asked again: now the newest
        table.start_request(NodeId(OUTGOING_MAX + 1), NOW + OUTGOING_MAX + 2)
        assert 1 in table.outgoing
        assert 2 not in table.outgoing


def test_each_binding(table: TrustTable) -> None:
    assert table.bind_key(PEER, KEY) is Binding.NONE
    table = trusting(key="")
    assert table.bind_key(PEER, KEY) is Binding.ADOPTED
    assert table.bind_key(PEER, KEY) is Binding.HELD
    assert table.bind_key(PEER, OTHER_KEY) is Binding.BROKEN
    assert table.bind_key(PEER, OTHER_KEY) is Binding.NONE


@pytest.mark.parametrize(("age", "kept"), [(REQUEST_LIFETIME, True), (REQUEST_LIFETIME + 1, False)])
def test_requests_expire_after_thirty_days(table: TrustTable, age: float, kept: bool) -> None:
    table.on_request(request(), NOW)
    table.start_request(NodeId(8), NOW)
    assert table.reap(NOW + age) == (0 if kept else 1)
    assert (PEER in table.pending) is kept
    assert (8 in table.outgoing) is kept


def test_those_that_cool_down_are_bounded() -> None:
    table = TrustTable()
    for node in range(1, REVOKED_MAX + 2):
        table.revoke(NodeId(node), NOW)
    assert len(table.revoked) == REVOKED_MAX
    assert NodeId(1) not in table.revoked
    table.revoke(NodeId(2), NOW + 1)
    table.revoke(NodeId(REVOKED_MAX + 2), NOW + 1)
    assert NodeId(2) in table.revoked


def test_cool_downs_are_reaped_and_trust_never_is() -> None:
    table = trusting()
    table.revoke(NodeId(8), NOW)
    table.reap(NOW + REVOKED_COOL_DOWN - 1)
    assert table.revoked
    revision = table.revision
    table.reap(NOW + REVOKED_COOL_DOWN)
    assert not table.revoked
    assert table.revision > revision
    table.reap(NOW + 1e9)
    assert table.trusted


class TrustMachine(RuleBasedStateMachine):
    """Any sequence of inputs keeps the lists disjoint, bounded, and every grant announced exactly once."""

    nodes = st.integers(1, 4).map(NodeId)
    keys = st.sampled_from(["", KEY, OTHER_KEY])

    def __init__(self) -> None:
        super().__init__()
        self.table = TrustTable()
        self.now = NOW
        self.announced: set[NodeId] = set()

    @rule(seconds=st.sampled_from([1, REVOKED_COOL_DOWN, REQUEST_LIFETIME + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.table.reap(self.now)

    @rule(node=nodes)
    def we_ask(self, node: NodeId) -> None:
        assert self.table.start_request(node, self.now) == (node not in self.table.trusted)

    @rule(node=nodes, key=keys, proven=st.booleans(), auto=st.booleans(), shared=st.sampled_from([0, 3]))
    def they_ask(self, node: NodeId, key: str, proven: bool, auto: bool, shared: int) -> None:
        asked = request(node, public_key=key, proven=proven, shared_network=NetworkId(shared))
        verdict = self.table.on_request(asked, self.now, auto_approve=auto)
        assert (node in self.table.trusted) == (
            verdict in GRANTING or verdict in (Verdict.ALREADY, Verdict.UNPROVEN_KEY)
        )

    @rule(node=nodes, key=keys)
    def they_accept(self, node: NodeId, key: str) -> None:
        asked, cooling = node in self.table.outgoing, self.table.revoked.get(node, 0) > self.now
        if self.table.on_accept(node, key, self.now) is Verdict.GRANTED:
            assert asked
            assert not cooling

    @rule(node=nodes)
    def the_relay_accepts(self, node: NodeId) -> None:
        asked = node in self.table.outgoing
        if self.table.on_relayed_accept(node, self.now) is Verdict.GRANTED:
            assert asked

    @rule(node=nodes)
    def we_approve(self, node: NodeId) -> None:
        pending = node in self.table.pending
        assert self.table.approve(node, self.now) == pending

    @rule(node=nodes)
    def we_revoke(self, node: NodeId) -> None:
        self.table.revoke(node, self.now)
        assert node not in self.table.trusted

    @rule(node=nodes)
    def they_revoke(self, node: NodeId) -> None:
        self.table.on_revoke(node)
        assert node not in self.table.trusted

    @rule(node=nodes, key=st.sampled_from([KEY, OTHER_KEY]))
    def the_registry_names_a_key(self, node: NodeId, key: str) -> None:
        self.table.bind_key(node, key)

    @invariant()
    def a_trusted_peer_waits_for_nothing(self) -> None:
        assert not self.table.trusted.keys() & self.table.pending.keys()

    @invariant()
    def every_grant_is_announced(self) -> None:
        self.announced |= set(self.table.take_granted())
        assert set(self.table.trusted) <= self.announced


TestTrustMachine = TrustMachine.TestCase


def test_control_characters_do_not_reach_the_operator() -> None:
    assert sanitise("a\x00\x1b[2J\u200e\u202e\n\tb c\u00a0d é 漢 1 €") == "a[2Jb cd é 漢 1 €"


@given(st.text())
def test_sanitised_text_is_bounded_and_stable(text: str) -> None:
    shown = sanitise(text)
    assert len(shown.encode()) <= JUSTIFICATION_MAX
    assert sanitise(shown) == shown


@pytest.mark.parametrize("length", [JUSTIFICATION_MAX - 1, JUSTIFICATION_MAX, JUSTIFICATION_MAX + 1])
def test_a_long_text_is_cut_between_characters(length: int) -> None:
    assert len(sanitise("x" * length)) == min(length, JUSTIFICATION_MAX)
    assert sanitise("é" * JUSTIFICATION_MAX) == "é" * (JUSTIFICATION_MAX // 2)


def test_what_stands_behind_a_long_text_is_not_looked_at() -> None:
    assert sanitise("\x00" * (TEXT_MAX - 1) + "ab") == "a"
