"""Key agreement of the tunnel: X25519, then HKDF-SHA256 (`spec/tunnel.md` §3)."""

from __future__ import annotations

from typing import Final

import attrs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pilot_trio.errors import AuthenticationError

INFO: Final = b"pilot-tunnel-v1"
KEY_SIZE: Final = 32  # bytes of a public key, a private key and the derived key; protocol §3


@attrs.frozen
class KeyPair:
    """One process's X25519 key: made at start, never stored, used for all peers (§2.3)."""

    public: bytes = attrs.field(repr=bytes.hex)
    _private: X25519PrivateKey = attrs.field(repr=False, eq=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a fresh pair from the system's entropy."""
        return cls.from_private(X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_private(cls, private: bytes) -> KeyPair:
        """Make the pair of 32 private bytes."""
        key = X25519PrivateKey.from_private_bytes(private)
        return cls(key.public_key().public_bytes_raw(), key)

    def derive(self, peer_public: bytes) -> bytes:
        """Return the 32-byte key shared with a peer; it is the same in both directions.

        Raises:
          AuthenticationError: the peer's key is a low-order point, which would make the secret public.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError as exc:
            raise AuthenticationError("ecdh: bad X25519 remote ECDH input: low order point") from exc
        return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=None, info=INFO).derive(shared)
