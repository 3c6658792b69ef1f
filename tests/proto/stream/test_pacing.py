"""The pacer and the clock's rounding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.stream.congestion import Congestion
from pilot_trio.proto.stream.settings import SEGMENT


@given(
    st.floats(min_value=0.0, max_value=1e9),
    st.floats(min_value=100.0, max_value=1e10),
    st.one_of(st.just(1151.9999999999948), st.floats(min_value=-1e6, max_value=SEGMENT, exclude_max=True)),
)
def test_a_sender_without_credit_is_never_told_to_ask_again_at_once(now: float, rate: float, credit: float) -> None:
    congestion = Congestion(now)
    congestion.pacing_rate, congestion._credit = rate, credit
    assert congestion.allowance(now) < SEGMENT
    assert congestion.allows_at(now) > now
