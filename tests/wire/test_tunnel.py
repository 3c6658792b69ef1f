from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.crypto.aead import Opener, Sealer, counter_of, read_nonce
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity, verify
from pilot_trio.crypto.replay import ReplayWindow, Verdict
from pilot_trio.errors import AuthenticationError, DecodeError
from pilot_trio.wire import tunnel

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "tunnel.json").read_text())
u32 = st.integers(0, 0xFFFFFFFF)


@pytest.mark.parametrize("vector", VECTORS["kdf"]["vectors"], ids=lambda v: v["note"])
def test_key_agreement_vectors(vector: dict[str, str]) -> None:
    a, b = (KeyPair.from_private(bytes.fromhex(vector[f"{side}_x25519_private"])) for side in "ab")
    assert (a.public.hex(), b.public.hex()) == (vector["a_x25519_pub"], vector["b_x25519_pub"])
    assert a.derive(b.public).hex() == b.derive(a.public).hex() == vector["aes256_key"]


def test_a_low_order_key_is_refused() -> None:
    with pytest.raises(AuthenticationError, match="low order"):
        KeyPair.generate().derive(bytes(32))


@pytest.mark.parametrize("vector", VECTORS["pila"], ids=lambda v: str(v["node_id"]))
def test_key_exchange_vectors(vector: dict[str, Any]) -> None:
    datagram = bytes.fromhex(vector["datagram"])
    frame = tunnel.decode_key_exchange(datagram + b"trailing")
    assert frame.signed_bytes.hex() == vector["signed_bytes"]
    assert verify(frame.ed25519, frame.signature, frame.signed_bytes)
    assert tunnel.encode_key_exchange(frame) == datagram
    identity = Identity.from_seed(bytes.fromhex(vector["ed25519_seed"]))
    assert identity.sign(frame.signed_bytes) == frame.signature


@pytest.mark.parametrize("vector", VECTORS["pilk"], ids=lambda v: str(v["node_id"]))
def test_key_request_vectors(vector: dict[str, Any]) -> None:
    datagram = bytes.fromhex(vector["datagram"])
    frame = tunnel.decode_key_request(datagram)
    assert (frame.node, frame.x25519.hex()) == (vector["node_id"], vector["x25519_pub"])
    assert tunnel.encode_key_request(frame) == datagram


@pytest.mark.parametrize("vector", VECTORS["pils"], ids=lambda v: v["note"])
def test_sealed_packet_vectors(vector: dict[str, Any]) -> None:
    datagram, key = bytes.fromhex(vector["datagram"]), bytes.fromhex(vector["aes256_key"])
    assert Opener(key).open(datagram).hex() == vector["plaintext"]
    assert read_nonce(datagram) == (bytes.fromhex(vector["nonce_prefix"]), vector["counter"])
    assert counter_of(datagram) == vector["counter"]
    sealer = Sealer(key, vector["sender_node_id"], bytes.fromhex(vector["nonce_prefix"]))
    sealer._counter = vector["counter"] - 1
    assert sealer.seal(bytes.fromhex(vector["plaintext"])) == datagram


@given(st.binary(max_size=200))
def test_garbage_gives_frames_or_decode_errors(data: bytes) -> None:
    for decode in (tunnel.decode_key_exchange, tunnel.decode_key_request):
        with contextlib.suppress(DecodeError):
            decode(data)


@given(st.binary(max_size=50), u32, st.data())
def test_a_changed_sealed_packet_does_not_open(packet: bytes, node: int, data: st.DataObject) -> None:
    key = bytes(32)
    datagram = bytearray(Sealer(key, node, b"pref").seal(packet))
    bit = data.draw(st.integers(4 * 8, len(datagram) * 8 - 1))  # the magic is not covered
    datagram[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationError):
        Opener(key).open(bytes(datagram))


def test_counters_start_at_one_and_never_repeat() -> None:
    sealer = Sealer(bytes(32), 7, b"pref")
    assert [counter_of(sealer.seal(b"")) for _ in range(3)] == [1, 2, 3]


def test_the_recorded_replay_verdicts_hold_for_the_recorded_window() -> None:
    window = ReplayWindow(256)
    for step in VECTORS["replay_window"]["sequence"]:
        if step["log"] == "aead failure":
            continue  # never reaches the window
        verdict = window.accept(step["counter"])
        assert (verdict is Verdict.FRESH) == step["accept"], step
        if step["log"]:
            assert verdict.value.startswith(step["log"].split()[0]), step


@given(st.lists(st.integers(0, 40)), st.integers(1, 16))
def test_the_window_agrees_with_a_set(counters: list[int], size: int) -> None:
    window, seen, highest = ReplayWindow(size), set[int](), 0
    for counter in counters:
        expected = Verdict.FRESH
        if counter <= highest:
            outside = highest - counter >= size
            expected = Verdict.OUTSIDE if outside else Verdict.REPLAY if counter in seen else Verdict.FRESH
        assert window.accept(counter) is expected
        seen.add(counter)
        highest = max(highest, counter)


def test_a_forged_jump_costs_nothing() -> None:
    window = ReplayWindow()
    assert window.accept(2**63) is Verdict.FRESH
    assert window.accept(2**64 - 1) is Verdict.FRESH
    assert window.accept(2**63) is Verdict.OUTSIDE
