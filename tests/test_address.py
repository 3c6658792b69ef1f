from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import Address, NetworkId, NodeId, SocketAddress, quote
from pilot_trio.errors import DecodeError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "packets.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["addresses"], ids=lambda v: repr(v["text"]))
def test_address_vectors(vector: dict[str, Any]) -> None:
    if vector["ok"]:
        address = Address.parse(vector["text"])
        assert address.pack().hex() == vector["hex"]
        assert str(address) == vector["canonical"]
        assert Address.unpack_from(bytes.fromhex(vector["hex"])) == address
    else:
        with pytest.raises(DecodeError) as caught:
            Address.parse(vector["text"])
        assert str(caught.value) == vector["error"]


@pytest.mark.parametrize("vector", VECTORS["socket_addresses"], ids=lambda v: repr(v["text"]))
def test_socket_address_vectors(vector: dict[str, Any]) -> None:
    if vector["ok"]:
        parsed = SocketAddress.parse(vector["text"])
        assert parsed.address.pack().hex() == vector["hex"]
        assert parsed.port == vector["port"]
        assert str(parsed) == vector["canonical"]
    else:
        with pytest.raises(DecodeError) as caught:
            SocketAddress.parse(vector["text"])
        assert str(caught.value) == vector["error"]


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))
def test_text_and_bytes_round_trip(network: int, node: int) -> None:
    address = Address(NetworkId(network), NodeId(node))
    assert Address.parse(str(address)) == address
    assert Address.unpack_from(b"xx" + address.pack(), 2) == address


@given(st.text())
def test_any_text_is_an_address_or_a_decode_error(text: str) -> None:
    for parse in (Address.parse, SocketAddress.parse):
        with contextlib.suppress(DecodeError):
            parse(text)


def test_a_megabyte_of_digits_is_refused_quickly() -> None:
    with pytest.raises(DecodeError, match="out of range"):
        Address.parse("9" * 1_000_000 + ":0000.0000.0000")


def test_quote_escapes_what_a_log_line_must_not_contain() -> None:
    assert quote('a"b\n\x00é\u200b') == '"a\\"b\\n\\x00é\\u200b"'
