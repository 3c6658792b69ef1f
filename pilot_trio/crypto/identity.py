"""The node's Ed25519 identity and its file format (`spec/services.md` §6.2). Pure: files are read and written elsewhere."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final

import attrs
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pilot_trio.errors import IdentityError

KEY_SIZE: Final = 32  # bytes of a public key or a seed; Ed25519
SIGNATURE_SIZE: Final = 64  # bytes; Ed25519
_PRIVATE_SIZE: Final = 64  # bytes on file: seed followed by public key


@attrs.frozen
class Identity:
    """A key pair. Make one with `generate`, `from_seed` or `parse`."""

    seed: bytes = attrs.field(repr=False)
    public_key: bytes = attrs.field(repr=bytes.hex)
    _key: Ed25519PrivateKey = attrs.field(repr=False, eq=False)

    @classmethod
    def generate(cls) -> Identity:
        """Make a fresh key pair from the system's entropy."""
        return cls.from_seed(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Make the key pair of a 32-byte seed."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(seed, key.public_key().public_bytes_raw(), key)

    @classmethod
    def parse(cls, text: bytes) -> Identity:
        """Read the file form; raise `IdentityError` with the protocol's text if it cannot be used."""
        try:
            record = json.loads(text)
            private = base64.b64decode(record["private_key"], validate=True)
            public = base64.b64decode(record["public_key"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error) as exc:
            why = f"no {exc}" if isinstance(exc, KeyError) else exc
            raise IdentityError(f"unmarshal identity: {why}") from exc
        if len(private) != _PRIVATE_SIZE:
            raise IdentityError(f"invalid private key size: {len(private)}")
        if len(public) != KEY_SIZE:
            raise IdentityError(f"invalid public key size: {len(public)}")
        identity = cls.from_seed(private[:KEY_SIZE])
        if not identity.public_key == public == private[KEY_SIZE:]:
            raise IdentityError("identity file corrupted: public key does not match private key")
        return identity

    def dump(self) -> bytes:
        """Return the file form."""
        record = {
            "private_key": base64.b64encode(self.seed + self.public_key).decode(),
            "public_key": self.public_key_b64,
        }
        return json.dumps(record, indent=2).encode()

    @property
    def public_key_b64(self) -> str:
        """The public key as it travels in JSON."""
        return base64.b64encode(self.public_key).decode()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return self._key.sign(message)

    def sign_text(self, text: str) -> str:
        """Sign an ASCII string as the registry protocol does: base64 of the raw signature (`spec/registry.md` §3.1)."""
        return base64.b64encode(self._key.sign(text.encode())).decode()


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` over `message` was made by the holder of `public_key`; malformed input is simply False."""
    if len(public_key) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
