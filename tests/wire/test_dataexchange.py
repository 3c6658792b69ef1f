from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire import dataexchange, eventstream, filestream
from pilot_trio.wire.dataexchange import FrameType

ids = st.text("abcXYZ019._:-", min_size=1, max_size=128)


@given(st.sampled_from([1, 2, 3, 4, 77]), st.binary(max_size=50), st.just("") | ids, st.just("") | ids)
def test_tags_survive_the_wire(frame_type: int, payload: bytes, message_id: str, reply_to: str) -> None:
    frame = dataexchange.encode_tagged(frame_type, payload, message_id=message_id, reply_to=reply_to)
    outer, length = dataexchange.HEADER.unpack_from(frame)
    assert length == len(frame) - 8
    if message_id or reply_to:
        assert outer == FrameType.TAGGED
        assert dataexchange.decode_tagged(frame[8:]) == (frame_type, payload, message_id, reply_to)
    else:
        assert (outer, frame[8:]) == (frame_type, payload)


@pytest.mark.parametrize(("size", "taken"), [(1024, True), (1025, False)])
def test_the_header_of_a_tagged_frame_has_a_kibibyte_at_most(size: int, taken: bool) -> None:
    header = json.dumps({"message_id": "m1"}).encode().ljust(size)
    payload = size.to_bytes(2, "big") + header + (1).to_bytes(4, "big") + b"hello"
    if taken:
        assert dataexchange.decode_tagged(payload).payload == b"hello"
    else:
        with pytest.raises(DecodeError, match="bad header length 1025"):
            dataexchange.decode_tagged(payload)


@given(st.binary(max_size=60))
def test_garbage_gives_values_or_decode_errors(data: bytes) -> None:
    for decode in (
        dataexchange.decode_tagged,
        dataexchange.decode_trace,
        dataexchange.decode_file,
        filestream.decode,
        filestream.decode_init,
        filestream.decode_chunk,
    ):
        with contextlib.suppress(DecodeError):
            decode(data)


@pytest.mark.parametrize("name", ["a/b", "a\\b", ".", "..", "a\0b", "x" * 256])
def test_names_that_could_leave_the_directory_are_refused(name: str) -> None:
    raw = name.encode()
    with pytest.raises(DecodeError, match="not allowed"):
        dataexchange.decode_file(len(raw).to_bytes(2, "big") + raw + b"data")


@given(st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32), st.text(max_size=20))
def test_inits_survive_the_wire(size: int, digest: bytes, name: str) -> None:
    init = filestream.Init(size, digest, 49_152, name)
    message = filestream.decode(filestream.encode_init(b"i" * 16, init))
    assert (message.kind, message.transfer_id) == (filestream.Kind.INIT, b"i" * 16)
    assert filestream.decode_init(message.body) == init


def test_the_name_of_a_file_need_not_be_text() -> None:
    name = os.fsdecode(b"\xff\xfe.bin")
    init = filestream.Init(1, bytes(32), 49_152, name)
    assert filestream.encode_init(b"i" * 16, init).endswith(b"\xff\xfe.bin")
    assert dataexchange.encode_file(dataexchange.File(name, b"x")) == b"\0\x06\xff\xfe.binx"


@given(st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=30))), st.lists(st.integers(1, 9)))
def test_chunking_never_changes_the_events(events: list[tuple[str, bytes]], cuts: list[int]) -> None:
    wire = b"".join(eventstream.encode(topic, payload) for topic, payload in events)
    decoder, seen, at = eventstream.EventDecoder(), [], 0
    for size in [*cuts, len(wire)]:
        decoder.feed(wire[at : at + size])
        at += size
        while (event := decoder.next_event()) is not None:
            seen.append(tuple(event))
    assert seen == events
    assert len(decoder) == 0


@pytest.mark.parametrize(
    ("wire", "fine"),
    [
        (b"\x04\x00" + b"t" * 1024 + bytes(4), True),
        (b"\x04\x01", False),
        (b"\x00\x01t\x01\x00\x00\x00", True),
        (b"\x00\x01t\x01\x00\x00\x01", False),
        (b"\x00\x01\xff" + bytes(4), False),
    ],
)
def test_event_limits_are_where_the_protocol_puts_them(wire: bytes, fine: bool) -> None:
    decoder = eventstream.EventDecoder()
    decoder.feed(wire)
    with contextlib.nullcontext() if fine else pytest.raises(DecodeError):
        decoder.next_event()
