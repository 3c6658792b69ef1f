"""Signed requests: an envelope says who calls which service with which body, when (`spec/ipc.md` §5.8).

    pilot-req-v1|AAAAAAAAAAAA|TS|NONCE|HASH|AUDIENCE

12 hex digits of address (4 network, 8 node), Unix seconds, 16 hex digits of nonce, SHA-256 of the body, the service. The
signature is Ed25519 by the node's identity over these very characters, so there is exactly one way to write an envelope.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import attrs

from pilot_trio.address import Address, NetworkId, NodeId, quote
from pilot_trio.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, verify
from pilot_trio.errors import AuthenticationError, DecodeError

DOMAIN: Final = "pilot-req-v1"  # keeps these signatures apart from all others that the key makes
AUDIENCE_MAX: Final = 64  # characters; protocol, `spec/ipc.md` §5.8
DEFAULT_WINDOW: Final = 300  # seconds that an envelope's time may be off; protocol, §5.8
ONLINE_WINDOW: Final = 180  # seconds since a node was last seen that still count as online; protocol, §5.8

_FIELDS: Final = 6
_TIME_DIGITS_MAX: Final = 19  # what 64 bits hold
_I64_MAX: Final = (1 << 63) - 1
_HEX12 = re.compile(r"[0-9a-f]{12}")
_HEX16 = re.compile(r"[0-9a-f]{16}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_AUDIENCE = re.compile(r"[a-z0-9.-]+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\r\n]*")


@attrs.frozen
class Envelope:
    """A request that somebody vouches for. Making one with a malformed field raises `DecodeError`."""

    address: Address
    timestamp: int  # Unix seconds
    nonce: str
    body_hash: str
    audience: str

    def __attrs_post_init__(self) -> None:
        if not _HEX16.fullmatch(self.nonce):
            raise DecodeError("reqsig: nonce must be 16 lowercase hex chars")
        if not _HEX64.fullmatch(self.body_hash):
            raise DecodeError("reqsig: body hash must be 64 lowercase hex chars")
        if not 1 <= len(self.audience.encode("utf-8", "surrogatepass")) <= AUDIENCE_MAX:
            raise DecodeError(f"reqsig: audience must be 1-{AUDIENCE_MAX} chars")
        if not _AUDIENCE.fullmatch(self.audience):
            raise DecodeError("reqsig: audience must match [a-z0-9.-]")

    def __str__(self) -> str:
        network, node = self.address
        fields = (DOMAIN, f"{network:04x}{node:08x}", str(self.timestamp), self.nonce, self.body_hash, self.audience)
        return "|".join(fields)

    @classmethod
    def parse(cls, text: str) -> Envelope:
        """Read an envelope; raise `DecodeError` with the protocol's reason."""
        fields = text.split("|")
        if len(fields) != _FIELDS:
            raise DecodeError(f"reqsig: want {_FIELDS} fields, got {len(fields)}")
        domain, address, timestamp, nonce, body_hash, audience = fields
        if domain != DOMAIN:
            raise DecodeError(f"reqsig: bad domain {quote(domain)}")
        if not _HEX12.fullmatch(address):
            raise DecodeError("reqsig: address must be 12 lowercase hex chars")
        where = Address(NetworkId(int(address[:4], 16)), NodeId(int(address[4:], 16)))
        envelope = cls(where, _parse_timestamp(timestamp), nonce, body_hash, audience)
        if str(envelope) != text:
            raise DecodeError("reqsig: non-canonical encoding")
        return envelope

    def check_fresh(self, now: float, window: int) -> None:
        """Raise `AuthenticationError` if the envelope's time is more than `window` seconds off."""
        if abs(now - self.timestamp) > window:
            raise AuthenticationError(f"reqsig: envelope timestamp outside ±{duration(window)} window")

    def check_signature(self, signature_b64: str, public_key: bytes) -> None:
        """Raise `AuthenticationError` unless the signature is by the holder of `public_key`."""
        if len(public_key) != KEY_SIZE:
            raise AuthenticationError(f"reqsig: bad public key size {len(public_key)}")
        signature = decode_base64(signature_b64, "reqsig: signature not base64: ")
        if len(signature) != SIGNATURE_SIZE or not verify(public_key, signature, str(self).encode()):
            raise AuthenticationError("reqsig: signature verification failed")


def decode_base64(text: str, prefix: str) -> bytes:
    """Decode standard base64; raise `DecodeError` that says at which byte it is none.

    Line breaks are skipped, as every program of this protocol does.
    """
    data = text.encode("utf-8", "surrogatepass")
    legal = _BASE64.match(data)
    bad_at = legal.end() if legal else 0
    if bad_at == len(data):
        try:
            return base64.b64decode(re.sub(rb"[\r\n]", b"", data), validate=True)
        except binascii.Error:
            pass  # padding missing or in the wrong place, which is found at the end
    raise DecodeError(f"{prefix}illegal base64 data at input byte {bad_at}")


def parse_enrollment_commitment(enrollment: str) -> str:
    """Return the commitment in an enrollment `pilotenroll:v1:<node>:<provider>:<commitment>:<issued>:<kid>`.

    Raises:
      DecodeError: it has another number of fields.
    """
    fields = enrollment.split(":")
    if len(fields) != 7:
        raise DecodeError(f"badgeverify: malformed badge: enrollment wants 7 fields, got {len(fields)}")
    return fields[4]


def duration(seconds: int) -> str:
    """Return a number of whole seconds as the protocol's texts write it: `45s`, `5m0s`, `1h0m0s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _parse_timestamp(text: str) -> int:
    if not text:
        raise DecodeError("reqsig: timestamp: empty")
    if text[0] == "0" and len(text) > 1:
        raise DecodeError("reqsig: timestamp: leading zero")
    if not (text.isascii() and text.isdigit()):
        raise DecodeError("reqsig: timestamp: non-digit")
    if len(text) > _TIME_DIGITS_MAX or int(text) > _I64_MAX:
        raise DecodeError("reqsig: timestamp: out of range")
    return int(text)
