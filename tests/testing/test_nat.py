"""The kinds of NAT: which port, who may answer, for how long."""

from __future__ import annotations

import pytest

from pilot_trio.net.endpoint import Endpoint
from pilot_trio.testing import nat as nat_module
from pilot_trio.testing.nat import Nat, NatType

INSIDE = Endpoint("10.0.0.2", 4000)
PEER = Endpoint("11.0.0.9", 5000)
SAME_HOST = Endpoint("11.0.0.9", 5001)
STRANGER = Endpoint("11.0.0.10", 5000)


@pytest.mark.parametrize(
    ("kind", "let_in"),
    [
        (NatType.FULL_CONE, {PEER, SAME_HOST, STRANGER}),
        (NatType.RESTRICTED, {PEER, SAME_HOST}),
        (NatType.PORT_RESTRICTED, {PEER}),
        (NatType.SYMMETRIC, {PEER}),
    ],
)
def test_each_kind_lets_in_whom_it_should(kind: NatType, let_in: set[Endpoint]) -> None:
    nat = Nat(kind, "11.0.0.1")
    outside = nat.outgoing(INSIDE, PEER, 0.0)
    assert outside.host == "11.0.0.1"
    answered = {source for source in (PEER, SAME_HOST, STRANGER) if nat.incoming(outside.port, source, 1.0) == INSIDE}
    assert answered == let_in


@pytest.mark.parametrize("kind", NatType)
def test_only_a_symmetric_one_has_a_port_for_every_destination(kind: NatType) -> None:
    nat = Nat(kind, "11.0.0.1")
    first, again, other = (nat.outgoing(INSIDE, to, 0.0) for to in (PEER, PEER, STRANGER))
    assert first == again
    assert (first != other) == (kind is NatType.SYMMETRIC)


def test_senders_have_ports_of_their_own() -> None:
    nat = Nat(NatType.FULL_CONE, "11.0.0.1")
    one, other = nat.outgoing(INSIDE, PEER, 0.0), nat.outgoing(Endpoint("10.0.0.3", 4000), PEER, 0.0)
    assert one != other
    assert nat.incoming(other.port, PEER, 0.0) == ("10.0.0.3", 4000)


def test_a_mapping_ends_without_outgoing_traffic_and_a_new_one_has_another_port() -> None:
    nat = Nat(NatType.FULL_CONE, "11.0.0.1", mapping_timeout=30.0)
    port = nat.outgoing(INSIDE, PEER, 0.0).port
    assert nat.incoming(port, PEER, 30.0) == INSIDE
    assert nat.incoming(port, PEER, 30.1) is None
    assert nat.outgoing(INSIDE, PEER, 30.1).port != port


def test_outgoing_traffic_keeps_a_mapping() -> None:
    nat = Nat(NatType.PORT_RESTRICTED, "11.0.0.1", mapping_timeout=30.0)
    port = nat.outgoing(INSIDE, PEER, 0.0).port
    assert nat.outgoing(INSIDE, PEER, 29.0).port == port
    assert nat.incoming(port, PEER, 58.0) == INSIDE


def test_leave_to_answer_ends_too_while_the_mapping_is_kept_by_others() -> None:
    nat = Nat(NatType.PORT_RESTRICTED, "11.0.0.1", mapping_timeout=30.0)
    port = nat.outgoing(INSIDE, PEER, 0.0).port
    nat.outgoing(INSIDE, STRANGER, 20.0)
    assert nat.incoming(port, PEER, 31.0) is None
    assert nat.incoming(port, STRANGER, 31.0) == INSIDE


def test_rebinding_changes_the_port_and_ends_the_old_one() -> None:
    nat = Nat(NatType.FULL_CONE, "11.0.0.1")
    port = nat.outgoing(INSIDE, PEER, 0.0).port
    nat.rebind()
    assert nat.incoming(port, PEER, 0.0) is None
    assert nat.outgoing(INSIDE, PEER, 0.0).port != port


def test_mappings_and_their_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_module, "MAPPINGS_MAX", 3)
    nat = Nat(NatType.FULL_CONE, "11.0.0.1")
    ports = [nat.outgoing(Endpoint("10.0.0.2", port), PEER, 0.0).port for port in range(1, 5)]
    assert len(nat) == 3
    assert [nat.incoming(port, PEER, 0.0) is None for port in ports] == [True, False, False, False]

    narrow = Nat(NatType.PORT_RESTRICTED, "11.0.0.1")
    for port in range(1, 5):
        outside = narrow.outgoing(INSIDE, Endpoint("11.0.0.9", port), 0.0)
    let_in = [narrow.incoming(outside.port, Endpoint("11.0.0.9", port), 0.0) is not None for port in range(1, 5)]
    assert let_in == [False, True, True, True]


def test_ports_begin_anew_and_skip_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_module, "_FIRST_PORT", 1)
    monkeypatch.setattr(nat_module, "_LAST_PORT", 3)
    nat = Nat(NatType.SYMMETRIC, "11.0.0.1", mapping_timeout=10.0)
    kept = nat.outgoing(INSIDE, PEER, 0.0).port
    gone = nat.outgoing(INSIDE, STRANGER, 0.0).port
    nat.outgoing(INSIDE, PEER, 8.0)
    others = [nat.outgoing(INSIDE, STRANGER, at).port for at in (11.0, 22.0)]
    assert nat.outgoing(INSIDE, PEER, 12.0).port == kept
    assert gone not in others[:1]
    assert kept not in others
