"""When a peer is asked for its key because of what arrives under a session."""

from __future__ import annotations

import os

import pytest

from pilot_trio.crypto.aead import Sealer
from pilot_trio.crypto.replay import Verdict
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import GATE_AGE_REPLAY, GATE_COUNT

KEY = bytes(32)
PEER = 2


def session_and_peer() -> tuple[Session, Sealer]:
    session = Session(KEY, 1, bytes(32), os.urandom, now=0.0)
    return session, Sealer(KEY, PEER, b"peer")


def test_a_datagram_that_the_network_repeats_is_no_reason_to_ask() -> None:
    session, peer = session_and_peer()
    for minute in range(60):
        datagram = peer.seal(b"keepalive")
        assert session.open(datagram)[1] is Verdict.FRESH
        verdict = session.open(datagram)[1]
        assert verdict is Verdict.REPLAY
        assert not session.replayed(verdict, now=minute * 60.0)


@pytest.mark.parametrize("verdict", [Verdict.REPLAY, Verdict.OUTSIDE])
def test_refused_frames_are_a_reason_to_ask_only_in_a_row_and_after_a_while(verdict: Verdict) -> None:
    session, peer = session_and_peer()
    assert [session.replayed(verdict, GATE_AGE_REPLAY) for _ in range(GATE_COUNT)] == [False] * (GATE_COUNT - 1) + [
        True
    ]
    session.open(peer.seal(b"fine"))
    assert not session.replayed(verdict, 1000.0)
    young, _ = session_and_peer()
    assert not any(young.replayed(verdict, GATE_AGE_REPLAY - 0.01) for _ in range(10))


def test_a_peer_that_counts_anew_under_the_same_key_is_taken_at_once() -> None:
    session, peer = session_and_peer()
    for _ in range(10):
        session.open(peer.seal(b"before"))
    again = Sealer(KEY, PEER, b"anew")
    assert [session.open(again.seal(b"after"))[1] for _ in range(10)] == [Verdict.FRESH] * 10


def test_a_peer_that_counts_anew_again_and_again_makes_us_keep_five_windows() -> None:
    session, peer = session_and_peer()
    first = peer.seal(b"first")
    session.open(first)
    for number in range(5):
        assert session.open(first)[1] is Verdict.REPLAY  # and the latest use of a window keeps it
        assert session.open(Sealer(KEY, PEER, b"new%d" % number).seal(b"x"))[1] is Verdict.FRESH
        assert len(session.past.seen) == min(number + 2, 5)
    assert session.open(first)[1] is Verdict.REPLAY
    for number in range(5):
        session.open(Sealer(KEY, PEER, b"odd%d" % number).seal(b"x"))
    assert b"peer" not in [prefix for prefix, _ in session.past.seen]
