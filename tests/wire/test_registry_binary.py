from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.errors import DecodeError, LocalProtocolError
from pilot_trio.wire import registry_binary as binary
from pilot_trio.wire.framing import FrameDecoder
from pilot_trio.wire.registry_binary import (
    BinaryType,
    Heartbeat,
    HeartbeatOk,
    Lookup,
    LookupOk,
    Resolve,
    ResolveOk,
    decode_error,
    encode_error,
    encode_frame,
)

_VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "registry.json").read_text())
VECTORS: dict[str, dict[str, Any]] = {vector["name"]: vector for vector in _VECTORS["binary"]}


class Value(Protocol):
    def encode(self) -> bytes: ...


nodes = st.integers(0, 0xFFFF_FFFF).map(NodeId)
signatures = st.binary(min_size=64, max_size=64)
short_texts = st.text(max_size=60)
heartbeats = st.builds(Heartbeat, nodes, signatures)
lookups = st.builds(Lookup, nodes)
resolves = st.builds(Resolve, nodes, nodes, signatures)
heartbeat_oks = st.builds(HeartbeatOk, st.integers(0, (1 << 64) - 1), st.booleans())
lookup_oks = st.builds(
    LookupOk,
    nodes,
    st.booleans(),
    st.lists(st.integers(0, 0xFFFF).map(NetworkId), max_size=4).map(tuple),
    st.binary(max_size=32),
    short_texts,
    st.lists(short_texts, max_size=4).map(tuple),
    short_texts,
    short_texts,
)
resolve_oks = st.builds(
    ResolveOk, nodes, short_texts, st.lists(short_texts, max_size=4).map(tuple), st.none() | st.integers(0, 0xFFFF_FFFE)
)
values: st.SearchStrategy[Value] = st.one_of(heartbeats, lookups, resolves, heartbeat_oks, lookup_oks, resolve_oks)


def frame(name: str, key: str) -> tuple[int, bytes]:
    """Return type and payload of a recorded frame."""
    decoder = FrameDecoder(1 << 20)
    decoder.feed(bytes.fromhex(VECTORS[name][key]))
    body = decoder.next_frame()
    assert body is not None and not len(decoder)
    return body[0], body[1:]


def test_preamble() -> None:
    assert binary.PREAMBLE.hex() == VECTORS["connection preamble (client sends once)"]["hex"]


def test_recorded_requests_are_read_and_written_byte_for_byte() -> None:
    kind, payload = frame("heartbeat request, node 1", "request_hex")
    heartbeat = Heartbeat.decode(payload)
    assert (kind, heartbeat.node, heartbeat.encode()) == (BinaryType.HEARTBEAT, 1, payload)
    kind, payload = frame("lookup request, node 1", "request_hex")
    assert (kind, Lookup.decode(payload), Lookup(NodeId(1)).encode()) == (BinaryType.LOOKUP, Lookup(NodeId(1)), payload)
    kind, payload = frame("resolve request, requester 2 asks for node 1", "request_hex")
    resolve = Resolve.decode(payload)
    assert (kind, resolve.node, resolve.requester, resolve.encode()) == (BinaryType.RESOLVE, 1, 2, payload)


@pytest.mark.parametrize(
    "name, value",
    [
        ("heartbeat request, node 1", HeartbeatOk(1_795_459_441)),
        ("heartbeat response with key-expiry warning", HeartbeatOk(1_795_459_441, key_expiry_warning=True)),
        (
            "resolve request, requester 2 asks for node 1",
            ResolveOk(NodeId(1), "127.0.0.1:24001", ("10.0.0.5:24001",), 0),
        ),
        ("resolve response, unknown key age", ResolveOk(NodeId(1), "127.0.0.1:24001")),
    ],
)
def test_recorded_answers_are_read_and_written_byte_for_byte(name: str, value: HeartbeatOk | ResolveOk) -> None:
    _, payload = frame(name, "response_hex")
    assert type(value).decode(payload) == value
    assert value.encode() == payload


def test_recorded_lookups_are_read_and_written_byte_for_byte() -> None:
    _, payload = frame("lookup request, node 1", "response_hex")
    public = LookupOk.decode(payload)
    assert (public.node, public.public, public.networks, public.hostname) == (1, True, (0, 3), "alpha")
    assert (public.tags, public.real_addr, len(public.public_key)) == (("web", "search"), "127.0.0.1:24001", 32)
    assert public.encode() == payload
    _, payload = frame("lookup response, private node (empty real_addr)", "response_hex")
    private = LookupOk.decode(payload)
    assert (private.node, private.public, private.real_addr, private.hostname) == (2, False, "", "beta")
    assert private.encode() == payload


@pytest.mark.parametrize(
    "name, text",
    [
        ("error: unknown node", "node 99: not found"),
        ("error: private node", "resolve denied: node 1 is private (establish mutual trust first)"),
        ("error: bad signature", "signature verification failed"),
        ("error: short heartbeat (4-byte payload)", "heartbeat request too short: 4 bytes"),
        ("error: unknown type 0x09", "unknown message type 0x09"),
        ("error: unsupported version (then close)", "unsupported wire version 2"),
    ],
)
def test_recorded_errors_are_read_and_written_byte_for_byte(name: str, text: str) -> None:
    kind, payload = frame(name, "response_hex")
    assert kind == BinaryType.ERROR
    assert decode_error(payload) == text
    assert encode_error(text).hex() == VECTORS[name]["response_hex"]


@given(values)
def test_decode_inverts_encode(value: Value) -> None:
    decode = type(value).decode  # type: ignore[attr-defined]
    assert decode(value.encode()) == value
    assert decode(value.encode() + b"trailing") == value


@given(values, st.data())
def test_truncation_at_every_offset_is_a_decode_error(value: Value, data: st.DataObject) -> None:
    payload = value.encode()
    with pytest.raises(DecodeError, match="too short"):
        type(value).decode(payload[: data.draw(st.integers(0, len(payload) - 1))])  # type: ignore[attr-defined]


@pytest.mark.parametrize("decoder", [Heartbeat, Lookup, Resolve, HeartbeatOk, LookupOk, ResolveOk])
@given(payload=st.binary(max_size=120))
def test_garbage_gives_a_value_or_a_decode_error(decoder: Any, payload: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decoder.decode(payload)


@pytest.mark.parametrize(
    "decoder, size, text",
    [
        (Heartbeat, 68, "heartbeat request too short: 67 bytes"),
        (Lookup, 4, "lookup request too short: 3 bytes"),
        (Resolve, 72, "resolve request too short: 71 bytes"),
    ],
)
def test_short_requests_have_the_protocols_texts(decoder: Any, size: int, text: str) -> None:
    decoder.decode(bytes(size))
    with pytest.raises(DecodeError) as caught:
        decoder.decode(bytes(size - 1))
    assert str(caught.value) == text


def test_decoders_refuse_counts_above_the_limit() -> None:
    head = bytes(9)
    tail = bytes(1 + 1 + 1 + 2 + 1)
    fits = head + (1024).to_bytes(2, "big") + bytes(2 * 1024) + tail
    assert len(LookupOk.decode(fits).networks) == 1024
    with pytest.raises(DecodeError, match="1025 items"):
        LookupOk.decode(head + (1025).to_bytes(2, "big") + bytes(2 * 1025) + tail)
    with pytest.raises(DecodeError, match="1025 items"):
        ResolveOk.decode(bytes(4 + 2) + (1025).to_bytes(2, "big") + bytes(4000))


def test_texts_are_cut_where_their_length_has_one_byte() -> None:
    value = LookupOk(NodeId(1), True, (), b"", hostname="h" * 255, tags=("t" * 256,))
    assert LookupOk.decode(value.encode()).tags == ("t" * 255,)
    assert LookupOk.decode(value.encode()).hostname == "h" * 255


def test_error_texts_are_cut_at_the_protocols_limit() -> None:
    assert len(decode_error(encode_error("x" * 65_000)[5:])) == 65_000
    assert len(decode_error(encode_error("x" * 65_001)[5:])) == 65_000


def test_error_lengths_beyond_the_payload_are_tolerated() -> None:
    assert decode_error(b"\xff\xffabc") == "abc"
    assert decode_error(b"\x00") == "unknown error"
    assert decode_error(b"") == "unknown error"


@given(st.binary(max_size=40))
def test_every_error_payload_has_a_text(payload: bytes) -> None:
    assert isinstance(decode_error(payload), str)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Heartbeat(NodeId(1 << 32), bytes(64)),
        lambda: Heartbeat(NodeId(1), bytes(63)),
        lambda: Lookup(NodeId(-1)),
        lambda: Resolve(NodeId(1), NodeId(1 << 32), bytes(64)),
        lambda: Resolve(NodeId(1), NodeId(2), bytes(65)),
        lambda: HeartbeatOk(-1),
        lambda: LookupOk(NodeId(1), True, (NetworkId(1 << 16),), b""),
        lambda: LookupOk(NodeId(1), True, (NetworkId(1),) * 1025, b""),
        lambda: LookupOk(NodeId(1), True, (), bytes(256)),
        lambda: LookupOk(NodeId(1), True, (), b"", tags=("t",) * 256),
        lambda: ResolveOk(NodeId(1), "", key_age_days=0xFFFF_FFFF),
        lambda: ResolveOk(NodeId(1), "", ("a",) * 1025),
    ],
)
def test_what_cannot_be_sent_cannot_be_made(build: Any) -> None:
    with pytest.raises(LocalProtocolError):
        build()


def test_frames_count_their_type_byte() -> None:
    assert (
        encode_frame(BinaryType.LOOKUP, Lookup(NodeId(1)).encode()).hex()
        == VECTORS["lookup request, node 1"]["request_hex"]
    )
