from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId, Port, SocketAddress
from pilot_trio.driver.target import Target, parse_target
from pilot_trio.errors import DecodeError

ADDRESS = Address(NetworkId(0), NodeId(1))


@pytest.mark.parametrize(
    "target, port",
    [
        (ADDRESS, 5000),
        (SocketAddress(ADDRESS, Port(5000)), None),
        (SocketAddress(ADDRESS, Port(9)), 5000),
        ("0:0000.0000.0001", 5000),
        ("0:0000.0000.0001:5000", None),
        ("1", 5000),
        ("1:5000", None),
        (1, 5000),
    ],
)
def test_an_address_can_be_written_in_many_ways(target: Target, port: int | None) -> None:
    assert parse_target(target, port) == (ADDRESS, 5000)


def test_what_is_no_address_is_a_name() -> None:
    assert parse_target("agent-b", 7) == parse_target("agent-b:7", None) == ("agent-b", 7)


@pytest.mark.parametrize("target", ["me", 1, ADDRESS, "me:", "me:x", "me:-1", "0:0000.0000.0001", "me:\u0661"])
def test_a_port_is_needed(target: Target) -> None:
    with pytest.raises(DecodeError, match=r"names no port|is not a port"):
        parse_target(target, None)


@pytest.mark.parametrize("target, port", [(1, -1), (1, 65_536), ("me:65536", None), ("me:9999999999999", None)])
def test_ports_have_sixteen_bits(target: Target, port: int | None) -> None:
    with pytest.raises(DecodeError, match="is not a port"):
        parse_target(target, port)


@pytest.mark.parametrize("target", [-1, 1 << 32, "4294967296"])
def test_node_ids_have_thirty_two_bits(target: Target) -> None:
    with pytest.raises(DecodeError, match="is not a node id"):
        parse_target(target, 7)


def test_a_malformed_address_is_not_a_name() -> None:
    with pytest.raises(DecodeError, match="invalid address"):
        parse_target("0:0000.0001", 7)


@given(st.text(), st.none() | st.integers())
def test_any_text_gives_a_target_or_a_decode_error(text: str, port: int | None) -> None:
    try:
        node, number = parse_target(text, port)
    except DecodeError:
        return
    assert isinstance(node, str | Address)
    assert 0 <= number <= 65_535
