"""Sealing and opening tunnel packets: AES-256-GCM with counted nonces (`spec/tunnel.md` §4).

Both directions of a session share one key; the random prefix of the nonce keeps them apart. The counter is taken in the
same place that seals, so that no two packets can share one.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot_trio.errors import AuthenticationError
from pilot_trio.wire.tunnel import PILS, PILS_HEADER

PREFIX_SIZE: Final = 4  # bytes of the nonce that are random per session; protocol §4.2
_NODE = struct.Struct("!I")
_COUNTER = struct.Struct("!Q")
_NONCE = struct.Struct("!4sQ")


class Sealer:
    """The sending half of a session."""

    __slots__ = ("_aad", "_aead", "_counter", "_head", "prefix")

    def __init__(self, key: bytes, node: int, prefix: bytes, counter: int = 0) -> None:
        """Take the counter that was used last under this key, if any: a peer may remember it."""
        self._aead = AESGCM(key)
        self._aad = _NODE.pack(node)
        self._head = PILS + self._aad + prefix
        self._counter = counter
        self.prefix = prefix

    @property
    def counter(self) -> int:
        """The counter that was used last."""
        return self._counter

    def seal(self, packet: bytes) -> bytes:
        """Return a complete PILS datagram; the first one under a key carries counter 1."""
        self._counter += 1
        head = self._head + _COUNTER.pack(self._counter)
        return head + self._aead.encrypt(head[8:], packet, self._aad)


class Opener:
    """The receiving half of a session."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def open(self, datagram: bytes) -> bytes:
        """Return the packet inside a PILS datagram of at least 36 bytes.

        Raises:
          AuthenticationError: the tag does not verify.
        """
        try:
            return self._aead.decrypt(datagram[8:PILS_HEADER], datagram[PILS_HEADER:], datagram[4:8])
        except InvalidTag as exc:
            raise AuthenticationError("message authentication failed") from exc


def read_nonce(datagram: bytes) -> tuple[bytes, int]:
    """Return prefix and counter of a PILS datagram's nonce."""
    nonce: tuple[bytes, int] = _NONCE.unpack_from(datagram, 8)
    return nonce


def counter_of(datagram: bytes) -> int:
    """Return the nonce counter of a PILS datagram."""
    (counter,) = _COUNTER.unpack_from(datagram, 12)
    return int(counter)
