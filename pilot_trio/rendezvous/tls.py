"""The registry's TLS: certificates from files, or one made here and kept so that its pin survives restarts.

Clients pin the SHA-256 of the leaf certificate (`spec/registry.md` §2.4). So a certificate is made once and stored beside the
database; only a rendezvous that keeps nothing makes a new one at each start.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import ssl
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from pilot_trio.errors import ConfigError

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds for a TLS handshake; two round trips and some arithmetic
CERTIFICATE_LIFETIME: Final = 3650  # days of a generated one; pins ignore the date, a new one would change the pin
_PEM_END: Final = "-----END CERTIFICATE-----"


class ServerTLS(NamedTuple):
    """What a TLS listener needs, and what its clients need to know."""

    context: ssl.SSLContext
    fingerprint: str  # SHA-256 of the leaf certificate, lower-case hex: the pin


def load_tls(certificate: Path | None, key: Path | None, keep_at: Path | None) -> ServerTLS:
    """Load a certificate and its key, or make them. Blocking: call it in a thread.

    Args:
      certificate: PEM file, leaf first; None: one is made.
      key: PEM file, unencrypted; goes with `certificate`.
      keep_at: where a generated pair is kept and found again; None: it is not kept.

    Raises:
      ConfigError: a file cannot be read or used.
    """
    if certificate is not None and key is not None:
        return _from_files(certificate, key)
    if keep_at is None:
        with tempfile.TemporaryDirectory() as folder:  # the ssl module loads keys from files only
            return _generate(Path(folder) / "pair.pem")
    if not keep_at.exists():
        return _generate(keep_at)
    return _from_files(keep_at, keep_at)


def _from_files(certificate: Path, key: Path) -> ServerTLS:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        # The leaf comes first in a chain; the private key may stand before or behind it.
        leaf = certificate.read_text("ascii").partition("-----BEGIN CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(leaf[1] + leaf[2].partition(_PEM_END)[0] + _PEM_END)
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        raise ConfigError(f"cannot use TLS certificate {certificate} with key {key}: {exc}") from exc
    return ServerTLS(context, hashlib.sha256(der).hexdigest())


def _generate(path: Path) -> ServerTLS:
    try:
        _write_atomically(path, make_self_signed())
    except OSError as exc:
        raise ConfigError(f"cannot keep the TLS certificate at {path}: {exc}") from exc
    return _from_files(path, path)


def make_self_signed() -> bytes:
    """Return a new key and a certificate for it, both PEM: ECDSA on P-256, for this machine's loopback names."""
    # Imported here: certificates are made once in a lifetime, and their library costs megabytes.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Pilot Protocol")])
    now = datetime.datetime.now(datetime.UTC)
    loopback = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_LIFETIME))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), *map(x509.IPAddress, loopback)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def _write_atomically(path: Path, data: bytes) -> None:
    """Write a file that only we may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
