"""Signed requests (`spec/ipc.md` §5.8). The recorded replies are replayed in `tests/daemon/test_ipc_vectors.py`."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import AuthenticationError, DecodeError
from pilot_trio.proto.envelope import (
    AUDIENCE_MAX,
    Envelope,
    check_enrollment,
    decode_base64,
    duration,
)

HASH = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
TEXT = f"pilot-req-v1|000000000001|1795459925|0123456789abcdef|{HASH}|svc"
KEYS = Identity.from_seed(bytes(32))

envelopes = st.builds(
    Envelope,
    st.builds(Address, st.integers(0, 0xFFFF).map(NetworkId), st.integers(0, 0xFFFFFFFF).map(NodeId)),
    st.integers(0, (1 << 63) - 1),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    st.from_regex(r"[a-z0-9.-]{1,64}", fullmatch=True),
)


@given(envelopes)
def test_what_is_written_is_read(envelope: Envelope) -> None:
    assert Envelope.parse(str(envelope)) == envelope


@given(st.text() | st.lists(st.text(max_size=70), min_size=6, max_size=6).map("|".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        envelope = Envelope.parse(text)
    except DecodeError as exc:
        reason = str(exc)
    else:
        reason = "reqsig: none"
        assert str(envelope) == text
    assert reason.startswith("reqsig: ")


def test_the_recorded_envelope() -> None:
    envelope = Envelope.parse(TEXT)
    assert envelope == Envelope(Address(NetworkId(0), NodeId(1)), 1795459925, "0123456789abcdef", HASH, "svc")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (0, "pilot-req-v2", 'reqsig: bad domain "pilot-req-v2"'),
        (1, "00000000000A", "reqsig: address must be 12 lowercase hex chars"),
        (1, "00000000001", "reqsig: address must be 12 lowercase hex chars"),
        (2, "", "reqsig: timestamp: empty"),
        (2, "01", "reqsig: timestamp: leading zero"),
        (2, "-1", "reqsig: timestamp: non-digit"),
        (2, "٣", "reqsig: timestamp: non-digit"),
        (
            2,
            str(1 << 63),
            'reqsig: timestamp: strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        (2, "9" * 20, f'reqsig: timestamp: strconv.ParseInt: parsing "{"9" * 20}": value out of range'),
        (3, "0123456789ABCDEF", "reqsig: nonce must be 16 lowercase hex chars"),
        (4, HASH[1:], "reqsig: body hash must be 64 lowercase hex chars"),
        (4, HASH + "\n", "reqsig: body hash must be 64 lowercase hex chars"),
        (5, "", "reqsig: audience must be 1-64 chars"),
        (5, "a" * (AUDIENCE_MAX + 1), "reqsig: audience must be 1-64 chars"),
        (5, "Svc", "reqsig: audience must match [a-z0-9.-]"),
        (5, "a|b", "reqsig: want 6 fields, got 7"),
    ],
)
def test_every_reason(field: int, value: str, reason: str) -> None:
    fields = TEXT.split("|")
    fields[field] = value
    with pytest.raises(DecodeError, match=rf"^{re.escape(reason)}$"):
        Envelope.parse("|".join(fields))


@pytest.mark.parametrize("length", [1, AUDIENCE_MAX])
def test_an_audience_may_be_this_long(length: int) -> None:
    fields = TEXT.split("|")
    fields[5] = "a" * length
    assert Envelope.parse("|".join(fields)).audience == "a" * length


def test_freshness_has_a_border_on_both_sides() -> None:
    envelope = Envelope.parse(TEXT)
    for now in (1795459925 - 300, 1795459925 + 300):
        envelope.check_fresh(now, 300)
    for now in (1795459925 - 301, 1795459925 + 301):
        with pytest.raises(AuthenticationError, match=r"^reqsig: envelope timestamp outside ±5m0s window$"):
            envelope.check_fresh(now, 300)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (45, "45s"), (60, "1m0s"), (300, "5m0s"), (3600, "1h0m0s"), (90_061, "25h1m1s")]
)
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_signatures() -> None:
    envelope = Envelope.parse(TEXT)
    signature = KEYS.sign_text(TEXT)
    envelope.check_signature(signature, KEYS.public_key)
    other = Envelope.parse(TEXT.replace("svc", "abc"))
    for bad in (base64.b64encode(bytes(64)).decode(), base64.b64encode(bytes(3)).decode()):
        with pytest.raises(AuthenticationError, match=r"^reqsig: signature verification failed$"):
            envelope.check_signature(bad, KEYS.public_key)
    with pytest.raises(AuthenticationError, match="verification failed"):
        other.check_signature(signature, KEYS.public_key)
    with pytest.raises(AuthenticationError, match=r"^reqsig: bad public key size 3$"):
        envelope.check_signature(signature, b"abc")


@pytest.mark.parametrize(
    ("text", "bad_at"),
    [
        ("!", 0),
        ("ab!c", 2),
        ("a", 0),
        ("aGk", 0),
        ("aGkhaGk", 4),
        ("aG=k", 2),
        ("aG=", 3),
        ("aGk=x", 4),
        ("aG==\nx", 5),
        ("=", 0),
        ("a===", 1),
        ("é", 0),
        ("\ud800", 0),
    ],
)
def test_where_base64_ends(text: str, bad_at: int) -> None:
    with pytest.raises(DecodeError, match=rf"^x: illegal base64 data at input byte {bad_at}$"):
        decode_base64(text, "x: ")


def test_line_breaks_in_base64_are_skipped() -> None:
    assert decode_base64("aG\r\nk=", "") == b"hi"


@given(st.binary())
def test_all_base64_is_decoded(data: bytes) -> None:
    text = base64.encodebytes(data).decode()
    assert decode_base64(text, "") == data


@given(st.text(st.sampled_from("aG=k\n!"), max_size=9))
def test_any_text_is_decoded_or_refused_at_some_byte(text: str) -> None:
    try:
        decoded = decode_base64(text, "")
    except DecodeError as exc:
        assert 0 <= int(str(exc).rpartition(" ")[2]) <= len(text)  # noqa: PT017  (both outcomes are right)
    else:
        assert decoded == base64.b64decode(text.replace("\n", ""), validate=True)


def test_the_commitment_of_an_enrollment() -> None:
    assert check_enrollment("pilotenroll:v1:7:github:c0ffee:1795459925:rec-v1") == "c0ffee"


@pytest.mark.parametrize(
    ("enrollment", "text"),
    [
        ("a:b:c:d:e:f:g:h", "enrollment wants 7 fields, got 8"),
        ("a:b:c:d:e:f:g", 'not an enrollment (prefix "a")'),
        ("pilotenroll:v2:1:github:c0ffee:1:k", 'unsupported version "v2"'),
        ("pilotenroll:v1:7:github::1:k", "enrollment has empty required field"),
        ("pilotenroll:v1:x:github:c0ffee:1:k", 'node_id is not canonical decimal: "x"'),
        ("pilotenroll:v1:01:github:c0ffee:1:k", 'node_id is not canonical decimal: "01"'),
        ("pilotenroll:v1:1:github:c0ffee:x:k", 'issued_at is not canonical decimal: "x"'),
    ],
)
def test_malformed_enrollments(enrollment: str, text: str) -> None:
    with pytest.raises(DecodeError, match=f"^badgeverify: malformed badge: {re.escape(text)}$"):
        check_enrollment(enrollment)
