"""What a sender encodes, a receiver reads: laws of the data exchange and file stream codecs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire import filestream
from pilot_trio.wire.filestream import Kind

IDS = st.text("abcXYZ019._:-", min_size=1, max_size=128)
U64 = st.integers(0, (1 << 64) - 1)


@given(st.integers(0, (1 << 32) - 1), U64, st.binary())
def test_a_timed_message_survives(inner: int, sent_at: int, payload: bytes) -> None:
    trace = wire.Trace(inner, sent_at, payload)
    assert wire.decode_trace(wire.encode_trace(trace)) == trace


@given(st.text("abc.-ü", min_size=3, max_size=40), st.binary())
def test_a_file_survives(name: str, data: bytes) -> None:
    file = wire.File(name, data)
    if name.strip("."):
        assert wire.decode_file(wire.encode_file(file)) == file


@given(IDS)
def test_ids_in_the_allowed_characters_are_ids(text: str) -> None:
    assert wire.is_correlation_id(text)
    assert not wire.is_correlation_id(text + "!")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("65536", 65536), ("65535", 64 << 20), ("2147483647", (1 << 31) - 1), ("2147483648", 64 << 20), ("-1", 64 << 20)]
    + [(text, 64 << 20) for text in ("", "x", "1e6", "٦٥٥٣٦", "9" * 5000)],
)
def test_a_frame_limit_out_of_range_means_the_default(text: str, limit: int) -> None:
    assert wire.frame_max(text) == limit


@given(U64)
def test_an_offset_survives(offset: int) -> None:
    payload = filestream.encode_offset(Kind.ACK, bytes(15) + b"1", offset)
    assert filestream.decode_offset(filestream.decode(payload).body) == offset


@given(st.text(max_size=50))
def test_an_end_survives(text: str) -> None:
    payload = filestream.encode_complete(bytes(15) + b"1", text)
    end = filestream.decode_complete(filestream.decode(payload).body)
    assert end == filestream.Complete(not text, text)


@given(st.binary(max_size=7))
def test_short_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        filestream.decode_offset(body)
    with pytest.raises(DecodeError):
        filestream.decode_complete(b"")
