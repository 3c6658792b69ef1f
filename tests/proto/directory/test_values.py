"""Small values: endpoints, masking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.proto.directory.endpoints import join_host_port, split_host_port, stored_endpoint
from pilot_trio.proto.directory.refusal import mask


@pytest.mark.parametrize(
    ("advertised", "source", "stored"),
    [
        ("203.0.113.9:4000", "192.0.2.1", "203.0.113.9:4000"),
        ("node.example.org:4000", "192.0.2.1", "node.example.org:4000"),
        ("[2001:db8::1]:4000", "192.0.2.1", "[2001:db8::1]:4000"),
        ("127.0.0.1:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("0.0.0.0:4000", "192.0.2.1", "192.0.2.1:4000"),
        (":4000", "192.0.2.1", "192.0.2.1:4000"),
        ("10.1.2.3:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("172.16.0.1:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("172.32.0.1:4000", "192.0.2.1", "172.32.0.1:4000"),
        ("192.168.0.1:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("169.254.1.1:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("100.64.0.1:4000", "192.0.2.1", "100.64.0.1:4000"),
        ("[::1]:4000", "2001:db8::5", "[2001:db8::5]:4000"),
        ("[::]:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("[fd00::1]:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("[fe80::1]:4000", "192.0.2.1", "192.0.2.1:4000"),
        ("", "192.0.2.1", "192.0.2.1:555"),
        ("", "2001:db8::5", "[2001:db8::5]:555"),
        ("nonsense", "192.0.2.1", "nonsense"),
        ("::1:4000", "192.0.2.1", "::1:4000"),
        ("1.2.3.4:99999", "192.0.2.1", "1.2.3.4:99999"),
        ("127.0.0.1:0", "192.0.2.1", "192.0.2.1:0"),
    ],
)
def test_hosts_that_others_cannot_reach_become_the_source(advertised: str, source: str, stored: str) -> None:
    assert stored_endpoint(advertised, source, 555) == stored


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_none(text: str) -> None:
    parts = split_host_port(text)
    assert parts is None or 0 <= parts[1] <= 0xFFFF
    stored_endpoint(text, "192.0.2.1", 1)


@given(st.ip_addresses().map(str), st.integers(0, 0xFFFF))
def test_endpoints_round_trip(host: str, port: int) -> None:
    assert split_host_port(join_host_port(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("node 7: node not found", True),
        ("rate limited", True),
        ("network creation is disabled", False),
        ("registry full", False),
        ("Invalid", False),
        ("requires signature", True),
        ('rbac: node 4 has no role in network 1', False),
    ],
)  # fmt: skip
def test_masking(text: str, seen: bool) -> None:
    assert mask(text) == (text if seen else "request failed")
