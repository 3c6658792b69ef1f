"""The trust handshake message (`spec/services.md` §1.2)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import DecodeError, LocalProtocolError
from pilot_trio.wire.handshake import ENCODED_MAX, HandshakeMessage, Kind, MessageBoundary, cut_to_encoded, make_message

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
RECORDED = VECTORS["trust_handshake"]["messages"]
KEYS = Identity.from_seed(bytes(range(32)))
NOW = 1795458586

texts = st.text(st.characters(exclude_categories=["Cs"]))
messages = st.builds(
    HandshakeMessage,
    type=texts,
    node_id=st.integers(0, 0xFFFFFFFF),
    public_key=texts,
    justification=texts,
    signature=texts,
    reason=texts,
    timestamp=st.integers(-(1 << 63), (1 << 63) - 1),
)


@pytest.mark.parametrize("vector", RECORDED, ids=lambda vector: str(vector["name"]))
def test_recorded_messages(vector: dict[str, Any]) -> None:
    wire = vector["wire_utf8"].encode()
    message = HandshakeMessage.decode(wire)
    assert message.encode() == wire
    assert len(wire) == vector["wire_len"]
    assert Kind(message.type).name.lower() == vector["name"].removesuffix("_html")


def test_the_signature_is_the_protocols() -> None:
    vector = VECTORS["trust_handshake"]["signature"][0]
    assert vector["challenge"] == "handshake:1:2"
    keys = Identity.from_seed(bytes.fromhex(vector["seed_hex"]))
    message = make_message(Kind.REQUEST, keys, 1, 2, NOW)
    assert (message.signature, message.public_key) == (vector["signature_b64"], vector["public_key_b64"])


@given(messages)
def test_what_is_written_is_read(message: HandshakeMessage) -> None:
    assert HandshakeMessage.decode(message.encode()) == message


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        HandshakeMessage.decode(data)


def test_order_and_unknown_and_missing_members() -> None:
    message = HandshakeMessage.decode(b' {"later":[1],"timestamp":5,"type":"x","reason":null}\n')
    assert message == HandshakeMessage(type="x", node_id=0, timestamp=5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"node_id":-1}',
        '{"node_id":4294967296}',
        '{"node_id":1.5}',
        '{"node_id":true}',
        '{"timestamp":9223372036854775808}',
        '{"type":1}',
        "{} x",
    ],
)
def test_what_is_no_message(text: str) -> None:
    with pytest.raises(DecodeError):
        HandshakeMessage.decode(text.encode())


@given(texts, texts)
def test_a_message_always_fits_into_one_segment(justification: str, reason: str) -> None:
    message = make_message(
        Kind.REQUEST, KEYS, 0xFFFFFFFF, 0xFFFFFFFF, NOW, justification=justification * 50, reason=reason * 50
    )
    assert len(message.encode()) <= ENCODED_MAX
    assert (justification * 50).startswith(message.justification)


def test_a_message_that_no_cut_can_help_is_refused() -> None:
    class Verbose:
        public_key_b64 = "x" * ENCODED_MAX

        def sign(self, message: bytes) -> bytes:
            return message

    with pytest.raises(LocalProtocolError, match=r"^a handshake of node 1 does not fit into 1150 bytes$"):
        make_message(Kind.REQUEST, Verbose(), 1, 2, NOW)


def test_the_text_is_cut_exactly_where_it_no_longer_fits() -> None:
    bare = len(make_message(Kind.REQUEST, KEYS, 1, 2, NOW).encode())
    room = ENCODED_MAX - bare
    assert room > 850  # what senders may rely on, `spec/services.md` §1.2
    for length in (room - 1, room, room + 1):
        message = make_message(Kind.REQUEST, KEYS, 1, 2, NOW, justification="x" * length)
        assert len(message.justification) == min(length, room)


@pytest.mark.parametrize(
    ("text", "room", "kept"), [("é<x", 2, "é"), ("é<x", 7, "é"), ("é<x", 8, "é<"), ('"\n', 3, '"'), ("", 0, "")]
)
def test_cutting_counts_encoded_bytes(text: str, room: int, kept: str) -> None:
    assert cut_to_encoded(text, room) == kept


@given(messages, st.data())
def test_the_boundary_is_found_whatever_the_chunks(message: HandshakeMessage, data: st.DataObject) -> None:
    wire = message.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    boundary = MessageBoundary()
    chunks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    found = [boundary.feed(chunk) for chunk in chunks if chunk]
    assert found == [False] * (len(found) - 1) + [True]


def test_brackets_in_strings_are_no_boundary() -> None:
    boundary = MessageBoundary()
    assert not boundary.feed(b'  {"a":"}\\"}"')
    assert not boundary.feed(b',"b":[{}]')
    assert boundary.feed(b"}")


def test_messages_are_values() -> None:
    message = HandshakeMessage("x", 1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.type = "y"  # type: ignore[misc]
