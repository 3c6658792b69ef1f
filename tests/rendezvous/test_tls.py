from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pilot_trio.errors import ConfigError
from pilot_trio.rendezvous import tls
from pilot_trio.rendezvous.tls import load_tls, make_self_signed


def pem_pair(folder: Path) -> tuple[Path, Path]:
    """Write a certificate and its key into files of their own."""
    key, _, certificate = make_self_signed().partition(b"-----BEGIN CERTIFICATE-----")
    (folder / "cert.pem").write_bytes(b"-----BEGIN CERTIFICATE-----" + certificate)
    (folder / "key.pem").write_bytes(key)
    return folder / "cert.pem", folder / "key.pem"


def test_files_given_by_the_operator_are_used(tmp_path: Path) -> None:
    certificate, key = pem_pair(tmp_path)
    loaded = load_tls(certificate, key, tmp_path / "unused.pem")
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert loaded.fingerprint == hashlib.sha256(der).hexdigest()
    assert loaded.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert not (tmp_path / "unused.pem").exists()


def test_the_pin_is_that_of_the_first_certificate_of_a_chain(tmp_path: Path) -> None:
    certificate, key = pem_pair(tmp_path)
    pin = load_tls(certificate, key, None).fingerprint
    issuer = make_self_signed().partition(b"-----BEGIN CERTIFICATE-----")[2]
    certificate.write_bytes(certificate.read_bytes() + b"-----BEGIN CERTIFICATE-----" + issuer)
    assert load_tls(certificate, key, None).fingerprint == pin


def test_a_generated_certificate_is_kept_private_and_found_again(tmp_path: Path) -> None:
    keep_at = tmp_path / "new" / "rendezvous.db.tls.pem"
    first = load_tls(None, None, keep_at)
    assert stat.S_IMODE(keep_at.stat().st_mode) == 0o600
    assert load_tls(None, None, keep_at).fingerprint == first.fingerprint
    assert [path.name for path in keep_at.parent.iterdir()] == [keep_at.name]


def test_without_a_place_to_keep_it_each_start_has_its_own() -> None:
    assert load_tls(None, None, None).fingerprint != load_tls(None, None, None).fingerprint


def test_a_generated_certificate_is_one_for_this_machine() -> None:
    certificate = x509.load_pem_x509_certificate(make_self_signed())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    lifetime = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert abs(lifetime - datetime.timedelta(days=tls.CERTIFICATE_LIFETIME)) < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("damage", ["missing", "garbage", "no key", "another key", "directory"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, damage: str) -> None:
    certificate, key = pem_pair(tmp_path)
    match damage:
        case "missing":
            certificate.unlink()
        case "garbage":
            certificate.write_bytes(b"\xff\x00 not PEM")
        case "no key":
            key.write_text("")
        case "another key":
            key.write_bytes(make_self_signed().partition(b"-----BEGIN CERTIFICATE-----")[0])
        case "directory":
            key.unlink()
            key.mkdir()
    with pytest.raises(ConfigError, match=r"cannot use TLS certificate .*cert\.pem with key .*key\.pem"):
        load_tls(certificate, key, None)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep the TLS certificate at .*kept\.pem"):
        load_tls(None, None, tmp_path / "file" / "kept.pem")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigError, match="disk full"):
        load_tls(None, None, tmp_path / "kept.pem")
    assert list(tmp_path.iterdir()) == []
