"""Sealing and opening tunnel packets: AES-256-GCM with counted nonces (`spec/tunnel.md` §4).

Both directions of a session share one key; the random prefix of the nonce keeps them apart. The counter is taken in the
same place that seals, so that no two packets can share one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilot_trio.crypto.replay import ReplayWindow, Verdict
from pilot_trio.errors import AuthenticationError
from pilot_trio.wire.tunnel import PILS, PILS_HEADER

PREFIX_SIZE: Final = 4  # bytes of the nonce that are random per session; protocol §4.2
_NODE = struct.Struct("!I")
_NONCE = struct.Struct("!4sQ")
_HEAD = struct.Struct("!12sQ")  # magic, node and prefix, which stay the same, and the counter
_FIXED: Final = 12  # bytes of it that stay the same


class Sealer:
    """The sending half of a session."""

    __slots__ = ("_aad", "_counter", "_encrypt", "_head", "prefix")

    def __init__(self, key: bytes, node: int, prefix: bytes, counter: int = 0) -> None:
        """Take the counter that was used last under this key, if any: a peer may remember it."""
        self._encrypt = AESGCM(key).encrypt
        self._aad = _NODE.pack(node)
        self._head = PILS + self._aad
        self._counter = counter
        self.prefix = prefix

    @property
    def counter(self) -> int:
        """The counter that was used last."""
        return self._counter

    def seal(self, packet: bytes) -> bytes:
        """Return a complete PILS datagram; the first one under a key carries counter 1."""
        return self.seal_run((packet,))[0]

    def seal_run(self, packets: Sequence[bytes]) -> list[bytes]:
        """Return complete PILS datagrams, in this order."""
        encrypt, head, aad, prefix, pack = self._encrypt, self._head, self._aad, self.prefix, _NONCE.pack
        counter = self._counter
        self._counter += len(packets)  # before anything can fail: no counter is ever used twice
        datagrams: list[bytes] = []
        for packet in packets:
            counter += 1
            nonce = pack(prefix, counter)
            datagrams.append(head + nonce + encrypt(nonce, packet, aad))
        return datagrams


class Opener:
    """The receiving half of a session."""

    __slots__ = ("_decrypt",)

    def __init__(self, key: bytes) -> None:
        self._decrypt = AESGCM(key).decrypt

    def open(self, datagram: bytes) -> bytes:
        """Return the packet inside a PILS datagram of at least 36 bytes.

        Raises:
          AuthenticationError: the tag does not verify.
        """
        try:
            return self._decrypt(datagram[8:PILS_HEADER], datagram[PILS_HEADER:], datagram[4:8])
        except InvalidTag as exc:
            raise AuthenticationError("message authentication failed") from exc

    def open_run(
        self, batch: Sequence[tuple[bytes, object]], at: int, prefix: bytes, window: ReplayWindow
    ) -> list[bytes]:
        """Open PILS datagrams from `at` on; return their packets, one for each datagram that was taken.

        Takes what is of the same node and from the same source as the first, has this nonce prefix, is authentic and was
        never seen by the window, which is told. Stops before anything else, without a trace of that.
        """
        decrypt, read = self._decrypt, _HEAD.unpack_from
        first, source = batch[at]
        fixed, aad = first[:_FIXED], first[4:8]
        packets: list[bytes] = []
        if fixed[8:] != prefix:
            return packets
        highest = window.highest
        try:
            for data, origin in batch[at:] if at else batch:
                head, counter = read(data)
                if head != fixed or (origin is not source and origin != source):
                    break
                packet = decrypt(data[8:PILS_HEADER], data[PILS_HEADER:], aad)
                if counter == highest + 1:
                    window.highest = highest = counter
                elif window.accept(counter) is Verdict.FRESH:
                    highest = window.highest
                else:
                    break
                packets.append(packet)
        except (InvalidTag, struct.error):
            pass  # forged, of another key, or shorter than a header
        return packets


def read_nonce(datagram: bytes) -> tuple[bytes, int]:
    """Return prefix and counter of a PILS datagram's nonce."""
    nonce: tuple[bytes, int] = _NONCE.unpack_from(datagram, 8)
    return nonce


def counter_of(datagram: bytes) -> int:
    """Return the nonce counter of a PILS datagram."""
    return read_nonce(datagram)[1]
