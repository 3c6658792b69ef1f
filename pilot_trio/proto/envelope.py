"""Signed requests: an envelope says who calls which service with which body, when (`spec/ipc.md` §5.8).

    pilot-req-v1|AAAAAAAAAAAA|TS|NONCE|HASH|AUDIENCE

12 hex digits of address (4 network, 8 node), Unix seconds, 16 hex digits of nonce, SHA-256 of the body, the service. The
signature is Ed25519 by the node's identity over these very characters, so there is exactly one way to write an envelope.
"""

from __future__ import annotations

import base64
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
_CANONICAL = re.compile(r"0|[1-9][0-9]{0,18}")
_ENROLLMENT_FIELDS: Final = 7
_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_PADDING: Final = ord("=")


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
    """Decode standard base64 with padding; line breaks are skipped, as every program of this protocol does.

    Raises:
      DecodeError: it is none; the text says at which byte, counted as other programs do: the illegal character, or the
        start of the group of four that is not complete.
    """
    data = text.encode("utf-8", "surrogatepass")
    bad_at = _illegal_base64_at(data)
    if bad_at is not None:
        raise DecodeError(f"{prefix}illegal base64 data at input byte {bad_at}")
    return base64.b64decode(data)


def check_enrollment(enrollment: str) -> str:
    """Return the commitment in an enrollment `pilotenroll:v1:<node>:<provider>:<commitment>:<issued>:<kid>`.

    Raises:
      DecodeError: it is malformed.
    """
    prefix = "badgeverify: malformed badge: "
    fields = enrollment.split(":")
    if len(fields) != _ENROLLMENT_FIELDS:
        raise DecodeError(f"{prefix}enrollment wants {_ENROLLMENT_FIELDS} fields, got {len(fields)}")
    kind, version, node, _, commitment, issued_at, _ = fields
    if kind != "pilotenroll":
        raise DecodeError(f"{prefix}not an enrollment (prefix {quote(kind)})")
    if version != "v1":
        raise DecodeError(f"{prefix}unsupported version {quote(version)}")
    if "" in fields:
        raise DecodeError(f"{prefix}enrollment has empty required field")
    for name, value in (("node_id", node), ("issued_at", issued_at)):
        if not _CANONICAL.fullmatch(value):
            raise DecodeError(f"{prefix}{name} is not canonical decimal: {quote(value)}")
    return commitment


def duration(seconds: int) -> str:
    """Return a number of whole seconds as the protocol's texts write it: `45s`, `5m0s`, `1h0m0s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _illegal_base64_at(data: bytes) -> int | None:
    """Return where base64 goes wrong, None if it does not."""
    group: list[int] = []  # positions of the characters of the group that is being read
    for at, byte in enumerate(data):
        if byte in b"\r\n":
            continue
        if len(group) == 4:
            if data[group[-1]] == _PADDING:
                return at  # something after the padding
            group = []
        if group and data[group[-1]] == _PADDING != byte:
            return group[-1]
        if byte not in _BASE64 and (byte != _PADDING or len(group) < 2):
            return at
        group.append(at)
    if not group or len(group) == 4:
        return None
    return len(data) if data[group[-1]] == _PADDING else group[0]


def _parse_timestamp(text: str) -> int:
    if not text:
        raise DecodeError("reqsig: timestamp: empty")
    if text[0] == "0" and len(text) > 1:
        raise DecodeError("reqsig: timestamp: leading zero")
    if not (text.isascii() and text.isdigit()):
        raise DecodeError("reqsig: timestamp: non-digit")
    if len(text) > _TIME_DIGITS_MAX or int(text) > _I64_MAX:
        raise DecodeError(f"reqsig: timestamp: strconv.ParseInt: parsing {quote(text)}: value out of range")
    return int(text)
