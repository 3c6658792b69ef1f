"""Tunnel frames: UDP payloads between nodes (`spec/tunnel.md` §1, §2, §4). Key exchange, sealed packets, punches.

PILA  magic(4) node(4) X25519 key(32) Ed25519 key(32) signature(64)      authenticated key exchange
PILK  magic(4) node(4) X25519 key(32)                                    key request
PILS  magic(4) node(4) nonce(12) ciphertext and tag                      sealed packet
PILT  magic(4) packet                                                    plain packet (encryption off)
PILP  magic(4)                                                           NAT punch
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pilot_trio.errors import DecodeError

PILA: Final = b"PILA"
PILK: Final = b"PILK"
PILS: Final = b"PILS"
PILT: Final = b"PILT"
PILP: Final = b"PILP"
BEACON_BELOW: Final = 0x10  # first bytes below it belong to the beacon; protocol §1
NONCE_SIZE: Final = 12  # bytes; protocol §4
TAG_SIZE: Final = 16  # bytes; protocol §4
PILS_HEADER: Final = 20  # bytes before the ciphertext; protocol §4
AAD: Final = slice(4, 8)  # the sender's node id is what the tag covers besides the ciphertext

_PILA = struct.Struct("!4sI32s32s64s")
_PILK = struct.Struct("!4sI32s")
assert _PILA.size == 136 and _PILK.size == 40
_AUTH_PREFIX: Final = b"auth"
_NODE = struct.Struct("!I")


class KeyExchange(NamedTuple):
    """An authenticated key exchange."""

    node: int
    x25519: bytes
    ed25519: bytes
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: no time, no nonce, no receiver."""
        return signed_bytes(self.node, self.x25519)


class KeyRequest(NamedTuple):
    """An unauthenticated key frame: the sender asks for our key exchange."""

    node: int
    x25519: bytes


def signed_bytes(node: int, x25519: bytes) -> bytes:
    """What a key exchange signs."""
    return _AUTH_PREFIX + _NODE.pack(node) + x25519


def encode_key_exchange(frame: KeyExchange) -> bytes:
    """Return a PILA datagram."""
    return _PILA.pack(PILA, *frame)


def decode_key_exchange(data: bytes) -> KeyExchange:
    """Read a PILA datagram; bytes after it are ignored."""
    if len(data) < _PILA.size:
        raise DecodeError(f"PILA of {len(data)} bytes, want {_PILA.size}")
    _, node, x25519, ed25519, signature = _PILA.unpack_from(data)
    return KeyExchange(node, x25519, ed25519, signature)


def encode_key_request(frame: KeyRequest) -> bytes:
    """Return a PILK datagram."""
    return _PILK.pack(PILK, *frame)


def decode_key_request(data: bytes) -> KeyRequest:
    """Read a PILK datagram; bytes after it are ignored."""
    if len(data) < _PILK.size:
        raise DecodeError(f"PILK of {len(data)} bytes, want {_PILK.size}")
    _, node, x25519 = _PILK.unpack_from(data)
    return KeyRequest(node, x25519)
