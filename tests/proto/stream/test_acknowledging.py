"""What the receiving half says and when (`spec/transport.md` §4, §9.3, §3.5)."""

from __future__ import annotations

import pytest

from pilot_trio.proto.stream.connection import Event, State
from pilot_trio.proto.stream.settings import ANSWER_SEGMENTS, QUICK_ACKS, RECEIVE_SLOTS, SEGMENT, StreamSettings

from .segment_script import Script, established, packet_of


def after_quick_acks(window: int = 512) -> Script:
    """Every lone segment of the first ones was acknowledged at once; from now on the timer decides."""
    script = established(window)
    for index in range(QUICK_ACKS):
        script.gets(f"ACK {1 + index} 1 {window} +1")
        script.sends(f"ACK 1 {2 + index} 4095")
        script.reads()
    return script


def test_a_lone_segment_is_acknowledged_after_a_moment() -> None:
    script = after_quick_acks()
    script.gets("ACK 33 1 512 +1")
    script.sends_until(0.0049)
    script.sends_until(0.005, (0.005, "ACK 1 34 4095"))
    script.gets("ACK 34 1 512 +1")  # the pause has renewed the quick acknowledgments
    script.sends("ACK 1 35 4094")


def test_the_second_segment_is_acknowledged_at_once() -> None:
    script = after_quick_acks()
    script.gets("ACK 33 1 512 +1")
    script.sends_nothing()
    script.gets("ACK 34 1 512 +1")
    script.sends("ACK 1 35 4094")
    script.sends_until(1.0)


def test_a_batch_is_acknowledged_once() -> None:
    script = established(window=4096)
    script.gets(*(f"ACK {1 + 1152 * index} 1 4096 +1152" for index in range(50)))
    script.sends(f"ACK 1 {1 + 50 * 1152} {RECEIVE_SLOTS - 50}")
    script.happened(Event.READABLE)


def test_a_reference_sender_hears_of_a_batch_in_steps_that_its_window_grows_by() -> None:
    script = established()
    script.gets(*(f"ACK {1 + 1152 * index} 1 512 +1152" for index in range(8)))
    window = RECEIVE_SLOTS - 8
    script.sends(*(f"ACK 1 {1 + 1152 * segments} {window}" for segments in (3, 6, 8)))


def test_the_steps_are_ends_of_segments() -> None:
    script = established()
    script.gets(
        "ACK 1 1 512 +1000", "ACK 1001 1 512 +1152", "ACK 2153 1 512 +1152", "ACK 3305 1 512 +1152", "ACK 4457 1 512 +1"
    )
    window = RECEIVE_SLOTS - 5
    script.sends(f"ACK 1 3305 {window}", f"ACK 1 4458 {window}")


def test_a_filled_gap_is_acknowledged_in_one_step() -> None:
    script = established()
    script.gets(*(f"ACK {1 + 1152 * index} 1 512 +1152" for index in range(1, 9)))
    script._out.clear()
    script.gets("ACK 1 1 512 +1152")
    script.sends(f"ACK 1 {1 + 9 * 1152} {RECEIVE_SLOTS - 9}")


def test_data_carries_the_acknowledgment() -> None:
    script = after_quick_acks()
    script.gets("ACK 33 1 512 +1")
    script.writes(5)
    script.sends("ACK 1 34 4095 +5")
    script.until(0.006)
    script.sends_nothing()


def test_a_gap_is_reported_also_while_data_flows_back() -> None:
    script = established()
    script.machine.write(b"hello")
    script.gets("ACK 11 1 512 +10")
    script.sends("ACK 1 1 4096 +5", "ACK 6 1 4096 [11-21]")


def test_a_reference_sender_gets_an_answer_to_each_early_segment() -> None:
    script = established()
    script.gets("ACK 11 1 512 +10", "ACK 21 1 512 +10", "ACK 31 1 512 +10")
    script.sends(*["ACK 1 1 4096 [11-41]"] * 3)


def test_a_reference_sender_can_count_three_answers_to_three_early_segments_of_a_batch_that_began_in_order() -> None:
    script = established()
    script.gets(*(f"ACK {1 + 1152 * index} 1 512 +1152" for index in (0, 1, 2, 3, 5, 6, 7)))
    window, gap = RECEIVE_SLOTS - 4, 1 + 4 * 1152
    script.sends(
        f"ACK 1 {1 + 3 * 1152} {window}",
        *[f"ACK 1 {gap} {window} [{gap + 1152}-{gap + 4 * 1152}]"] * 4,  # the first brings progress: it does not count
    )


def test_our_own_kind_gets_one_answer_to_a_batch() -> None:
    script = established(4096)
    script.gets("ACK 11 1 4096 +10", "ACK 21 1 4096 +10", "ACK 31 1 4096 +10")
    script.sends("ACK 1 1 4096 [11-41]")


def test_a_duplicate_is_answered_at_once() -> None:
    script = after_quick_acks()
    script.gets("ACK 5 1 512 +1")
    script.sends("ACK 1 33 4096")


def test_a_segment_that_starts_too_low_is_dropped_even_if_its_tail_is_new() -> None:
    script = established()
    script.gets("ACK 1 1 512 +10")
    script.sends("ACK 1 11 4095")
    script.gets("ACK 6 1 512 +20")
    script.sends("ACK 1 11 4095")
    assert script.machine.readable == 10


def test_more_than_four_ranges_are_reported_by_the_highest_four_and_in_a_batch_by_all() -> None:
    script = established(4096)
    for start in (11, 31, 51, 71):
        script.gets(f"ACK {start} 1 4096 +10")
    script._out.clear()
    script.gets("ACK 91 1 4096 +10")
    script.sends("ACK 1 1 4096 [31-41] [51-61] [71-81] [91-101]")
    script.gets("ACK 21 1 4096 +10", "ACK 111 1 4096 +10", "ACK 131 1 4096 +10")
    script.sends("ACK 1 1 4096 [11-41] [91-101] [111-121] [131-141]")
    script.gets(*(f"ACK {start} 1 4096 +10" for start in (151, 171, 191, 211, 231)))
    script.sends(
        "ACK 1 1 4096 [151-161] [171-181] [191-201] [211-221]",
        "ACK 1 1 4096 [171-181] [191-201] [211-221] [231-241]",
    )


def test_the_filled_gap_delivers_all_that_waited() -> None:
    script = established()
    script.gets("ACK 6 1 512", "ACK 6 1 512 +5", "ACK 11 1 512 +5")
    script._out.clear()
    script.gets("ACK 1 1 512 +5")
    script.sends("ACK 1 16 4093")
    assert len(script.reads()) == 15


def test_segments_of_any_size_are_taken() -> None:
    script = established()
    script.gets("ACK 1 1 512 +9000")
    script.sends("ACK 1 9001 4088")
    assert len(script.reads()) == 9000


def fill(script: Script, slots: int) -> int:
    """Let a peer fill the window up to `slots` free ones; return the next sequence number."""
    seq = 1
    for _ in range(RECEIVE_SLOTS - slots):
        script.gets(f"ACK {seq} 1 512 +1152")
        seq += 1152
    script._out.clear()
    return seq


def test_a_full_receiver_drops_says_so_and_announces_room_when_the_reader_made_some() -> None:
    script = established()
    seq = fill(script, 0)
    script.gets(f"ACK {seq} 1 512 +1152")  # one more than was promised: taken, as a probe is
    script._out.clear()
    script.gets(f"ACK {seq + 1152} 1 512 +1152")
    script.sends(f"ACK 1 {seq + 1152} 0")
    owed = []
    for size in (1 << 20, SEGMENT * RECEIVE_SLOTS // 4):
        script.machine.read(size)
        owed.append(script.machine.owes_acknowledgment)
    assert owed == [False, True]  # a little room is not worth a packet
    script.pump()
    assert len(script._out) == 1


@pytest.mark.parametrize(("slots", "announced"), [(62, True), (64, False)])
def test_room_is_announced_only_to_a_peer_that_knows_of_hardly_any(slots: int, announced: bool) -> None:
    script = established()
    seq = fill(script, slots)
    script.reads()
    script.sends(*([f"ACK 1 {seq} 4096"] if announced else []))


def test_a_probe_of_a_window_that_is_open_again_is_answered_once() -> None:
    script = established()
    seq = fill(script, 0)
    script.machine.read(100 * SEGMENT)  # too little to announce
    script.gets(f"ACK {seq} 1 512")
    script.sends(f"ACK 1 {seq} 100")
    script.gets(f"ACK {seq} 1 512")
    script.sends_nothing()


def test_single_bytes_use_up_the_window_as_full_segments_do() -> None:
    script = established()
    for index in range(RECEIVE_SLOTS + 500):
        script.gets(f"ACK {1 + index} 1 512 +1")
    assert script.machine.readable <= RECEIVE_SLOTS + 1
    assert script._out[-1][1].window == 0


def test_a_keepalive_probe_is_answered_and_its_answer_is_not() -> None:
    script = established()
    script.until(4.9)
    script.gets("ACK 1 1 512")
    script.sends_nothing()
    script.until(10.0)
    script.gets("ACK 1 1 512")
    script.sends("ACK 1 1 4096")
    script.gets("ACK 1 1 512")
    script.sends_nothing()


def test_a_silent_peer_is_probed_three_times_and_closed_with_a_fin() -> None:
    script = established()
    probe = "ACK 1 1 4096"
    script.sends_until(105.9, (76.0, probe), (86.0, probe), (96.0, probe))
    script.sends_until(106.1, (106.0, "FIN 1 0 0"))
    script.happened(Event.DEAD_PEER, Event.END_OF_STREAM)


def test_a_peer_that_only_probes_where_it_hears_nothing_is_let_speak_first() -> None:
    """The reference: it looks every 15 s, probes after 60 s without a word, and answers no probe."""
    for phase in range(15):
        script = established()
        for look in range(phase, 900, 15):
            script.until(float(look))
            heard_at = max((at for at, _ in script._out), default=0.0)
            if look - heard_at > 60.0:
                script.gets("ACK 1 1 512")
        assert script.machine.state is State.ESTABLISHED, f"it looks {phase} s after the start"


def test_what_arrived_before_a_peer_died_can_still_be_read() -> None:
    script = established()
    script.gets("ACK 1 1 512 +10")
    script.until(110.0)
    assert script.events[1] is Event.DEAD_PEER
    assert script.reads() == bytes(10)
    script.until(200.0)
    assert script.events[-1] is Event.CLOSED


def test_any_answer_stops_the_probes() -> None:
    script = established()
    script.sends_until(87.0, (76.0, "ACK 1 1 4096"), (86.0, "ACK 1 1 4096"))
    script.gets("ACK 1 1 512")
    script.sends_until(162.9)
    script.sends_until(163.0, (163.0, "ACK 1 1 4096"))


def test_an_idle_timeout_below_the_keepalive_closes_without_probes() -> None:
    script = established(settings=StreamSettings(idle_timeout=30.0))
    script.sends_until(29.9)
    script.sends_until(30.0, (30.0, "FIN 1 0 0"))
    script.happened(Event.IDLE_TIMEOUT, Event.END_OF_STREAM)


def test_an_answer_in_the_same_turn_ends_the_quick_acknowledgments() -> None:
    script = established()
    script.machine.receive_packet(packet_of("ACK 1 1 512 +10"), script.now)
    script.writes(10)
    script.sends("ACK 1 11 4095 +10")
    script.gets("ACK 11 11 512 +10")
    script.sends_nothing()  # the next answer will carry it
    script.until(0.006)
    script.sends("ACK 11 21 4094")  # or the timer, after which the peer is answered at once again
    script.gets("ACK 21 11 512 +10")
    script.sends("ACK 11 31 4093")


@pytest.mark.parametrize(("segments", "at_once"), [(ANSWER_SEGMENTS - 1, False), (ANSWER_SEGMENTS, True)])
def test_a_short_answer_is_acknowledged_by_the_next_question(segments: int, at_once: bool) -> None:
    script = conversation(window=4096)
    script.gets(*(f"ACK {2 + 1152 * index} 11 4096 +1152" for index in range(segments)))
    script.reads()
    end = 2 + 1152 * segments
    if at_once:
        script.sends(f"ACK 11 {end} {RECEIVE_SLOTS - segments}")
    script.writes(5)
    script.sends(f"ACK 11 {end} 4096 +5")
    script.until(0.006)
    script.sends_nothing()


def test_an_answer_that_no_question_follows_is_acknowledged_after_a_moment_and_the_next_ones_as_ever() -> None:
    script = conversation(window=4096)
    script.gets("ACK 2 11 4096 +1152", "ACK 1154 11 4096 +1152")
    script.sends_until(0.0049)
    script.sends_until(0.005, (0.005, "ACK 11 2306 4094"))
    script.gets("ACK 2306 11 4096 +1152", "ACK 3458 11 4096 +1152")
    script.sends("ACK 11 4610 4092")


def test_a_reference_sender_gets_an_acknowledgment_of_every_other_segment_also_of_a_short_answer() -> None:
    script = conversation(window=512)
    script.gets("ACK 2 11 512 +1152", "ACK 1154 11 512 +1152")
    script.sends("ACK 11 2306 4094")


def test_a_question_that_follows_an_answer_at_once_would_have_carried_its_acknowledgment() -> None:
    script = established(4096)
    script.writes(5)
    script.gets("ACK 1 6 4096 +1152", "ACK 1153 6 4096 +1152")
    script.sends("ACK 1 1 4096 +5", "ACK 6 2305 4094")
    script.until(0.0049)
    script.writes(5)
    script.sends("ACK 6 2305 4094 +5")
    script.gets("ACK 2305 11 4096 +1152", "ACK 3457 11 4096 +1152")
    script.sends_nothing()
    script.writes(5)
    script.sends("ACK 11 4609 4092 +5")


def test_a_question_after_a_pause_is_no_reason_to_wait() -> None:
    script = established(4096)
    script.gets("ACK 1 1 4096 +1152", "ACK 1153 1 4096 +1152")
    script.sends("ACK 1 2305 4094")
    script.until(0.0051)
    script.writes(5)
    script.sends("ACK 1 2305 4094 +5")
    script.gets("ACK 2305 6 4096 +1152", "ACK 3457 6 4096 +1152")
    script.sends("ACK 6 4609 4092")


def conversation(window: int) -> Script:
    """A question, its answer of a byte, and the next question, which has carried the acknowledgment."""
    script = established(window)
    script.writes(5)
    script.sends("ACK 1 1 4096 +5")
    script.machine.receive_packet(packet_of(f"ACK 1 6 {window} +1"), script.now)
    script.machine.read(1)
    script.writes(5)
    script.sends("ACK 6 2 4096 +5")
    return script
