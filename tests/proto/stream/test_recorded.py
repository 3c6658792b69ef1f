"""Conversations recorded between two reference nodes, with our machine in either role (`vectors/packets.json`).

What the protocol demands is compared byte for byte. The window is ours to choose, so it is set to what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pilot_trio.proto.stream.connection import Connection, Event, State
from pilot_trio.wire.packet import RST, SYN, Packet, decode

from .link import address

SLOWER = 20  # times; the recorded round trip of 0.2 ms is below what ours waits for segments out of order
TUNNEL_MAGIC = 4  # bytes before the packet in a plaintext frame
CONVERSATIONS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "packets.json").read_text(encoding="utf-8")
)["conversations"]


def frames(name: str) -> Iterator[tuple[float, str, Packet, bool]]:
    """Yield time in seconds, direction, packet, and whether it was lost on the way."""
    for frame in CONVERSATIONS[name]:
        packet = decode(bytes.fromhex(frame["frame_hex"])[TUNNEL_MAGIC:])
        yield frame["t_ms"] / 1000, frame["dir"], packet, frame["dropped_on_the_wire"]


def recorded(name: str, direction: str) -> list[bytes]:
    return [on_the_wire(packet) for _, way, packet, _ in frames(name) if way == direction]


def on_the_wire(packet: Packet) -> bytes:
    return packet._replace(window=512 if packet.window else 0).encode()


def sent(machine: Connection, now: float) -> list[bytes]:
    return [on_the_wire(decode(packet)) for packet in machine.packets_to_send(now)]


def test_a_ping_as_the_one_who_dials() -> None:
    machine = Connection.dialling(address(1, 49152), address(2, 7), 0.0)
    out = sent(machine, 0.0)
    for at, way, packet, _ in frames("ping_conversation"):
        if way == "B>A":
            machine.receive_packet(packet, at)
            out += sent(machine, at)
        elif packet.payload:
            machine.write(packet.payload)
            out += sent(machine, at)
        elif packet.seq == 7 and not packet.ack:
            assert machine.read(100) == b"ping-0"
            machine.close(at)
            out += sent(machine, at)
    assert out == recorded("ping_conversation", "A>B")
    assert machine.state is State.TIME_WAIT


def test_a_ping_as_the_one_who_answers() -> None:
    script = list(frames("ping_conversation"))
    machine = Connection.accepting(script[0][2], 0.0)
    out = sent(machine, 0.0)
    for at, way, packet, _ in script[1:]:
        if way == "A>B":
            machine.receive_packet(packet, at)
            out += sent(machine, at)
            if machine.readable:
                machine.write(machine.read(100))
                out += sent(machine, at)
    assert out == recorded("ping_conversation", "B>A")
    assert machine.state is State.TIME_WAIT


def test_a_refused_dial() -> None:
    (_, _, syn, _), (at, _, reset, _) = frames("refused_connection")
    machine = Connection.dialling(address(1, syn.source_port), address(2, syn.destination_port), 0.0)
    assert sent(machine, 0.0) == [on_the_wire(syn)]
    machine.receive_packet(reset, at)
    assert sent(machine, at) == []
    assert machine.next_event() is Event.REFUSED
    assert reset.flags == RST


def test_recovery_from_loss_as_the_receiver() -> None:
    script = list(frames("loss_recovery"))
    machine = Connection.accepting(script[0][2], 0.0)
    out = sent(machine, 0.0)
    for at, way, packet, lost in script[1:]:
        if way == "A>B" and not lost:
            machine.receive_packet(packet, at)
            out += sent(machine, at)
        elif packet.payload == b"reply":
            machine.write(packet.payload)
            out += sent(machine, at)
    assert out == recorded("loss_recovery", "B>A")


def test_recovery_from_loss_as_the_sender() -> None:
    """Ours repairs both holes at once where the reference needs a round trip for each: same segments, another order."""
    machine = Connection.dialling(address(1, 49153), address(2, 6500), 0.0)
    out = sent(machine, 0.0)
    written = {5: 10240, 1: 4}  # {sequence number: bytes that the application wrote there}
    stream = {p.seq: p.payload for _, way, p, _ in frames("loss_recovery") if way == "A>B" and p.payload}
    for recorded_at, way, packet, _ in frames("loss_recovery"):
        at = recorded_at * SLOWER
        while machine.next_deadline() <= at:
            machine.handle_timeout(machine.next_deadline())
            out += sent(machine, at)
        if way == "B>A":
            machine.receive_packet(packet, at)
        elif packet.flags == SYN:
            continue
        elif packet.payload and packet.seq in written:
            size, data = written.pop(packet.seq), b""
            while len(data) < size:
                data += stream[packet.seq + len(data)]
            machine.write(data)
        elif packet.seq == 10245 and not packet.ack:
            machine.close(at)
        out += sent(machine, at)
    assert sorted(out) == sorted(recorded("loss_recovery", "A>B"))
    assert machine.state is State.TIME_WAIT
