from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId, Port, SocketAddress
from pilot_trio.errors import DecodeError
from pilot_trio.wire import packet, sack
from pilot_trio.wire.packet import ACK, STREAM, Flow, Packet

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "packets.json").read_text())
CHECKSUM = vars(packet)["crc32"]
FLAGS = {"SYN": packet.SYN, "ACK": packet.ACK, "FIN": packet.FIN, "RST": packet.RST}

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
addresses = st.builds(Address, u16.map(NetworkId), u32.map(NodeId))
packets = st.builds(
    Packet,
    st.integers(0, 15),
    st.integers(0, 255),
    addresses,
    addresses,
    u16,
    u16,
    u32,
    u32,
    u16,
    st.binary(max_size=64),
)


@pytest.mark.parametrize("vector", VECTORS["packets"], ids=lambda v: v["id"])
def test_packet_vectors(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["packet_hex"])
    if vector["expect"] == "drop":
        with pytest.raises(DecodeError) as caught:
            packet.decode(raw)
        assert str(caught.value) == vector["error"]
        return
    decoded, fields = packet.decode(raw), vector["fields"]
    assert decoded.flags == sum(FLAGS[name] for name in fields["flags"])
    assert (decoded.protocol, len(decoded.payload)) == (fields["protocol"], fields["payload_len"])
    assert (str(decoded.source), str(decoded.destination)) == (fields["src"], fields["dst"])
    assert (decoded.source_port, decoded.destination_port) == (fields["src_port"], fields["dst_port"])
    assert (decoded.seq, decoded.ack, decoded.window) == (fields["seq"], fields["ack"], fields["window"])
    assert decoded.encode() == raw[: 34 + fields["payload_len"]]


@given(packets, st.binary(max_size=5))
def test_packets_survive_the_wire_with_anything_behind_them(value: Packet, trailing: bytes) -> None:
    assert packet.decode(value.encode() + trailing) == value


@pytest.mark.parametrize("protocol", [STREAM, packet.DATAGRAM])
def test_what_is_remembered_of_packets_is_bounded_and_never_mixed_up(protocol: int) -> None:
    own = Address(NetworkId(0), NodeId(1))
    for number in range(packet.HEADS_MAX + 10):
        other = Address(NetworkId(number % 3), NodeId(number))
        value = Packet(0, protocol, other, own, 49152 + number % 7, 80, payload=b"%d" % number)
        assert packet.decode(value.encode()) == packet.decode(value.encode()) == value
    assert len(packet._heads) <= packet.HEADS_MAX
    assert len(packet._pairs) <= packet.HEADS_MAX


@given(packets, st.data())
def test_a_flipped_bit_never_passes(value: Packet, data: st.DataObject) -> None:
    raw = bytearray(value.encode())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecodeError):
        packet.decode(bytes(raw))


@given(packets)
def test_truncation_at_every_offset_is_refused(value: Packet) -> None:
    raw = value.encode()
    for end in range(len(raw)):
        with pytest.raises(DecodeError):
            packet.decode(raw[:end])


@given(st.binary(max_size=80))
def test_garbage_gives_a_packet_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        packet.decode(data)


@pytest.mark.parametrize("vector", VECTORS["sack_payloads"], ids=lambda v: v["id"])
def test_sack_vectors(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload_hex"])
    blocks = sack.decode(payload)
    assert (blocks is not None) == vector["is_sack"] == sack.looks_like_sack(payload)
    if blocks is not None:
        assert [list(block) for block in blocks] == vector["blocks"]


@given(st.lists(st.tuples(u32, u32), min_size=1, max_size=4))
def test_sack_blocks_survive_the_wire(blocks: list[sack.Block]) -> None:
    assert sack.decode(sack.encode(blocks)) == blocks


@given(
    addresses,
    addresses,
    u16,
    u16,
    st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.integers(1, 40), u32, u32, u16), max_size=4),
)
def test_a_flow_encodes_what_packets_one_by_one_do(
    source: Address, destination: Address, s_port: int, d_port: int, runs: list[tuple[bytes, int, int, int, int]]
) -> None:
    flow = Flow(SocketAddress(source, Port(s_port)), SocketAddress(destination, Port(d_port)))
    for data, size, seq, ack, window in runs:
        assert flow.segments(data, size, seq, ack, window) == [
            Packet(
                ACK, STREAM, source, destination, s_port, d_port,
                (seq + at) & 0xFFFF_FFFF, ack, window, data[at : at + size],
            ).encode()
            for at in range(0, len(data), size)
        ]  # fmt: skip


@given(packets)
def test_a_flow_makes_the_packets_that_it_is_asked_for(packet: Packet) -> None:
    packet = packet._replace(protocol=STREAM)
    source = SocketAddress(packet.source, Port(packet.source_port))
    destination = SocketAddress(packet.destination, Port(packet.destination_port))
    flow = Flow(source, destination)
    assert flow.packet(packet.flags, packet.seq, packet.ack, packet.window, packet.payload) == packet.encode()


# The checksum


@given(st.binary(max_size=9000), st.binary(max_size=300))
def test_the_fast_checksum_is_the_systems(data: bytes, more: bytes) -> None:
    assert CHECKSUM(data) == zlib.crc32(data)
    assert CHECKSUM(memoryview(data)) == zlib.crc32(data)
    assert CHECKSUM(more, CHECKSUM(data)) == zlib.crc32(data + more)


def test_without_the_fast_checksum_packets_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)  # as where there is no wheel for the machine
    spec = importlib.util.find_spec(packet.__name__)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.crc32 is zlib.crc32
    for vector in VECTORS["packets"]:
        if vector["expect"] != "drop":
            raw = bytes.fromhex(vector["packet_hex"])
            assert plain.decode(raw) == packet.decode(raw)
            assert plain.decode(raw).encode() == packet.decode(raw).encode()


def decoded(raws: list[bytes]) -> Iterator[Packet]:
    with contextlib.suppress(DecodeError):
        for raw in raws:
            yield packet.decode(raw)


@given(
    st.lists(st.tuples(packets.map(Packet.encode) | st.binary(max_size=50), st.integers(1, 3)), max_size=12),
    st.none() | st.tuples(u16, u16),
)
def test_a_run_is_read_as_its_packets_one_by_one_up_to_the_first_refusal(
    sent: list[tuple[bytes, int]], damage: tuple[int, int] | None
) -> None:
    raws = [raw for raw, times in sent for _ in range(times)]
    if damage is not None and raws:
        index, at = damage[0] % len(raws), damage[1]
        raw = bytearray(raws[index] or b"x")
        raw[at % len(raw)] ^= 1 << at % 8
        raws[index] = bytes(raw)
    assert packet.read_packets(raws) == list(decoded(raws))


@given(addresses, addresses, u16, st.lists(st.tuples(u16, st.sampled_from([b"", b"x", b"y"]) | st.binary(max_size=40))))
def test_datagrams_are_encoded_together_as_one_by_one(
    source: Address, destination: Address, port: int, sent: list[tuple[int, bytes]]
) -> None:
    ports, payloads = [each[0] for each in sent], [each[1] for each in sent]
    assert packet.encode_datagrams(source, destination, port, ports, payloads) == [
        Packet(0, packet.DATAGRAM, source, destination, s_port, port, payload=payload).encode()
        for s_port, payload in sent
    ]
