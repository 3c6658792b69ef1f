from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.errors import DecodeError
from pilot_trio.proto.directory import Change, Directory, DirectorySettings, PeerInfo
from pilot_trio.rendezvous.dialects import Answer, BinaryDialect, JSONDialect
from pilot_trio.rendezvous.registrar import Registrar
from pilot_trio.wire.registry import heartbeat_text, pair_text, resolve_text
from pilot_trio.wire.registry_binary import (
    BinaryType,
    Heartbeat,
    HeartbeatOk,
    Lookup,
    LookupOk,
    Resolve,
    ResolveOk,
    decode_error,
)
from tests.rendezvous.raw_client import ALPHA, BETA, about_oneself, register

NOW = 1_795_459_441.0  # when the vectors were recorded
_VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "registry.json").read_text())["binary"]
VECTORS: dict[str, dict[str, Any]] = {vector["name"]: vector for vector in _VECTORS}


class NoLedger:
    async def commit(self, changes: Sequence[Change]) -> None:
        raise AssertionError("dialects do not store")


def make_registrar() -> Registrar:
    """Return a registry that knows the two nodes of the vectors: alpha is public, beta is private."""
    directory = Directory(DirectorySettings(admin_token="admin"), now=NOW)
    registrar = Registrar(directory, NoLedger(), lambda _node: None, clock=lambda: NOW)
    join = {"signature": ALPHA.sign_text(pair_text("join_network", 1, 3)), "node_id": 1, "network_id": 3}
    for request in (
        register(ALPHA, "127.0.0.1:24001", lan_addrs=["10.0.0.5:24001"]),
        register(BETA, "127.0.0.1:24002"),
        about_oneself("set_visibility", 1, ALPHA, public=True),
        about_oneself("set_hostname", 1, ALPHA, hostname="alpha"),
        about_oneself("set_hostname", 2, BETA, hostname="beta"),
        about_oneself("set_tags", 1, ALPHA, tags=["web", "search"]),
        *({"type": "create_network", "node_id": 2, "name": f"n{i}", "admin_token": "admin"} for i in range(3)),
        join | {"type": "join_network"},
        *(
            {"type": "leave_network", "node_id": 2, "network_id": network, "admin_token": "admin"}
            for network in (1, 2, 3)
        ),
    ):
        answer = registrar.answer(request, PEER)
        assert answer["type"] == f"{request['type']}_ok", (request, answer)
    return registrar


PEER = PeerInfo("127.0.0.1", 5000, 1, loopback=True)
REGISTRAR = make_registrar()


def ask(body: bytes) -> tuple[int, bytes]:
    """Put one frame's body to the binary dialect; return type and payload of the answer."""
    answer = BinaryDialect(REGISTRAR, PEER).answer(body)
    assert not answer.final
    assert int.from_bytes(answer.data[:4], "big") == len(answer.data) - 4
    return answer.data[4], answer.data[5:]


def error(body: bytes) -> str:
    kind, payload = ask(body)
    assert kind == BinaryType.ERROR
    return decode_error(payload)


@pytest.mark.parametrize(
    "name",
    [
        "heartbeat request, node 1",
        "lookup request, node 1",
        "resolve request, requester 2 asks for node 1",
        "json passthrough request",
        "error: unknown type 0x09",
    ],
)
def test_recorded_requests_get_the_recorded_answers(name: str) -> None:
    vector = VECTORS[name]
    answer = BinaryDialect(REGISTRAR, PEER).answer(bytes.fromhex(vector["request_hex"])[4:])
    assert answer == Answer(bytes.fromhex(vector["response_hex"]))


def test_a_private_nodes_lookup_is_the_recorded_one() -> None:
    kind, payload = ask(bytes([BinaryType.LOOKUP]) + Lookup(node(2)).encode())
    recorded = bytes.fromhex(VECTORS["lookup response, private node (empty real_addr)"]["response_hex"])
    assert bytes([kind]) + payload == recorded[4:]
    assert LookupOk.decode(payload).real_addr == ""


@pytest.mark.parametrize(
    "body, name",
    [
        (b"\x02" + Lookup(99).encode(), "error: unknown node"),  # type: ignore[arg-type]
        (b"\x01" + bytes(4), "error: short heartbeat (4-byte payload)"),
        (b"\x01" + Heartbeat(1, bytes(64)).encode(), "error: bad signature"),  # type: ignore[arg-type]
    ],
)
def test_refusals_are_the_recorded_ones(body: bytes, name: str) -> None:
    answer = BinaryDialect(REGISTRAR, PEER).answer(body)
    assert answer.data.hex() == VECTORS[name]["response_hex"]


def test_binary_refusals_are_not_masked_and_json_ones_are() -> None:
    signature = ALPHA.sign(resolve_text(1, 2).encode())
    assert error(b"\x03" + Resolve(node(2), node(1), signature).encode()) == (
        "resolve denied: node 2 is private (establish mutual trust first)"
    )
    request = {"type": "resolve", "requester_id": 1, "node_id": 2, "signature": base64.b64encode(signature).decode()}
    kind, payload = ask(b"\x00" + json.dumps(request).encode())
    assert (kind, json.loads(payload)) == (BinaryType.JSON, {"type": "error", "error": "request failed"})


def test_unknown_nodes_have_another_text_than_in_json() -> None:
    beat = Heartbeat(node(99), ALPHA.sign(heartbeat_text(99).encode())).encode()
    assert error(b"\x01" + beat) == "node 99: not found"
    stranger = Resolve(node(1), node(99), bytes(64)).encode()
    assert error(b"\x03" + stranger) == "resolve denied: requester node 99 is not registered"
    lost = Resolve(node(99), node(1), ALPHA.sign(resolve_text(1, 99).encode())).encode()
    assert error(b"\x03" + lost) == "node 99: not found"


def test_answers_decode_to_what_was_asked() -> None:
    kind, payload = ask(b"\x01" + Heartbeat(node(1), ALPHA.sign(b"heartbeat:1")).encode())
    assert (kind, HeartbeatOk.decode(payload)) == (BinaryType.HEARTBEAT_OK, HeartbeatOk(int(NOW)))
    kind, payload = ask(b"\x03" + Resolve(node(1), node(2), BETA.sign(b"resolve:2:1")).encode())
    assert (kind, ResolveOk.decode(payload)) == (
        BinaryType.RESOLVE_OK,
        ResolveOk(node(1), "127.0.0.1:24001", ("10.0.0.5:24001",), 0),
    )


def test_bad_json_in_a_frame_is_an_error_and_not_the_end() -> None:
    assert error(b"\x00{").startswith(VECTORS["error: bad JSON in passthrough"]["response_prefix_utf8"])
    assert error(b"\x00[]").startswith("json decode: ")
    text = error(b'\x00{"type":"subscribe_replication"}')
    assert text == "replication not supported over binary protocol"


def test_an_empty_frame_is_the_end() -> None:
    with pytest.raises(DecodeError):
        BinaryDialect(REGISTRAR, PEER).answer(b"")


@given(st.integers(0, 255), st.binary(max_size=90))
def test_every_frame_with_a_type_is_answered(kind: int, payload: bytes) -> None:
    ask(bytes([kind]) + payload)


@given(st.binary(max_size=60))
def test_json_bodies_are_answered_or_end_the_connection(body: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert JSONDialect(REGISTRAR, PEER).answer(body).data


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(
        ["register", "lookup", "resolve", "set_tags", "poll_handshakes", "list_networks", "create_network"]
    ),
    st.dictionaries(
        st.sampled_from(["node_id", "public_key", "signature", "listen_addr", "tags", "name", "admin_token", "x"]),
        json_values,
    ),
)
def test_fields_of_any_type_are_answered(kind: str, fields: dict[str, Any]) -> None:
    body = json.dumps(fields | {"type": kind}).encode()
    answer = JSONDialect(make_registrar(), PEER).answer(body)
    message = json.loads(answer.data[4:])
    assert ("error" in message) == (message["type"] == "error")


def test_only_requests_that_change_something_promise_something() -> None:
    dialect = JSONDialect(make_registrar(), PEER)
    for request, promise in (
        ({"type": "lookup", "node_id": 1}, False),
        ({"type": "heartbeat", "node_id": 1}, False),
        (register(ALPHA), True),
        (about_oneself("poll_handshakes", 1), True),
        ({"type": ["odd"]}, True),
    ):
        assert dialect.answer(json.dumps(request).encode()).promise is promise, request


def node(number: int) -> Any:
    return number
