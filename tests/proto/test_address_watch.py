from __future__ import annotations

import itertools

from pilot_trio.proto.address_watch import (
    CONFIRM_GAP,
    LOCAL_BACKOFF,
    LOCAL_QUIET,
    OBSERVED_BACKOFF,
    RECOVERY_GAP,
    AddressWatch,
    Change,
    Reason,
)

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def test_the_first_address_is_where_we_begin() -> None:
    watch = AddressWatch()
    assert watch.local(A, 0.0) is None
    assert watch.local(A, 1.0) is None
    assert watch.local(B, 2.0) == Change(Reason.LOCAL, A, B)
    assert watch.local(B, 3.0) is None


def test_no_way_out_is_no_address() -> None:
    watch = AddressWatch()
    watch.local(A, 0.0)
    assert watch.local("", 1.0) is None
    assert watch.local(A, 2.0) is None


def test_a_flapping_link_is_followed_ever_more_slowly_and_never_lost() -> None:
    watch = AddressWatch()
    watch.local(A, 0.0)
    at, hosts = [], (A, B)
    for second in range(1, 1000):
        host = hosts[0] if second < 900 and second % 2 else hosts[1]
        if watch.local(host, float(second)) is not None:
            at.append(second)
    gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert gaps[0] in (LOCAL_BACKOFF[0], LOCAL_BACKOFF[0] + 1)
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(gaps))
    assert max(gaps) <= LOCAL_BACKOFF[1] + 2
    assert watch._local.acted_on == B  # where it has come to rest


def test_after_a_quiet_time_patience_is_short_again() -> None:
    watch = AddressWatch()
    watch.local(A, 0.0)
    assert watch.local(B, 1.0)
    assert watch.local(A, 11.0)
    assert watch.local(B, 12.0 + LOCAL_QUIET)
    assert not watch.local(A, 21.0 + LOCAL_QUIET)
    assert watch.local(A, 22.0 + LOCAL_QUIET)


def test_one_answer_of_a_beacon_is_a_rumour() -> None:
    watch = AddressWatch()
    assert watch.observed(A, 0.0) is None
    assert not watch.wants_confirmation(0.0)
    assert watch.observed(B, 60.0) is None
    assert watch.wants_confirmation(60.0)
    assert not watch.wants_confirmation(60.0 + CONFIRM_GAP - 1)
    assert watch.observed(C, 61.0) is None  # another one: begin again
    assert watch.observed(A, 62.0) is None  # and all was false
    assert watch.observed(C, 63.0) is None
    assert watch.observed(C, 64.0) == Change(Reason.OBSERVED, A, C)
    assert not watch.wants_confirmation(1000.0)


def test_a_beacon_that_lies_costs_little() -> None:
    watch = AddressWatch()
    watch.observed(A, 0.0)
    acted = [second for second in range(1, 4000) if watch.observed(f"192.0.2.{10 + second // 2 % 200}", float(second))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(acted)]
    assert gaps[0] >= OBSERVED_BACKOFF[0]
    assert len(acted) <= 7  # 60, 120, 240, ... seconds


def test_one_move_seen_by_both_is_one_recovery() -> None:
    watch = AddressWatch()
    watch.local(A, 0.0)
    watch.observed(C, 0.0)
    assert watch.local(B, 5.0)
    for second in (6.0, 7.0, 4.9 + RECOVERY_GAP):
        assert watch.observed("198.51.100.1", second) is None
    assert watch.observed("198.51.100.1", 5.0 + RECOVERY_GAP) is not None  # it lasts, and nobody has told since


def test_another_beacon_has_another_view() -> None:
    watch = AddressWatch()
    watch.local(A, 0.0)
    watch.observed(A, 0.0)
    watch.restart()
    assert watch.local(B, 1.0) is None
    assert watch.observed(B, 1.0) is None
    assert watch.observed(B, 2.0) is None
