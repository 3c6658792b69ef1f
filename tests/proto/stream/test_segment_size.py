"""Segments grow as far as the path proves to carry them, and shrink when it stops doing so."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.proto.stream.budget import Budget
from pilot_trio.proto.stream.segment_size import (
    LOST_MAX,
    PROBE_AGAIN,
    PROBES,
    RECOVER_FIRST,
    STEPS,
    SegmentSize,
)
from pilot_trio.proto.stream.settings import SEGMENT

from .link import Link, Path
from .segment_script import established

LARGE, MIDDLE = STEPS
LOOPBACK = 65_000  # bytes; the first link has no say
DATA = random.Random(1).randbytes(3 << 20)


def connected(path: Path, limit: int = LOOPBACK, seed: int = 0) -> Link:
    link = Link(path, seed, segment_limit=limit)
    link.connect()
    link.keep_sent = True
    return link


def sizes_sent(link: Link, sender: int = 0) -> Counter[int]:
    return Counter(len(packet.payload) for _, source, packet in link.sent if source == sender)


def retransmitted(link: Link) -> int:
    seen, again = set(), 0
    for _, sender, packet in link.sent:
        if sender == 0 and packet.payload:
            again += packet.seq in seen
            seen.add(packet.seq)
    return again


def test_one_probe_among_small_segments_and_then_all_are_large() -> None:
    link = connected(Path(delay=0.01))
    assert link.transfer(DATA, 10.0) == DATA
    sent = [len(packet.payload) for _, sender, packet in link.sent if sender == 0 and packet.payload]
    first_round = sent[: sent.index(LARGE, 1)]
    assert first_round.count(LARGE) == 1 and set(first_round) <= {LARGE, SEGMENT}
    assert link.budgets[0].segment_size.size == LARGE
    assert sizes_sent(link)[LARGE] > 0.9 * len(DATA) / LARGE
    assert not retransmitted(link)


@pytest.mark.parametrize(
    ("limit", "largest", "expected"),
    [
        (LOOPBACK, LARGE - 1, MIDDLE),
        (LOOPBACK, MIDDLE - 1, SEGMENT),
        (LOOPBACK, SEGMENT, SEGMENT),
        (LARGE, LARGE, LARGE),
        (LARGE - 1, LOOPBACK, MIDDLE),
        (MIDDLE, LOOPBACK, MIDDLE),
        (MIDDLE - 1, LOOPBACK, SEGMENT),
        (SEGMENT, LOOPBACK, SEGMENT),
    ],
)
def test_segments_are_as_large_as_path_and_first_link_allow(limit: int, largest: int, expected: int) -> None:
    link = connected(Path(delay=0.01, largest=largest), limit)
    plain = connected(Path(delay=0.01), SEGMENT)
    assert plain.transfer(DATA, 10.0) == DATA
    assert link.transfer(DATA, 10.0) == DATA
    assert link.budgets[0].segment_size.size == expected
    steps_too_large = [step for step in STEPS if largest < step <= limit]
    lost = sum(count for size, count in sizes_sent(link).items() if size > largest)
    assert len(steps_too_large) <= lost <= PROBES * len(steps_too_large)
    # Finding out costs no window and hardly any time.
    assert link.a.row()["cong_win"] >= 0.9 * plain.a.row()["cong_win"]
    assert link.now < 1.2 * plain.now + 0.1


def test_what_was_refused_is_not_tried_again_for_ten_minutes() -> None:
    link = connected(Path(delay=0.01, largest=SEGMENT), MIDDLE)
    assert link.transfer(DATA, 10.0) == DATA
    link.sent.clear()
    link.settle(60.0)
    assert link.transfer(DATA, 10.0) == DATA
    assert sizes_sent(link)[MIDDLE] == 0
    for _ in range(int(PROBE_AGAIN / 50)):  # a word now and then keeps the stream alive
        assert link.transfer(b"x", 1.0) == b"x"
        link.settle(50.0)
    link.path.largest = LOOPBACK
    assert link.transfer(DATA, 10.0) == DATA
    assert link.budgets[0].segment_size.size == MIDDLE


@pytest.mark.parametrize("largest", [SEGMENT, MIDDLE, 4000])
@pytest.mark.parametrize("delay", [0.00005, 0.02])
def test_a_path_that_stops_carrying_large_segments_costs_a_moment(largest: int, delay: float) -> None:
    link = connected(Path(delay=delay))
    assert link.transfer(DATA, 10.0) == DATA
    assert link.budgets[0].segment_size.size == LARGE
    link.path.largest = largest
    before = link.now
    assert link.transfer(DATA, 10.0) == DATA
    assert link.now - before < 3.0
    assert link.budgets[0].segment_size.size <= largest
    link.path.largest = LOOPBACK
    link.settle(2 * RECOVER_FIRST)
    assert link.transfer(DATA, 10.0) == DATA
    assert link.budgets[0].segment_size.size == LARGE


def test_random_loss_does_not_make_segments_small() -> None:
    link = connected(Path(delay=0.01, loss=0.05), seed=3)
    assert link.transfer(DATA, 30.0) == DATA
    assert link.budgets[0].segment_size.size == LARGE
    assert sizes_sent(link)[LARGE] > 0.8 * len(DATA) / LARGE


def test_a_reference_peer_gets_what_it_sends_itself() -> None:
    link = Link(Path(delay=0.001), segment_limit=LOOPBACK)
    link.alter = lambda packet: packet._replace(window=min(packet.window, 512))
    link.connect()
    link.keep_sent = True
    assert link.transfer(DATA, 30.0) == DATA
    assert max(sizes_sent(link)) == SEGMENT


def test_a_question_and_an_answer_of_a_few_kib_are_a_segment_each() -> None:
    link = connected(Path(delay=0.001))
    message = DATA[:4096]
    for _ in range(5):
        link.sent.clear()
        assert link.transfer(message, 1.0) == message
        assert link.transfer(message, 1.0, sender=1) == message
    assert [size for size in sizes_sent(link, 0).elements() if size] == [4096]
    assert [size for size in sizes_sent(link, 1).elements() if size] == [4096]


def test_a_small_window_is_filled_with_small_segments() -> None:
    link = connected(Path(delay=0.001))
    assert link.transfer(DATA, 10.0) == DATA
    link.sent.clear()
    written = link.a.write(DATA[: 1 << 20])
    link.pump(0)
    link.settle(5.0)  # nobody reads
    while written < 8 << 20 and (more := link.a.write(DATA[: 1 << 20])):
        written += more
        link.pump(0)
        link.settle(5.0)
    assert link.b.row()["recv_win"] < LARGE * 4
    assert sizes_sent(link)[SEGMENT] > 0
    assert len(link.b.read(1 << 30)) >= 4 << 20


def test_a_stream_that_ends_leaves_the_probing_to_others() -> None:
    link = connected(Path(delay=0.01))
    sizes = link.budgets[0].segment_size
    link.a.write(DATA[:100_000])
    link.pump(0)
    assert sizes.probe(1 << 20, link.now) == 0, "one is on its way"
    link.a.abort()
    assert sizes.probe(1 << 20, link.now) == LARGE


def test_a_probe_that_a_closed_window_swallowed_is_over_and_proves_nothing() -> None:
    budget = Budget(LOOPBACK)
    script = established(4096, budget=budget)
    script.writes(LARGE)
    script.sends(f"ACK 1 1 4096 +{LARGE}")
    script.gets("ACK 1 1 0", "ACK 1 1 4096")
    script.gets(f"ACK 1 {1 + LARGE} 4096")  # in pieces, as it was sent again
    assert budget.segment_size.size == SEGMENT
    script.writes(LARGE)
    assert script._out[-1][1].payload == bytes(LARGE)  # another probe


def test_recut_data_that_looks_like_a_report_arrives() -> None:
    link = connected(Path(delay=0.01, largest=SEGMENT))
    lookalike = b"SACK\x01" + bytes(8)
    data = (bytes(SEGMENT) + lookalike + bytes(SEGMENT - len(lookalike))) * 20
    assert link.transfer(data, 10.0) == data


# --- the counter by itself -------------------------------------------------------------------------------------------


def test_a_new_path_has_to_prove_itself_anew() -> None:
    sizes = SegmentSize(LOOPBACK)
    assert sizes.probe(1 << 20, 0.0) == LARGE
    sizes.on_probe_sent(LARGE)
    sizes.on_probe_arrived(LARGE)
    assert sizes.size == LARGE and sizes.probe(1 << 20, 0.0) == 0
    sizes.on_path(LOOPBACK)
    assert sizes.size == SEGMENT
    sizes.on_probe_sent(sizes.probe(1 << 20, 0.0))
    sizes.on_path(MIDDLE)
    sizes.on_probe_arrived(LARGE)  # by the earlier path
    assert sizes.size == SEGMENT
    assert sizes.probe(1 << 20, 0.0) == MIDDLE


def test_a_message_of_its_own_size_is_a_probe_if_it_is_worth_it() -> None:
    sizes = SegmentSize(LOOPBACK)
    assert sizes.probe(SEGMENT + 10, 0.0) == 0
    assert sizes.probe(2000, 0.0) == 2000
    sizes.on_probe_sent(2000)
    sizes.on_probe_arrived(2000)
    assert sizes.probe(2100, 0.0) == 0
    assert sizes.probe(4096, 0.0) == 4096


@pytest.mark.parametrize(
    ("lost", "tried_next"),
    [
        ([LARGE, LARGE], LARGE),
        ([LARGE, LARGE, 1300], MIDDLE),  # what was lost of 1300 bytes may have been by chance
        ([1300, LARGE, LARGE], MIDDLE),
        ([1300, MIDDLE, 1300], 0),
        ([1300, 1300, 1300], 0),
        ([LARGE, LARGE, LARGE, 1300, 1300], MIDDLE),
        ([LARGE, LARGE, 1300, 1300, 1300], 0),
    ],
)
def test_a_size_is_refused_when_it_or_smaller_ones_were_lost_three_times(lost: list[int], tried_next: int) -> None:
    sizes = SegmentSize(LOOPBACK)
    for size in lost:
        assert sizes.probe(size, 0.0) == size
        sizes.on_probe_sent(size)
        sizes.on_probe_lost(size, 0.0)
    assert sizes.probe(1 << 20, 0.0) == tried_next


def test_losses_of_sizes_that_have_arrived_since_were_by_chance() -> None:
    sizes = SegmentSize(LOOPBACK)
    for size in (2000, 8192):
        sizes.on_probe_sent(size)
        sizes.on_probe_lost(size, 0.0)
    sizes.on_probe_sent(3000)
    sizes.on_probe_arrived(3000)
    sizes.on_probe_sent(8192)
    sizes.on_probe_lost(8192, 0.0)
    assert sizes.probe(8192, 0.0) == 8192
    sizes.on_probe_sent(8192)
    sizes.on_probe_lost(8192, 0.0)
    assert sizes.probe(8192, 0.0) == 0


def test_each_time_that_a_path_fails_it_is_trusted_later() -> None:
    sizes, now, pauses = SegmentSize(LARGE), 0.0, []
    for _ in range(10):
        start = now
        while not (size := sizes.probe(1 << 20, now)):
            now += 1.0
        pauses.append(now - start)
        sizes.on_probe_sent(size)
        sizes.on_probe_lost(size, now)
        sizes.on_probe_sent(size)
        sizes.on_timeout(now)  # not large yet: says nothing
        sizes.on_probe_given_up()
        sizes.size = LARGE
        sizes.on_large_lost(LOST_MAX, now)
        assert sizes.size == SEGMENT
    assert pauses[:4] == [0, RECOVER_FIRST, 2 * RECOVER_FIRST, 4 * RECOVER_FIRST]
    assert pauses[-1] == PROBE_AGAIN


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([SEGMENT, MIDDLE, 4000, LARGE, LOOPBACK]), st.integers(0, 60)), max_size=6),
    st.sampled_from([0.0, 0.02, 0.1]),
    st.sampled_from([0.0, 0.005]),
    st.integers(0, 2**32),
)
def test_whatever_the_path_carries_and_when_all_arrives(
    changes: list[tuple[int, int]], loss: float, jitter: float, seed: int
) -> None:
    link = Link(Path(delay=0.005, loss=loss, jitter=jitter, duplication=loss, rate=20e6), seed, segment_limit=LOOPBACK)
    link.connect()
    for at, (largest, length) in enumerate([*changes, (LOOPBACK, 30)]):
        link.path.largest = largest
        data = DATA[at : at + length * 10_007]
        if data:
            assert link.transfer(data, 60.0, sender=at % 2) == data
            assert link.a.row()["unacked"] * SEGMENT <= 8 << 20
