from __future__ import annotations

import pytest

from pilot_trio.daemon.turn import Turn


def test_the_outermost_turn_settles_once_after_what_was_asked_for_its_end() -> None:
    done: list[str] = []
    turn = Turn(lambda: done.append("settled"))
    with turn:
        with turn:
            turn.at_end(lambda: done.append("called"))
        assert done == []
        assert turn.depth == 1
    assert done == ["called", "settled"]
    with turn:
        pass
    assert done == ["called", "settled", "settled"]


def test_a_turn_that_fails_is_settled_all_the_same() -> None:
    done: list[str] = []
    turn = Turn(lambda: done.append("settled"))

    def fail() -> None:
        with turn:
            turn.at_end(lambda: done.append("called"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert done == ["called", "settled"]
    assert turn.depth == 0
