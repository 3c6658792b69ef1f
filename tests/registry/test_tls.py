"""TLS over streams in memory, with certificates made for the test."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from pathlib import Path

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from trio.testing import MockClock

from pilot_trio.errors import RegistryUnavailable
from pilot_trio.registry.client import RegistryClient
from pilot_trio.registry.tls import TLSPolicy
from pilot_trio.testing import MemoryNetwork
from tests.registry.fake_registry import REGISTRY, FakeRegistry


@attrs.frozen
class Certificate:
    file: Path
    fingerprint: str
    context: ssl.SSLContext


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(file)
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certificate(file, hashlib.sha256(der).hexdigest(), context)


async def call(tls: TLSPolicy | None, certificate: Certificate | None) -> dict[str, object]:
    """Call a registry that speaks TLS with this certificate, or plaintext."""
    network = MemoryNetwork()
    listener: trio.abc.Listener[trio.abc.Stream] = await network.listen_tcp(REGISTRY)
    if certificate is not None:
        listener = trio.SSLListener(listener, certificate.context)
    registry = FakeRegistry()
    client = RegistryClient(network, REGISTRY, tls=tls)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.serve, listener)
        try:
            return await client.call("heartbeat")
        except RegistryUnavailable as exc:
            return {"error": str(exc)}
        finally:
            await client.aclose()
            nursery.cancel_scope.cancel()


async def refusal(tls: TLSPolicy | None, certificate: Certificate | None) -> str:
    return str((await call(tls, certificate))["error"])


async def test_pinned_certificate_is_accepted(autojump_clock: MockClock, certificate: Certificate) -> None:
    assert await call(TLSPolicy.pinned(certificate.fingerprint), certificate) == {"type": "heartbeat_ok"}


async def test_other_certificate_is_refused_at_once(autojump_clock: MockClock, certificate: Certificate) -> None:
    assert await refusal(TLSPolicy.pinned("0" * 64), certificate) == (
        f"registry: certificate fingerprint mismatch: got {certificate.fingerprint}, want {'0' * 64}"
    )
    assert trio.current_time() < 1


async def test_certificate_that_an_authority_vouches_for_is_accepted(
    autojump_clock: MockClock, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
    assert await call(TLSPolicy.system(), certificate) == {"type": "heartbeat_ok"}


async def test_certificate_of_an_unknown_authority_is_refused(
    autojump_clock: MockClock, certificate: Certificate
) -> None:
    assert "tls: failed to verify certificate: self-signed certificate" in await refusal(
        TLSPolicy.system(), certificate
    )


async def test_tls_towards_a_plaintext_registry_fails_with_a_reason(autojump_clock: MockClock) -> None:
    text = await refusal(TLSPolicy.pinned("0" * 64), None)
    assert "dial tcp 127.0.0.1:9000" in text


async def test_plaintext_towards_a_tls_registry_fails(autojump_clock: MockClock, certificate: Certificate) -> None:
    text = await refusal(None, certificate)
    assert text.startswith("registry: ")
