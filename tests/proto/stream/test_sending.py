"""What the sending half sends and when (`spec/transport.md` §5, §6, §9)."""

from __future__ import annotations

import pytest

from pilot_trio.proto.stream.budget import PEER_BURST, STREAM_SHARE, Budget
from pilot_trio.proto.stream.connection import Event
from pilot_trio.proto.stream.sender import HANDSHAKE_RTT_MAX
from pilot_trio.proto.stream.settings import SEGMENT, SEND_BUFFER

from .link import Link, Path
from .segment_script import Script, accepted, dialling, established


def quiet(window: int = 512) -> Script:
    """An established stream with a round trip of 10 ms behind it, nothing outstanding; the next byte is 2."""
    script = established(window)
    script.writes(1)
    script.until(0.01)
    script.gets(f"ACK 1 2 {window}")
    script.sends("ACK 1 1 4096 +1")
    return script


# --- segments ----------------------------------------------------------------------------------------------------


def test_full_segments_and_the_tail_of_a_large_write_leave_at_once() -> None:
    script = established()
    script.writes(3000)
    script.sends("ACK 1 1 4096 +1152", "ACK 1153 1 4096 +1152", "ACK 2305 1 4096 +696")


def test_five_short_writes_leave_as_two_segments() -> None:
    script = established()
    for _ in range(5):
        script.writes(2)
    script.sends("ACK 1 1 4096 +2")
    script.gets("ACK 1 3 512")
    script.sends("ACK 3 1 4096 +8")


def test_a_short_tail_waits_no_longer_than_a_moment() -> None:
    script = established()
    script.writes(2)
    script.writes(2)
    script.sends("ACK 1 1 4096 +2")
    script.sends_until(0.039)
    script.sends_until(0.04, (0.04, "ACK 3 1 4096 +2"))


def test_a_short_tail_that_has_waited_and_finds_no_room_leaves_no_deadline_behind() -> None:
    script = established()
    script.writes(2)
    script.writes(2)
    script.sends("ACK 1 1 4096 +2")
    script.gets("ACK 1 1 0")
    script.machine.handle_timeout(0.04)
    script.pump()
    assert (
        script.machine.next_deadline() > 0.04
    )  # the shell would call again at once, for as long as the window is closed
    script.gets("ACK 1 3 512")
    script.sends("ACK 3 1 4096 +2")


def test_request_and_reply_wait_for_no_timer() -> None:
    script = quiet()
    seq, ack = 2, 1
    for _ in range(200):
        script.writes(64)
        script.sends(f"ACK {seq} {ack} 4096 +64")
        script.now += 0.0001
        script.gets(f"ACK {ack} {seq + 64} 512 +64")
        script._out.clear()
        script.reads()
        seq, ack = seq + 64, ack + 64


@pytest.mark.parametrize("before", [b"", b"x" * 1152, b"x" * 100])
def test_data_that_looks_like_a_report_is_cut_so_that_it_does_not(before: bytes) -> None:
    script = established()
    script.writes(before + b"SACK\x01" + bytes(8) + b"more")
    sent = [packet.payload for _, packet in script._out]
    assert b"".join(sent) == before + b"SACK\x01" + bytes(8) + b"more"
    assert not any(payload.startswith(b"SACK\x01") for payload in sent)


def test_data_that_only_begins_like_a_report_is_not_cut() -> None:
    script = established()
    script.writes(b"SACK\x05" + bytes(40))
    script.sends("ACK 1 1 4096 +45")


def test_the_buffer_is_bounded_and_announces_room() -> None:
    script = established()
    assert script.writes(SEND_BUFFER + 1) == SEND_BUFFER
    assert script.writes(1) == 0
    script.happened()
    seq = 1
    while Event.WRITABLE not in script.events:
        seq += SEGMENT
        script.now += 0.001
        script.gets(f"ACK 1 {seq} 512")
    assert script.machine.send_room >= SEND_BUFFER // 4


# --- how much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "most"), [(512, 35), (40, 32), (9, 1), (2048, 35)])
def test_the_first_flight_keeps_to_window_and_headroom(window: int, most: int) -> None:
    script = established(window)
    script.writes(1 << 18)
    assert len(script._out) - most in {0, 1}  # one segment may overshoot in bytes


def test_streams_to_one_peer_share_a_burst_and_none_starves() -> None:
    budget = Budget()
    scripts = [established(4096, budget=budget) for _ in range(20)]
    for script in scripts:
        script.writes(1 << 17)
    flights = [script.machine.row()["in_flight"] for script in scripts]
    assert min(flights) == STREAM_SHARE
    assert sum(flights) <= PEER_BURST + len(scripts) * (STREAM_SHARE + SEGMENT)
    for script in scripts:
        script.machine.abort()
    assert (budget.in_flight, budget.held_by_paths) == (0, 0)


def test_a_stream_alone_is_not_held_up_by_the_budget_of_a_long_path() -> None:
    link = Link(Path(delay=0.025), seed=1)
    link.connect()
    most = 0

    def watch() -> bool:
        nonlocal most
        link.a.write(bytes(1 << 20))
        link.pump(0)
        link.b.read(1 << 30)
        most = max(most, int(link.a.row()["in_flight"]))
        return most > 4 * PEER_BURST

    link.run(watch, 2)


# --- windows that close ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "asked_after"),
    [(512, (0.5, 1.5, 3.5, 7.5, 15.5, 23.5, 31.5, 39.5)), (4096, (0.5, 1.5, *(3.5 + 2 * n for n in range(19))))],
)
def test_a_closed_window_is_asked_with_data_ever_less_often(window: int, asked_after: tuple[float, ...]) -> None:
    script = quiet(window)
    script.gets("ACK 1 2 0")
    script.writes(100)
    at = script.now
    script.sends_until(at + 40, *((round(at + after, 3), "ACK 2 1 4096 +100") for after in asked_after))


def test_a_peer_that_talks_is_not_asked_and_opening_starts_anew() -> None:
    script = quiet()
    script.gets("ACK 1 2 0")
    script.writes(100)
    for _ in range(20):
        script.until(script.now + 0.4)
        script.gets("ACK 1 2 0")
    script.sends_nothing()
    script.gets("ACK 1 2 512")
    script.sends("ACK 2 1 4096 +100")


def test_probes_do_not_count_towards_giving_up() -> None:
    script = quiet()
    script.gets("ACK 1 2 0")
    script.writes(100)
    for _ in range(12):
        script.until(script.now + 8.1)
        script.gets("ACK 1 2 0")
    assert Event.ABANDONED not in script.events
    script._out.clear()
    script.gets("ACK 1 2 512")
    script.sends("ACK 2 1 4096 +100")


def test_the_answer_to_a_repeated_probe_is_no_round_trip_and_its_bytes_count_once() -> None:
    script = quiet()
    script.gets("ACK 1 2 0")
    script.writes(100)
    script.until(script.now + 2.0)
    assert len(script._out) == 2
    script.gets("ACK 1 102 512")  # the first one stood before a full queue, or the second did not
    row = script.machine.row()
    assert (row["srtt_ms"], row["bytes_sent"], row["unacked"]) == (10.0, 101, 0)


def test_nothing_lost_is_sent_again_into_a_closed_window() -> None:
    script = quiet()
    script.writes(5 * SEGMENT)
    script._out.clear()
    script.until(0.02)
    script.gets(f"ACK 1 2 0 [{2 + SEGMENT}-{2 + 5 * SEGMENT}]")
    script.until(script.now + 0.45)
    script.sends_nothing()


def test_the_last_slots_of_a_reference_peer_are_asked_for_one_at_a_time() -> None:
    script = quiet()
    script.gets("ACK 1 2 8")
    script.writes(10 * SEGMENT)
    at = script.now
    script.sends_until(at + 0.015, (round(at + 0.01, 3), "ACK 2 1 4096 +1152"))
    script.gets("ACK 1 1154 7")
    script.sends_until(at + 0.0349)
    script.sends_until(at + 0.04, (round(at + 0.035, 3), "ACK 1154 1 4096 +1152"))
    script.gets("ACK 1 2306 300")
    assert len(script._out) == 8


def test_a_window_that_shrinks_takes_nothing_back() -> None:
    script = quiet()
    script.writes(20 * SEGMENT)
    assert len(script._out) == 20
    script._out.clear()
    script.gets("ACK 1 2 3")
    script.writes(SEGMENT)
    script.gets(f"ACK 1 {2 + 20 * SEGMENT} 512")
    script.sends(f"ACK {2 + 20 * SEGMENT} 1 4096 +1152")


# --- acknowledgments that lie ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", ["ACK 1 99999 0", "ACK 1 4294967295 0", "ACK 1 0 0", "ACK 1 1 0", "ACK 1 1155 0"])
def test_acknowledgments_of_what_was_never_sent_or_overtaken_change_nothing(packet: str) -> None:
    script = quiet()
    script.writes(SEGMENT)
    before = script.machine.row()
    script.gets(packet)
    assert script.machine.row() | {"segs_recv": 0} == before | {"segs_recv": 0}


def test_reports_of_what_was_never_sent_change_nothing() -> None:
    script = quiet()
    script.writes(2 * SEGMENT)
    before = script.machine.row()["in_flight"]
    script.gets(f"ACK 1 2 512 [{2 + SEGMENT}-{3 + 2 * SEGMENT}] [9000-8000] [1-2]")
    assert script.machine.row()["in_flight"] == before


def test_a_peer_that_takes_its_report_back_gets_everything_again() -> None:
    script = quiet()
    script.writes(3 * SEGMENT)
    script._out.clear()
    script.gets(f"ACK 1 2 512 [2-{2 + 3 * SEGMENT}]")
    assert script.machine.row()["in_flight"] == 0
    script.until(1.0)
    assert {packet.seq for _, packet in script._out} == {2, 1154, 2306}


def test_a_repeated_acknowledgment_does_not_put_the_timer_off() -> None:
    script = quiet()
    script.writes(100)
    script._out.clear()
    for index in range(60):
        script.until(script.now + 0.01)
        script.gets(f"ACK {1 + index} 2 512 +1")  # data of its own, and always the same acknowledgment
    assert any(packet.seq == 2 and len(packet.payload) == 100 for _, packet in script._out)


# --- losses ------------------------------------------------------------------------------------------------------


def test_all_holes_are_repaired_in_one_round_trip_with_the_segments_that_were_lost() -> None:
    script = quiet()
    script.writes(20 * SEGMENT)
    sent = {packet.seq: len(packet.payload) for _, packet in script._out}
    script._out.clear()
    script.until(0.02)
    first, second, end = 2 + 3 * SEGMENT, 2 + 9 * SEGMENT, 2 + 20 * SEGMENT
    script.gets(f"ACK 1 {first} 512 [{first + SEGMENT}-{second}] [{second + SEGMENT}-{end}]")
    script.until(0.025)
    script.sends(f"ACK {first} 1 4096 +1152", f"ACK {second} 1 4096 +1152")
    assert sent[first] == sent[second] == 1152


def test_a_lost_tail_is_probed_before_the_timeout() -> None:
    script = quiet()
    script.writes(100)
    script._out.clear()
    script.until(0.05)
    script.sends("ACK 2 1 4096 +100")
    assert script.machine.row()["retransmits"] == 0


def test_a_silent_peer_is_given_up_after_the_ladder_with_a_reset() -> None:
    script = established()
    script.writes(100)
    script.sends("ACK 1 1 4096 +100")
    script.until(200.0)
    *ladder, last = [(round(at, 1), packet) for at, packet in script._out]
    assert [at for at, _ in ladder] == [0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 22.6, 32.6, 42.6]
    assert last[0] == 52.6  # the eighth timeout comes too soon to tell a dead peer from one that was stopped
    assert (last[1].flags, last[1].seq) == (8, 0)
    script.happened(Event.ABANDONED, Event.END_OF_STREAM, Event.CLOSED)


def test_the_handshake_is_a_round_trip_to_begin_with() -> None:
    script = dialling()
    script.until(0.1)
    script.gets("SYN|ACK 0 1 512")
    script.sends("ACK 1 1 4096")
    assert script.machine.row()["srtt_ms"] == 100.0
    script.writes(100)
    script.sends("ACK 1 1 4096 +100")
    script.sends_until(0.31, (0.305, "ACK 1 1 4096 +100"))  # a tail probe after two of them


def test_who_accepts_has_a_round_trip_from_what_comes_first() -> None:
    script = accepted()
    script.until(0.1)
    script.gets("ACK 1 1 512 +10")
    assert script.machine.row()["srtt_ms"] == 100.0


def test_who_accepts_learns_nothing_from_a_silent_client() -> None:
    script = accepted()
    script.until(HANDSHAKE_RTT_MAX + 0.01)
    script.gets("ACK 1 1 512 +10")
    assert script.machine.row()["srtt_ms"] == 0


def test_a_handshake_that_took_long_tells_nothing() -> None:
    script = dialling()
    script.until(HANDSHAKE_RTT_MAX + 0.01)
    script.gets("SYN|ACK 0 1 512")
    assert script.machine.row()["srtt_ms"] == 0


def test_an_answer_to_a_repeated_syn_took_no_longer_than_since_the_first_one() -> None:
    script = dialling()
    script.until(0.25)
    script.machine.send_syn()
    script.pump()
    script.until(0.29)
    script.gets("SYN|ACK 0 1 512")
    script.sends("SYN 0 0 4096", "ACK 1 1 4096")
    script.writes(10)
    script.sends("ACK 1 1 4096 +10")
    script.sends_until(1.2, (0.875, "ACK 1 1 4096 +10"))


def test_an_answer_to_a_repeated_answer_took_no_longer_than_since_the_first_one() -> None:
    script = accepted()
    script.until(0.25)
    script.gets("SYN 0 0 512")
    script.sends("SYN|ACK 0 1 4096")
    script.until(0.29)
    script.gets("ACK 1 1 512 +10")
    assert script.machine.row()["srtt_ms"] == 290.0


def test_fast_repairs_alone_do_not_give_a_peer_up() -> None:
    script = quiet()
    script.writes(200 * SEGMENT)
    end = 2 + SEGMENT
    for _ in range(30):
        script.until(script.now + 0.02)
        end = min(end + SEGMENT, script.machine._sender.snd_nxt)
        script.gets(f"ACK 1 2 512 [{2 + SEGMENT}-{end}]")
    assert Event.ABANDONED not in script.events


def test_a_request_reply_stream_has_not_learned_that_its_path_is_slow() -> None:
    script = quiet(4096)
    seq = 2
    for _ in range(300):
        script.writes(10)
        seq += 10
        script.until(script.now + 0.04)
        script.gets(f"ACK 1 {seq} 4096")
    script._out.clear()
    script.writes(1 << 20)
    script.until(script.now + 0.039)
    assert len(script._out) >= 30  # a first window in a round trip, as on a fresh stream


def test_the_first_real_round_trip_takes_the_place_of_the_handshakes() -> None:
    script = accepted()
    script.until(0.3)
    script.gets("ACK 1 1 512 +10")
    assert script.machine.row()["srtt_ms"] == 300.0
    script.writes(10)
    script.until(0.32)
    script.gets("ACK 11 11 512")
    assert script.machine.row()["srtt_ms"] == 20.0
