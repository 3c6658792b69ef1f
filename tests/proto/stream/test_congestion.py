"""The controller alone: round trips are played to it, one run of segments each."""

from __future__ import annotations

import pytest

from pilot_trio.proto.stream.congestion import (
    BACKOFF,
    BACKOFF_ROUNDS,
    CWND_INITIAL,
    CWND_MAX,
    CWND_MIN,
    DRAIN_EVERY,
    GROWTH_QUEUED,
    SSTHRESH_INITIAL,
    Congestion,
)
from pilot_trio.proto.stream.rtt import RttEstimator
from pilot_trio.proto.stream.send_queue import Run
from pilot_trio.proto.stream.settings import SEGMENT

EMPTY, FULL = 0.04, 0.08  # seconds of round trip without and with a queue


class Player:
    """A sender that fills its window, one run per round trip."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rtt = RttEstimator()
        self.congestion = Congestion(0.0)

    def round(self, trip: float, *, lost: int = 0, share: float = 1.0) -> None:
        """Send a window, or a share of it; have it acknowledged after `trip`, then find segments lost."""
        run = Run(1, bytes(int(self.congestion.cwnd * share)))
        run.sent_at, run.transmissions = self.now, 1
        self.congestion.on_sent(run)
        self.now += trip
        self.rtt.on_sample(trip, self.now)
        self.congestion.on_arrived([run], 0, self.rtt, self.now)
        if lost:
            self.congestion.on_lost(lost)


def with_a_queue() -> Player:
    player = Player()
    player.round(EMPTY)
    player.round(FULL)
    return player


def test_the_window_doubles_until_there_is_a_queue_and_then_grows_by_a_step() -> None:
    player = Player()
    player.round(EMPTY)
    assert player.congestion.cwnd == 2 * CWND_INITIAL
    player.round(FULL)
    before = player.congestion.cwnd
    player.round(FULL)
    assert player.congestion.cwnd == before + GROWTH_QUEUED
    assert player.congestion.ssthresh == SSTHRESH_INITIAL  # nothing was lost


def test_a_window_that_is_not_used_does_not_grow() -> None:
    player = Player()
    for _ in range(10):
        player.round(EMPTY, share=0.5)
    assert player.congestion.cwnd == CWND_INITIAL


def test_a_loss_counts_when_there_is_a_queue_and_once_in_two_round_trips() -> None:
    player = with_a_queue()
    before = player.congestion.cwnd
    player.round(FULL, lost=1)
    after = player.congestion.cwnd
    assert after == player.congestion.ssthresh == int((before + GROWTH_QUEUED) * BACKOFF)
    for _ in range(BACKOFF_ROUNDS - 1):
        player.round(FULL, lost=1)
    assert player.congestion.cwnd > after
    player.round(FULL, lost=1)
    assert player.congestion.cwnd < after


def test_few_losses_without_a_queue_do_not_count_and_many_do() -> None:
    player = Player()
    for _ in range(20):
        player.round(EMPTY, lost=player.congestion.cwnd // SEGMENT // 20)
    assert player.congestion.cwnd == CWND_MAX
    player.round(EMPTY, lost=player.congestion.cwnd // SEGMENT // 2)
    player.round(EMPTY)
    assert player.congestion.cwnd < CWND_MAX


def test_a_timeout_starts_over_and_comes_back_as_far_as_the_path_was_empty() -> None:
    quiet, queued = Player(), with_a_queue()
    quiet.round(EMPTY)
    for player in (quiet, queued):
        before = player.congestion.cwnd
        player.congestion.on_timeout()
        assert player.congestion.cwnd == CWND_MIN
        for _ in range(5):
            player.round(EMPTY)
        assert (player.congestion.cwnd >= before) is (player is quiet)


def test_a_stream_that_never_sees_its_path_empty_shrinks_its_window_for_a_moment_and_ever_later() -> None:
    player = with_a_queue()
    pauses = []
    for _ in range(5):
        since = player.now
        while player.congestion.cwnd > CWND_MIN:
            before = player.congestion.cwnd
            player.round(FULL)
            assert player.now < since + DRAIN_EVERY + 1
        pauses.append(player.now - since)
        for _ in range(3):
            player.round(FULL)
        assert player.congestion.cwnd >= before
    assert pauses == [pytest.approx(pause, abs=0.2) for pause in (1, 2, 4, DRAIN_EVERY, DRAIN_EVERY)]
