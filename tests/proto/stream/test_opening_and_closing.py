"""Handshake, FIN, RST and everything that may come instead (`spec/transport.md` §3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilot_trio.proto.stream.connection import Connection, Event, State
from pilot_trio.proto.stream.send_queue import Run
from pilot_trio.wire.packet import FIN

from .segment_script import Script, accepted, closed_by_peer, closed_by_us, dialling, established, packet_of


def test_a_dial_is_answered_with_an_acknowledgment() -> None:
    script = dialling()
    script.gets("SYN|ACK 0 1 512")
    script.sends("ACK 1 1 4096")
    script.happened(Event.OPENED)


def test_our_own_kind_gets_the_acknowledgment_of_its_answer_with_the_first_data_or_a_moment_later() -> None:
    script = dialling()
    script.gets("SYN|ACK 0 1 4096")
    script.sends_nothing()
    script.happened(Event.OPENED)
    script.sends_until(1.0, (0.25, "ACK 1 1 4096"))
    script = dialling()
    script.gets("SYN|ACK 0 1 4096")
    script.writes(b"hello")
    script.sends("ACK 1 1 4096 +5")
    script.gets("ACK 1 6 4096")
    script.sends_until(1.0)


def test_a_peer_may_start_anywhere_and_acknowledge_anything_in_its_answer() -> None:
    script = dialling()
    script.gets("SYN|ACK 4294967295 77 512")
    script.sends("ACK 1 0 4096")
    script.gets("ACK 0 1 512 +10")
    script.sends("ACK 1 10 4095")
    assert script.reads() == bytes(10)


def test_a_refused_dial_ends() -> None:
    script = dialling()
    script.gets("RST 0 0 0")
    script.sends_nothing()
    script.happened(Event.REFUSED, Event.CLOSED)


@pytest.mark.parametrize("packet", ["ACK 1 1 512 +5", "FIN 1 0 0", "SYN 0 0 512", "FIN|ACK 1 1 0"])
def test_a_dial_waits_for_its_answer_and_nothing_else(packet: str) -> None:
    script = dialling()
    script.gets(packet)
    script.sends_nothing()
    assert script.machine.state is State.SYN_SENT


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_dial_that_is_given_up_sends_nothing(end: str) -> None:
    script = dialling()
    if end == "close":
        script.machine.close(0.0)
    else:
        script.machine.abort()
    script.pump()
    script.sends_nothing()
    script.happened(Event.CLOSED)


def test_a_repeated_syn_gets_the_first_answer_with_todays_numbers() -> None:
    script = accepted()
    script.gets("ACK 1 1 512 +10")
    script.sends("ACK 1 11 4095")
    script.gets("SYN 0 0 512")
    script.sends("SYN|ACK 0 11 4095")


def test_a_syn_with_fin_and_reset_is_a_syn() -> None:
    script = accepted()
    script.gets("SYN|FIN|RST 0 0 512")
    script.sends("SYN|ACK 0 1 4096")


@pytest.mark.parametrize("make", [established, accepted, closed_by_us, closed_by_peer])
def test_an_answer_to_no_question_is_ignored(make: Callable[[], Script]) -> None:
    script = make()
    script.gets("SYN|ACK 0 1 512")
    script.sends_nothing()


def test_a_fin_with_nothing_missing_ends_the_stream() -> None:
    script = established()
    script.gets("ACK 1 1 512 +10", "FIN 11 0 0")
    script.sends("FIN|ACK 1 12 0")
    script.happened(Event.READABLE, Event.END_OF_STREAM)
    assert (script.reads(), script.machine.state) == (bytes(10), State.TIME_WAIT)
    script.sends_until(9.9)
    script.until(10.0)
    script.happened(Event.CLOSED)


def test_acknowledgment_window_and_payload_of_a_fin_mean_nothing() -> None:
    script = established()
    script.gets("FIN|ACK|RST 1 99 7 +20")
    script.sends("FIN|ACK 1 2 0")
    assert script.machine.readable == 0


def test_a_fin_that_overtook_data_waits_for_it() -> None:
    script = established()
    script.gets("FIN 21 0 0")
    script.sends("ACK 1 1 4096")
    script.gets("ACK 11 1 512 +10")
    script.sends("ACK 1 1 4096 [11-21]")
    assert script.machine.holds_peer_fin
    script.gets("ACK 1 1 512 +10")
    script.sends("FIN|ACK 1 22 0")
    assert script.reads() == bytes(20)


def test_the_first_of_several_early_fins_counts() -> None:
    script = established()
    script.gets("FIN 11 0 0", "FIN 99 0 0")
    script.sends("ACK 1 1 4096")
    script.gets("ACK 1 1 512 +10")
    script.sends("FIN|ACK 1 12 0")


def test_a_held_fin_is_accepted_after_a_long_silence_and_the_user_learns_what_is_missing() -> None:
    script = established()
    script.gets("FIN 21 0 0")
    script.sends("ACK 1 1 4096")
    script.until(10.0)
    script.gets("ACK 11 1 512 +10")  # the silence starts anew
    script.sends("ACK 1 1 4096 [11-21]")
    script.sends_until(24.999)
    script.sends_until(25.0, (25.0, "FIN|ACK 1 22 0"))
    script.happened(Event.TRUNCATED, Event.END_OF_STREAM)


def test_each_sign_of_the_peer_restarts_the_wait_for_what_its_fin_overtook() -> None:
    script = established()
    script.gets("FIN 3001 0 0")
    script.sends("ACK 1 1 4096")
    for second in range(10, 60, 10):
        script.until(float(second))
        script.gets("FIN 3001 0 0" if second % 20 else "ACK 1001 1 512 +10")  # again, or something known
    script._out.clear()
    script.sends_until(64.999)
    script.sends_until(65.0, (65.0, "FIN|ACK 1 3002 0"))


def test_what_fills_the_gap_in_time_makes_the_end_a_clean_one() -> None:
    script = established()
    script.gets("FIN 11 0 0")
    script.until(14.9)
    script.gets("ACK 1 1 512 +10")
    script.happened(Event.READABLE, Event.END_OF_STREAM)
    script.until(60.0)
    script.happened(Event.CLOSED)


def test_a_peer_may_begin_anywhere_and_its_numbers_wrap() -> None:
    script = Script(Connection.accepting(packet_of("SYN 4294967285 0 512"), 0.0))
    script.pump()
    script.sends("SYN|ACK 0 4294967286 4096")
    script.gets("ACK 10 1 512 +10")  # the wrap is in the gap before it
    script.sends("ACK 1 4294967286 4096 [10-20]")
    script.gets("ACK 4294967286 1 512 +20")
    script.sends("ACK 1 20 4094")
    script.gets("FIN 25 0 0")
    script.sends("ACK 1 20 4094")
    assert script.machine.holds_peer_fin
    script.gets("ACK 20 1 512 +5")
    script.sends("FIN|ACK 1 26 0")
    script.happened(Event.READABLE, Event.READABLE, Event.END_OF_STREAM)
    assert script.reads() == bytes(35)


def test_a_peer_that_answers_and_never_makes_room_is_given_up_some_day() -> None:
    script = established()
    script.gets("ACK 1 1 0")
    script.writes(5000)
    script.closes()
    while script.machine.state is not State.CLOSED:
        assert script.now < 300
        script.until(script.now + 1)
        script.gets("ACK 1 1 0")
    script.until(1000.0)
    assert script.machine.next_deadline() == float("inf")
    assert any(packet.flags & FIN for _, packet in script._out)


def test_our_close_is_answered_twice() -> None:
    script = closed_by_us()
    script.gets("FIN|ACK 1 2 0")
    script.sends("FIN|ACK 2 2 0")
    assert script.machine.state is State.TIME_WAIT
    script.gets("FIN 1 0 0", "FIN|ACK 1 2 0", "ACK 1 2 512 +5", "SYN 0 0 512")
    script.sends_nothing()


def test_our_own_kind_answers_a_close_once_and_no_answer() -> None:
    script = established(4096)
    script.closes()
    script.gets("FIN|ACK 1 2 0")
    script.sends("FIN 1 0 0")
    assert script.machine.state is State.TIME_WAIT


def test_two_that_close_at_once_answer_each_other() -> None:
    script = established(4096)
    script.closes()
    script.gets("FIN 1 0 0")
    script.sends("FIN 1 0 0", "FIN|ACK 2 2 0")
    assert script.machine.state is State.TIME_WAIT


def test_an_unanswered_fin_is_repeated_a_few_times_and_then_all_is_over() -> None:
    script = closed_by_us()
    script.sends_until(20.0, *((at, "FIN 1 0 0") for at in (0.2, 0.6, 1.4, 3.0, 5.0, 7.0)))
    script.happened(Event.CLOSED)


def test_data_after_our_close_is_neither_kept_nor_answered() -> None:
    script = closed_by_us()
    script.gets("ACK 1 1 512 +10")
    script.sends_nothing()
    assert script.machine.readable == 0


def test_unread_data_is_dropped_by_our_close() -> None:
    script = established()
    script.gets("ACK 1 1 512 +10")
    script.closes()
    assert script.machine.readable == 0


def test_the_fin_waits_for_the_data_before_it() -> None:
    script = established()
    script.writes(2000)
    script.sends("ACK 1 1 4096 +1152", "ACK 1153 1 4096 +848")
    script.closes()
    script.sends_nothing()
    script.gets("ACK 1 1153 512")
    script.sends_nothing()
    script.gets("ACK 1 2001 512")
    script.sends("FIN 2001 0 0")


def test_what_nagle_held_leaves_before_the_fin() -> None:
    script = established()
    script.writes(2)
    script.writes(2)
    script.sends("ACK 1 1 4096 +2")
    script.closes()
    script.sends("ACK 3 1 4096 +2")
    script.gets("ACK 1 5 512")
    script.sends("FIN 5 0 0")


def test_a_fin_that_cannot_wait_any_longer_keeps_its_place_and_the_data_goes_on() -> None:
    script = established()
    script.until(0.1)
    script.writes(1152)
    script.sends("ACK 1 1 4096 +1152")
    script.closes()
    # The data by its own clock; the FIN after 5 s, numbered after the data, and repeated with it.
    data, fin = "ACK 1 1 4096 +1152", "FIN 1153 0 0"
    script.sends_until(6.0, (0.3, data), (0.7, data), (1.5, data), (3.1, data), (5.1, fin), (5.3, fin), (5.7, fin))
    script.sends_until(6.4, (6.3, data))
    script.gets("ACK 1 1153 512")
    script.sends_nothing()
    script.gets("FIN|ACK 1 1154 0")
    script.sends("FIN|ACK 1154 2 0")


def test_what_a_paused_reader_has_no_room_for_is_not_given_up_while_the_peer_answers() -> None:
    script = established()
    script.gets("ACK 1 1 0")
    script.writes(1152)
    script.closes()
    for second in range(1, 30):
        script.until(float(second))
        script.gets("ACK 1 1 0")
    assert script.machine.state is State.FIN_WAIT
    script._out.clear()
    script.gets("ACK 1 1 512")
    script.sends("ACK 1 1 4096 +1152")
    script.gets("ACK 1 1153 511")
    script.sends("FIN 1153 0 0")


def test_shutting_down_does_not_wait() -> None:
    script = established()
    script.writes(100)
    script.closes()
    script.sends("ACK 1 1 4096 +100")
    script.machine.hurry(0.0)
    script.pump()
    script.sends("FIN 101 0 0")


def test_a_fin_ends_our_close_whatever_is_unacknowledged() -> None:
    script = established()
    script.writes(5000)
    script.closes()
    script._out.clear()
    script.gets("FIN 1 0 0")
    script.sends("FIN|ACK 5001 2 0")
    script.sends_until(100.0)
    script.happened(Event.END_OF_STREAM, Event.CLOSED)


def test_a_peers_fin_drops_what_was_not_sent() -> None:
    script = established()
    script.writes(1 << 20)
    assert script.writes(1) == 0
    script._out.clear()
    script.gets("FIN 1 0 0")
    assert script.machine.write(b"x") == 0
    script.happened(Event.END_OF_STREAM, Event.WRITABLE)


@pytest.mark.parametrize("packet", ["RST 0 0 0", "RST 99999 5 7", "RST|ACK 1 1 512 +4"])
@pytest.mark.parametrize("make", [established, accepted, closed_by_us, closed_by_peer])
def test_a_reset_ends_everything_without_a_sequence_check(make: Callable[[], Script], packet: str) -> None:
    script = make()
    script.events.clear()
    script.gets(packet)
    script.sends_nothing()
    assert script.events[-1] is Event.CLOSED
    assert script.machine.next_deadline() == float("inf")


def test_aborting_resets() -> None:
    script = established()
    script.writes(10)
    script._out.clear()
    script.machine.abort()
    script.pump()
    script.sends("RST 0 0 0")
    script.happened(Event.CLOSED)


def reset_by_peer() -> Script:
    script = established()
    script.gets("RST 0 0 0")
    return script


@pytest.mark.parametrize("make", [closed_by_peer, reset_by_peer])
def test_nothing_reaches_what_ended_streams_share(make: Callable[[], Script]) -> None:
    script = make()
    machine = script.machine
    machine.receive_packets([packet_of(f"ACK {seq} 1 512 +10") for seq in (1, 11, 31)], script.now)
    script.gets("ACK 1 1 0 +10", "ACK 50 99 512 [1-10]", "ACK 1 1 512", "SYN 0 0 512", "SYN|ACK 0 1 512", "FIN 1 0 0")
    script.writes(100)
    script.closes()
    machine.hurry(script.now)
    machine.repeat_now(script.now)
    machine.handle_timeout(script.now + 1)
    script.pump()
    script.sends_nothing()
    assert script.reads() == b""


def test_what_ended_streams_share_takes_nothing_in() -> None:
    """One for all of them: what came into it would turn up in every one."""
    machine = closed_by_peer().machine
    sender, receiver = machine._sender, machine._receiver
    attempts: list[Callable[[], object]] = [
        lambda: sender.outgoing.append(b"data", push=True),
        lambda: sender.queue.sent(Run(1, b"data"), 0.0),
        lambda: sender.queue.selectively_acknowledge([(1, 5)]),
        lambda: receiver.on_segment(1, b"data", 0.0),
        lambda: receiver.data.receive_run([packet_of("ACK 1 1 512 +1")], 0, 1, 512),
        receiver.owe,
    ]
    for attempt in attempts:
        with pytest.raises(AssertionError):
            attempt()
    assert closed_by_peer().machine.row() == machine.row()


def test_a_packet_without_flags_is_dropped_even_with_data() -> None:
    script = established()
    machine = script.machine
    machine.receive_packet(packet_of("ACK 1 1 512 +10")._replace(flags=0), 0.0)
    script.pump()
    script.sends_nothing()
    assert machine.readable == 0
