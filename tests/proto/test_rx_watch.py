from __future__ import annotations

from collections.abc import Iterable

from pilot_trio.proto.rx_watch import (
    DIALS_MIN,
    LOOK_INTERVAL,
    PATIENCE,
    RESUMED_AFTER,
    SENT_MIN,
    SILENCE,
    SOFT_ATTEMPTS,
    ReceiveWatch,
    Recovered,
    Resumed,
    Silent,
)


def looks(watch: ReceiveWatch, counts: Iterable[tuple[int, int]], start: float = 0.0) -> list[object]:
    return [
        watch.look(start + LOOK_INTERVAL * number, received, sent) for number, (received, sent) in enumerate(counts, 1)
    ]


def test_silence_in_spite_of_sending_is_noticed_after_three_minutes_and_then_ever_more_rarely() -> None:
    verdicts = looks(ReceiveWatch(0.0), [(0, 10 * look) for look in range(1, 15)])
    first = int(SILENCE / LOOK_INTERVAL)
    assert verdicts[: first - 1] == [None] * (first - 1)
    assert verdicts[first - 1] == Silent("inbound-silent", SILENCE, 10 * first, 0, 1, deaf=True)
    attempts = [verdict.attempt for verdict in verdicts if isinstance(verdict, Silent)]
    assert attempts == list(range(1, SOFT_ATTEMPTS + 1))
    assert verdicts[first - 1 + SOFT_ATTEMPTS :] == [None] * (14 - first + 1 - SOFT_ATTEMPTS)


def test_a_node_that_says_nothing_hears_nothing() -> None:
    assert looks(ReceiveWatch(0.0), [(0, SENT_MIN - 1)] * 20) == [None] * 20
    assert isinstance(looks(ReceiveWatch(0.0), [(0, SENT_MIN)] * 6)[-1], Silent)


def test_what_arrives_starts_the_clock_anew() -> None:
    assert looks(ReceiveWatch(0.0), [(look // 3, 100 * look) for look in range(30)]) == [None] * 30


def test_recovery_is_told_once_and_only_after_a_remedy() -> None:
    watch = ReceiveWatch(0.0)
    verdicts = looks(watch, [(0, 100)] * 7 + [(1, 100)] * 2)
    assert verdicts[5:] == [
        Silent("inbound-silent", SILENCE, 100, 0, 1, deaf=True),
        Silent("inbound-silent", SILENCE + LOOK_INTERVAL, 100, 0, 2, deaf=True),
        Recovered(SILENCE + 2 * LOOK_INTERVAL, 2),
        None,
    ]


def test_after_three_remedies_the_next_ones_are_ten_minutes_apart() -> None:
    verdicts = looks(ReceiveWatch(0.0), [(0, 10 * look) for look in range(1, 60)])
    attempts = [number for number, verdict in enumerate(verdicts) if isinstance(verdict, Silent)]
    assert attempts[SOFT_ATTEMPTS:] == [attempts[2] + n * int(PATIENCE / LOOK_INTERVAL) for n in (1, 2)]


def test_dials_that_nobody_answers_are_noticed_though_others_are_heard() -> None:
    watch = ReceiveWatch(0.0)
    assert watch.look(30.0, 10, 10, DIALS_MIN - 1) is None
    assert watch.look(60.0, 20, 20, DIALS_MIN) == Silent("outbound-dial-wedged", 0.0, 0, DIALS_MIN, 1, deaf=False)
    assert watch.look(90.0, 30, 30, 0) == Recovered(30.0, 1)
    both = looks(ReceiveWatch(0.0), [(0, 100)] * 5)
    assert both == [None] * 5


def test_both_reasons_are_named() -> None:
    watch = ReceiveWatch(0.0)
    for number in range(1, 6):
        watch.look(LOOK_INTERVAL * number, 0, 100)
    verdict = watch.look(SILENCE, 0, 100, DIALS_MIN)
    assert isinstance(verdict, Silent)
    assert verdict.reason == "inbound-silent+outbound-dial-wedged"


def test_a_look_that_comes_very_late_is_a_suspend_and_no_silence() -> None:
    watch = ReceiveWatch(0.0)
    assert watch.look(LOOK_INTERVAL + RESUMED_AFTER - 1, 0, 1000) is None
    now = 2 * (LOOK_INTERVAL + RESUMED_AFTER) - 1
    assert watch.look(now, 0, 2000) == Resumed(LOOK_INTERVAL + RESUMED_AFTER)
    assert looks(watch, [(0, 2000)] * 20, now) == [None] * 20  # nothing sent since
