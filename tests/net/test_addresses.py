from __future__ import annotations

import pytest

from pilot_trio.net.addresses import is_literal, is_public, on_this_machine
from pilot_trio.net.endpoint import Endpoint


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("10.1.1.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("169.254.1.1", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
        ("name.example", False),
        ("", False),
    ],
)
def test_public_addresses_are_told_from_others(host: str, public: bool) -> None:
    assert is_public(host) is public


@pytest.mark.parametrize(("host", "literal"), [("1.2.3.4", True), ("::1", True), ("a.example", False), ("", False)])
def test_addresses_are_told_from_names(host: str, literal: bool) -> None:
    assert is_literal(host) is literal


@pytest.mark.parametrize(
    ("bound", "reached"), [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")]
)
def test_socket_on_every_address_is_reached_on_loopback(bound: str, reached: str) -> None:
    assert on_this_machine(Endpoint(bound, 5)) == Endpoint(reached, 5)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:9000", Endpoint("127.0.0.1", 9000)),
        ("[::1]:9000", Endpoint("::1", 9000)),
        (":0", Endpoint("", 0)),
        ("name.example:65535", Endpoint("name.example", 65535)),
    ],
)
def test_endpoint_is_read_and_written(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text", ["", "9000", "host", "host:", "host:x", "host:65536", "host:-1", "::1:9000", "h:" + "9" * 5000, "\ud800:1"]
)
def test_text_that_is_no_endpoint_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not host:port; write for example"):
        Endpoint.parse(text)
