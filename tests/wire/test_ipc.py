from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.errors import DecodeError
from pilot_trio.wire import ipc
from pilot_trio.wire.framing import IPC_FRAME_MAX, FrameDecoder

VECTORS = {
    v["id"]: v for v in json.loads((Path(__file__).parent.parent / "vectors" / "ipc.json").read_text())["vectors"]
}

addresses = st.builds(Address, st.integers(0, 0xFFFF).map(NetworkId), st.integers(0, 0xFFFFFFFF).map(NodeId))
ports = st.integers(0, 0xFFFF)
conn_ids = st.integers(0, 0xFFFFFFFF)
DECODERS: list[Callable[[bytes], Any]] = [
    ipc.decode_bind,
    ipc.decode_unbind,
    ipc.decode_dial,
    ipc.decode_send_to,
    ipc.decode_close,
    ipc.decode_conn,
    ipc.decode_broadcast,
    ipc.decode_prefer_direct,
    ipc.decode_accept,
    ipc.decode_recv_from,
]


def payload(frame: bytes, code: int) -> bytes:
    decoder = FrameDecoder(IPC_FRAME_MAX)
    decoder.feed(frame)
    body = decoder.next_frame()
    assert body is not None
    assert len(decoder) == 0
    assert body[0] == code
    return body[1:]


@given(addresses, ports, st.binary(max_size=100))
def test_targets_survive_the_wire(address: Address, port: int, data: bytes) -> None:
    frame = ipc.encode_target(ipc.Code.SEND_TO, address, port, data)
    assert ipc.decode_send_to(payload(frame, 0x0B)) == (address, port, data)
    assert ipc.decode_dial(payload(ipc.encode_target(ipc.Code.DIAL, address, port), 0x03))[:2] == (address, port)


@given(conn_ids, st.binary(max_size=100))
def test_stream_data_survives_the_wire(conn_id: int, data: bytes) -> None:
    assert ipc.decode_conn(payload(ipc.encode_conn(ipc.Code.SEND, conn_id, data), 0x06)) == (conn_id, data)
    assert ipc.decode_close(payload(ipc.encode_conn(ipc.Code.CLOSE, conn_id), 0x08)) == conn_id


@given(ports, conn_ids, addresses, ports)
def test_accept_pushes_survive_the_wire(local: int, conn_id: int, remote: Address, remote_port: int) -> None:
    frame = ipc.encode_accept(local, conn_id, remote, remote_port)
    assert ipc.decode_accept(payload(frame, 0x05)) == (local, conn_id, remote, remote_port)


@given(addresses, ports, ports, st.binary(max_size=100))
def test_datagram_pushes_survive_the_wire(source: Address, sport: int, dport: int, data: bytes) -> None:
    frame = ipc.encode_recv_from(source, sport, dport, data)
    assert ipc.decode_recv_from(payload(frame, 0x0C)) == (source, sport, dport, data)


@given(st.integers(0, 0xFFFF), ports, st.binary(max_size=40), st.binary(max_size=40))
def test_broadcasts_survive_the_wire(network: int, port: int, token: bytes, data: bytes) -> None:
    frame = ipc.encode_broadcast(network, port, token, data)
    assert ipc.decode_broadcast(payload(frame, 0x29)) == (network, port, token, data)


@given(ports)
def test_ports_survive_the_wire(port: int) -> None:
    assert ipc.decode_bind(payload(ipc.encode_port(ipc.Code.BIND, port), 0x01)) == port
    assert ipc.decode_unbind(payload(ipc.encode_port(ipc.Code.UNBIND, port), 0x37)) == port


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=30))
def test_garbage_gives_a_value_or_a_decode_error(decode: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(data)


@pytest.mark.parametrize(
    ("vector", "decode"),
    [
        ("bind-short", ipc.decode_bind),
        ("unbind-empty", ipc.decode_unbind),
        ("unbind-3-bytes", ipc.decode_unbind),
        ("dial-short", ipc.decode_dial),
        ("close-short", ipc.decode_close),
        ("broadcast-short", ipc.decode_broadcast),
        ("broadcast-trunc-token", ipc.decode_broadcast),
        ("prefer-direct-3", ipc.decode_prefer_direct),
        ("prefer-direct-5", ipc.decode_prefer_direct),
        ("sendto-confirm-short", ipc.decode_send_to),
    ],
)
def test_short_payloads_are_refused_with_the_recorded_text(vector: str, decode: Callable[[bytes], Any]) -> None:
    (request,), (reply,) = VECTORS[vector]["request"], VECTORS[vector]["replies"]
    with pytest.raises(DecodeError) as caught:
        decode(bytes.fromhex(request)[5:])
    assert ipc.encode_error(str(caught.value)).hex() == reply


def test_an_error_text_never_makes_a_frame_above_the_limit() -> None:
    frame = ipc.encode_error("x" * (2 * IPC_FRAME_MAX))
    assert len(frame) <= 4 + IPC_FRAME_MAX
    assert ipc.decode_error(frame[5:]).startswith("xxx")
