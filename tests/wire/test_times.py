from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.wire.times import parse_rfc3339, rfc3339, rfc3339_nano

SECONDS = st.integers(0, 253_402_300_799)  # to the end of the year 9999


@given(SECONDS)
def test_times_round_trip(seconds: int) -> None:
    assert parse_rfc3339(rfc3339(seconds + 0.9)) == seconds


@given(SECONDS, st.integers(0, 999_999_999))
def test_nanoseconds_are_read_as_microseconds(seconds: int, nanos: int) -> None:
    moment = parse_rfc3339(rfc3339_nano(seconds * 1_000_000_000 + nanos))
    assert moment == pytest.approx(seconds + nanos / 1e9, abs=2e-5)


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_690_070_319_837_272, "2026-11-26T10:47:50.319837272Z"),
        (1_795_690_070_300_000_000, "2026-11-26T10:47:50.3Z"),
    ],
)
def test_trailing_zeros_are_left_out(unix_ns: int, text: str) -> None:
    assert rfc3339_nano(unix_ns) == text


@pytest.mark.parametrize("text", ["2026-11-26T11:47:50+01:00", "2026-11-26t10:47:50.000000001Z"])
def test_any_zone_and_fraction_is_read(text: str) -> None:
    assert parse_rfc3339(text) == 1_795_690_070


@pytest.mark.parametrize("text", ["", "now", "2026-11-26T10:47:50", "2026-11-26 10:47:50Z", "2026-11-26", 5, None])
def test_what_is_no_point_in_time_is_none(text: object) -> None:
    assert parse_rfc3339(text) is None


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_none(text: str) -> None:
    moment = parse_rfc3339(text)
    assert moment is None or isinstance(moment, float)
