from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.beacon_choice import RETURN_ROUNDS, SILENT_ROUNDS, BeaconChoice, fnv1a_32

KEY = b"key of a node"
THREE = ["a:1", "b:1", "c:1"]


def choice_of(beacons: list[str], key: bytes = KEY) -> BeaconChoice[str]:
    choice: BeaconChoice[str] = BeaconChoice()
    choice.offer(beacons, key)
    return choice


def fall_silent(choice: BeaconChoice[str]) -> None:
    """Leave the current beacon."""
    assert [choice.unanswered() for _ in range(SILENT_ROUNDS)] == [False] * (SILENT_ROUNDS - 1) + [True]


@pytest.mark.parametrize(("data", "value"), [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)])
def test_hash_is_fnv_1a(data: bytes, value: int) -> None:
    assert fnv1a_32(data) == value


def test_the_key_says_which_beacon() -> None:
    assert choice_of(THREE).current == THREE[fnv1a_32(KEY) % 3]


def test_an_empty_list_changes_nothing() -> None:
    choice = choice_of(THREE)
    before = choice.current
    choice.offer([], KEY)
    assert choice.current == before
    assert choice_of([]).current is None


def test_a_beacon_that_answers_now_and_then_is_kept() -> None:
    choice = choice_of(THREE)
    before = choice.current
    for _ in range(10):
        for _ in range(SILENT_ROUNDS - 1):
            assert not choice.unanswered()
        choice.answered()
    assert choice.current == before


def test_a_silent_beacon_is_left_and_returned_to_once_it_has_answered_for_a_while() -> None:
    choice = choice_of(THREE)
    first = choice.current
    assert choice.preferred is None
    fall_silent(choice)
    second = choice.current
    assert second != first
    assert choice.preferred == first
    for answered in (True, False, *[True] * (RETURN_ROUNDS - 1)):
        assert not choice.looked(answered=answered)
        assert choice.current == second
    assert choice.looked(answered=True)
    assert choice.current == first
    assert choice.preferred is None


def test_the_same_list_again_does_not_bring_a_silent_beacon_back() -> None:
    choice = choice_of(THREE)
    fall_silent(choice)
    second = choice.current
    choice.offer(THREE, KEY)
    assert choice.current == second
    choice.offer([beacon for beacon in THREE if beacon != second], KEY)
    assert choice.current not in (second, None)


def test_a_beacon_that_has_left_the_list_is_not_held_against_when_it_comes_back() -> None:
    choice = choice_of(THREE)
    first = choice.current
    fall_silent(choice)
    choice.offer([beacon for beacon in THREE if beacon != first], KEY)
    choice.offer(THREE, KEY)
    assert choice.current == first


def test_when_all_are_silent_they_are_tried_in_turn() -> None:
    choice = choice_of(THREE)
    tried = []
    for _ in range(6):
        tried.append(choice.current)
        fall_silent(choice)
    assert set(tried[:3]) == set(THREE)
    assert set(tried[3:]) == set(THREE)


def test_the_only_beacon_is_kept_however_silent() -> None:
    choice = choice_of(["a:1"])
    assert not any(choice.unanswered() for _ in range(10 * SILENT_ROUNDS))
    assert choice.current == "a:1"
    assert choice.preferred is None


def test_nodes_of_a_silent_beacon_spread_over_the_others() -> None:
    went_to: Counter[str | None] = Counter()
    for number in range(600):
        choice = choice_of(["a:1", "b:1", "c:1", "d:1"], str(number).encode())
        if choice.current == "a:1":
            fall_silent(choice)
            went_to[choice.current] += 1
    assert len(went_to) == 3
    assert min(went_to.values()) > sum(went_to.values()) / 6


@given(st.lists(st.sampled_from(["answered", "unanswered", "yes", "no", "offer", "other"]), max_size=60))
def test_whatever_happens_one_of_the_list_is_in_use_and_changes_need_a_reason(inputs: list[str]) -> None:
    choice = choice_of(THREE)
    beacons = THREE
    silent_rounds = looks = 0
    for what in inputs:
        before = choice.current
        if what == "answered":
            choice.answered()
            silent_rounds = 0
        elif what == "unanswered":
            silent_rounds += 1
            changed = choice.unanswered()
            assert changed == (choice.current != before)
            assert not changed or silent_rounds >= SILENT_ROUNDS
        elif what in ("yes", "no"):
            looks = looks + 1 if what == "yes" else 0
            changed = choice.looked(answered=what == "yes")
            assert changed == (choice.current != before)
            assert not changed or looks >= RETURN_ROUNDS
        else:
            beacons = THREE if what == "offer" else [*THREE[1:], "d:1"]
            choice.offer(beacons, KEY)
        if choice.current != before:
            silent_rounds = looks = 0
        assert choice.current in beacons
        assert choice.preferred in {*beacons, None}
        assert choice.preferred != choice.current
