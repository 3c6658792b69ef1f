"""What is written is what is read, exactly once and in order, whatever the path does; and nothing ever stands still."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot_trio.proto.stream.connection import Event, State
from pilot_trio.proto.stream.settings import RECEIVE_SLOTS, REFERENCE_FLIGHT_MAX, SEGMENT
from pilot_trio.wire.packet import ACK, FIN, RST, STREAM, SYN, Packet

from .link import Link, Path


def data_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


paths = st.builds(
    Path,
    delay=st.sampled_from([0.0, 0.0002, 0.01, 0.2]),
    jitter=st.sampled_from([0.0, 0.001, 0.05]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    duplication=st.sampled_from([0.0, 0.1]),
    rate=st.sampled_from([float("inf"), 200_000.0]),
)


@given(paths, st.integers(0, 2**32), st.integers(0, 60_000))
@settings(max_examples=60)
def test_every_byte_arrives_once_and_in_order(path: Path, seed: int, size: int) -> None:
    link = Link(path, seed)
    link.connect()
    data = data_of(size, seed)
    assert link.transfer(data, limit=120) == data


@given(paths, st.integers(0, 2**32))
@settings(max_examples=40)
def test_closing_right_after_the_last_write_loses_nothing(path: Path, seed: int) -> None:
    link = Link(path, seed)
    link.connect()
    data = data_of(20_000, seed)
    assert link.a.write(data) == len(data)
    link.pump(0)
    link.a.close(link.now)
    link.pump(0)
    link.run(lambda: link.ends[1] is not None and link.b.ended, limit=120)
    assert link.b.read(1 << 20) == data


@pytest.mark.parametrize(
    ("delay", "loss", "least"),
    # MiB/s; the reference reaches 3 at 20 ms without loss, 0.5 at 1 %, 0.25 at 5 % (transport.md §12.1)
    [(0.02, 0.0, 12.0), (0.02, 0.01, 8.0), (0.02, 0.05, 5.0), (0.01, 0.01, 15.0)],
)
def test_throughput_on_a_long_or_lossy_path(delay: float, loss: float, least: float) -> None:
    link = Link(Path(delay=delay, loss=loss), seed=3)
    link.connect()
    data = data_of(4 << 20)
    started = link.now
    assert link.transfer(data, limit=60) == data
    assert 4 / (link.now - started) > least


def test_segments_that_overtake_each_other_are_not_taken_for_lost_for_ever() -> None:
    link = Link(Path(delay=0.01, jitter=0.05), seed=3)
    link.connect()
    data = data_of(4 << 20)
    assert link.transfer(data, limit=60) == data
    assert link.a.row()["fast_retx"] < 0.25 * len(data) / SEGMENT  # each segment, if patience never grew


def test_a_narrow_path_is_filled_and_not_flooded() -> None:
    link = Link(Path(delay=0.02, rate=1e6, queue=100_000), seed=3)
    link.connect()
    data = data_of(4 << 20)
    started = link.now
    assert link.transfer(data, limit=60) == data
    assert len(data) / (link.now - started) > 0.75e6
    assert link.a.row()["fast_retx"] < 1500


def test_both_directions_at_once() -> None:
    link = Link(Path(delay=0.005, loss=0.02), seed=5)
    link.connect()
    left, right = data_of(200_000, 1), data_of(200_000, 2)
    got: list[bytearray] = [bytearray(), bytearray()]
    written = [0, 0]

    def move() -> bool:
        for index, data in enumerate((left, right)):
            end = (link.a, link.b)[index]
            written[index] += end.write(memoryview(data)[written[index] :])
            got[index] += end.read(1 << 20)
            link.pump(index)
        return len(got[0]) == len(right) and len(got[1]) == len(left)

    link.run(move, 60)
    assert (bytes(got[0]), bytes(got[1])) == (right, left)


def test_user_data_that_looks_like_a_sack_arrives() -> None:
    data = (b"SACK\x01abcdefgh and more " * 200)[:4000] + b"SACK\x04" + bytes(40)
    link = Link(Path(delay=0.001), seed=1)
    link.connect()
    for at in range(0, len(data), 23):
        link.a.write(data[at : at + 23])
        link.pump(0)
        link.settle(0.002)
    received = bytearray()

    def read() -> bool:
        received.extend(link.b.read(1 << 20))
        return len(received) == len(data)

    link.run(read, 30)
    assert bytes(received) == data


def test_a_paused_reader_closes_the_window_and_reopens_it() -> None:
    link = Link(Path(delay=0.001), seed=1)
    link.connect()
    data = data_of(8 << 20)
    written = 0

    def fill() -> bool:
        nonlocal written
        written += link.a.write(memoryview(data)[written:])
        link.pump(0)
        return link.b.readable >= (RECEIVE_SLOTS - 64) * SEGMENT

    link.run(fill, 30)
    link.settle(9)
    assert link.b.readable <= (RECEIVE_SLOTS + 1) * SEGMENT
    received = bytearray()

    def drain() -> bool:
        nonlocal written
        received.extend(link.b.read(1 << 30))
        link.pump(1)
        written += link.a.write(memoryview(data)[written:])
        link.pump(0)
        return len(received) == len(data)

    resumed = link.now
    link.run(drain, 30)
    assert bytes(received) == data
    assert link.now - resumed < 3


def as_reference(packet: Packet) -> Packet:
    """Let a packet advertise what a reference node would."""
    return packet._replace(window=min(512, packet.window)) if not packet.flags & (FIN | RST) else packet


def test_never_more_is_out_than_a_reference_peer_can_reorder() -> None:
    link = Link(Path(delay=0.05), seed=1)
    link.alter = as_reference
    link.connect()
    link.a.write(data_of(1 << 20))
    most = 0

    def watch() -> bool:
        nonlocal most
        link.pump(0)
        most = max(most, link.a.row()["unacked"])
        link.b.read(1 << 20)
        return link.b.bytes_received > 700_000

    link.run(watch, 60)
    assert most == REFERENCE_FLIGHT_MAX


def test_a_peer_that_never_announces_room_is_probed_with_real_data() -> None:
    link = Link(Path(delay=0.001), seed=1)
    closed = True
    link.alter = lambda packet: as_reference(packet)._replace(window=0 if closed and packet.flags == ACK else 512)
    link.connect()
    link.a.write(data_of(300_000))
    link.pump(0)
    link.settle(10)
    assert link.a.state is State.ESTABLISHED
    sent_while_closed = link.a.segments_sent
    closed = False
    link.run(lambda: link.b.readable == 300_000, 30)
    assert sent_while_closed < 150


def test_the_handshake_has_the_recorded_numbers() -> None:
    link = Link(Path(delay=0.001))
    link.keep_sent = True
    link.a.send_syn()
    link.pump(0)
    link.run(lambda: link.a.state is State.ESTABLISHED, 1)
    link.pump(0)
    link.settle(0.3)
    (_, _, syn), (_, _, syn_ack), *_, (_, _, last) = link.sent
    assert (syn.flags, syn.seq, syn.ack) == (SYN, 0, 0)
    assert (syn_ack.flags, syn_ack.seq, syn_ack.ack) == (SYN | ACK, 0, 1)
    assert (last.flags, last.seq, last.ack, last.payload) == (ACK, 1, 1, b"")


@pytest.mark.parametrize("own_kind", [True, False])
def test_a_normal_close_is_three_packets_and_between_our_own_kind_two(own_kind: bool) -> None:
    link = Link(Path(delay=0.001))
    if not own_kind:
        link.alter = as_reference
    link.connect()
    link.settle(0.1)
    link.keep_sent = True
    link.sent.clear()
    link.a.close(link.now)
    link.pump(0)
    link.run(lambda: link.a.state is State.CLOSED and link.b.state is State.CLOSED, 60)
    answer_to_the_answer = [] if own_kind else [(0, FIN | ACK)]
    assert [(sender, packet.flags) for _, sender, packet in link.sent] == [
        (0, FIN), (1, FIN | ACK), *answer_to_the_answer,
    ]  # fmt: skip
    fin = link.sent[0][2]
    assert (fin.ack, fin.window) == (0, 0)
    assert link.sent[1][2].ack == fin.seq + 1
    assert Event.END_OF_STREAM in link.events[1]


def test_a_lost_fin_is_sent_again() -> None:
    link = Link(Path(delay=0.001))
    link.connect()
    lost = 0

    def drop_first_fins(sender: int, packet: Packet) -> bool:
        nonlocal lost
        if packet.flags == FIN and lost < 2:
            lost += 1
            return False
        return True

    link.filter = drop_first_fins
    link.a.close(link.now)
    link.pump(0)
    link.run(lambda: link.b.ended, 10)
    assert link.now < 5


def test_a_fin_that_overtakes_data_waits_for_it() -> None:
    link = Link(Path(delay=0.001))
    link.connect()
    data = data_of(5000)
    held: list[Packet] = []

    def hold_first_data(sender: int, packet: Packet) -> bool:
        if sender == 0 and packet.payload and packet.seq == 1 and not held:
            held.append(packet)
            return False
        return True

    link.filter = hold_first_data
    link.a.write(data)
    link.pump(0)
    link.b.receive_packet(from_a(link, FIN, seq=1 + len(data)), link.now)
    link.pump(1)
    assert not link.b.ended
    link.run(lambda: link.b.ended, 20)
    assert link.b.read(1 << 20) == data


def from_a(link: Link, flags: int, seq: int = 0, ack: int = 0, window: int = 0, payload: bytes = b"") -> Packet:
    a, b = link.a.local, link.a.remote
    return Packet(flags, STREAM, a.address, b.address, a.port, b.port, seq, ack, window, payload)


def test_a_peer_that_stops_acknowledging_is_abandoned_with_a_reset() -> None:
    link = Link(Path(delay=0.001))
    link.connect()
    link.filter = lambda sender, packet: packet.flags == RST
    link.a.write(b"x" * 5000)
    link.pump(0)
    link.run(lambda: link.a.state is State.CLOSED, 120)
    assert Event.ABANDONED in link.events[0]
    link.run(lambda: link.b.state is State.CLOSED, 1)


@pytest.mark.parametrize("pause", [5, 40])
def test_a_peer_that_was_stopped_for_a_while_goes_on_where_it_was(pause: float) -> None:
    link = Link(Path(delay=0.001))
    link.connect()
    link.a.write(b"x" * 5000)
    link.pump(0)
    link.run(lambda: link.b.readable == 5000, 5)
    link.filter = lambda sender, packet: False
    link.a.write(b"y" * 5000)
    link.pump(0)
    link.settle(pause)
    link.filter = lambda sender, packet: True
    link.run(lambda: link.b.readable == 10_000, 11)
    assert link.a.state is State.ESTABLISHED


@pytest.mark.parametrize("answers", [True, False])
def test_idle_streams_live_while_the_peer_answers_and_end_when_it_does_not(answers: bool) -> None:
    link = Link(Path(delay=0.001))
    link.connect()
    if not answers:
        link.filter = lambda sender, packet: sender == 0
    link.settle(1000)
    if answers:
        assert link.a.state is link.b.state is State.ESTABLISHED
    else:
        assert Event.DEAD_PEER in link.events[0]
        assert link.a.state is State.CLOSED


def test_a_reset_ends_the_stream_without_a_sequence_check() -> None:
    link = Link(Path())
    link.connect()
    link.b.receive_packet(from_a(link, RST), link.now)
    link.pump(1)
    assert link.b.state is State.CLOSED
    assert link.events[1][-2:] == [Event.END_OF_STREAM, Event.CLOSED]


def test_an_acknowledgment_of_data_never_sent_changes_nothing() -> None:
    link = Link(Path())
    link.connect()
    before = link.a.row() | {"segs_recv": 0}
    link.a.receive_packet(
        Packet(ACK, 1, link.a.remote.address, link.a.local.address, 7, 49152, seq=1, ack=99_999, window=5), link.now
    )
    assert link.a.row() | {"segs_recv": 0} == before


def test_sequence_numbers_wrap() -> None:
    link = Link(Path(delay=0.001, loss=0.05, jitter=0.002), seed=4)
    link.connect()
    start = 0xFFFFF000
    link.a._sender.snd_una = link.a._sender.snd_nxt = start
    link.b._receiver.data.position = start
    data = data_of(100_000)
    assert link.transfer(data, 60) == data
    assert link.a._sender.snd_nxt > 1 << 32
    link.a.write(b"the last ones")
    link.a.close(link.now)
    link.pump(0)
    link.settle(300)
    assert link.b.read(100) == b"the last ones"
    assert link.a.state is link.b.state is State.CLOSED
    assert Event.TRUNCATED not in link.events[1]


@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.integers(0, 15),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.integers(0, 65535),
            st.binary(max_size=30),
        ),
        max_size=30,
    ),
)
def test_arbitrary_packets_break_nothing(seed: int, packets: list[tuple[int, int, int, int, bytes]]) -> None:
    link = Link(Path(delay=0.001), seed)
    link.connect()
    link.a.write(b"data")
    for flags, seq, ack, window, payload in packets:
        for index, end in enumerate((link.a, link.b)):
            end.receive_packet(from_a(link, flags, seq, ack, window, payload), link.now)
            link.pump(index)
            assert end._sender.queue.in_flight >= 0
            assert end.readable <= (RECEIVE_SLOTS + 1) * SEGMENT
    link.settle(300)
