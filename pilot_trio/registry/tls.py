"""TLS towards the registry: a pinned certificate, or the system's authorities (`spec/registry.md` §2.4)."""

from __future__ import annotations

import hashlib
import hmac
import ssl

import attrs
import trio

from pilot_trio.errors import AuthenticationError
from pilot_trio.net.network import client_tls


@attrs.frozen
class TLSPolicy:
    """What makes a registry's certificate acceptable. Make one with `pinned` or `system`."""

    context: ssl.SSLContext = attrs.field(repr=False)
    fingerprint: str = ""  # lowercase hex SHA-256 of the leaf certificate; "" where authorities decide

    @classmethod
    def pinned(cls, fingerprint: str) -> TLSPolicy:
        """Accept exactly the certificate with this fingerprint, whatever its name, chain and dates say."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared before the first request leaves
        return cls(context, fingerprint)

    @classmethod
    def system(cls) -> TLSPolicy:
        """Accept what the system's authorities vouch for, for the host name that was dialled."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return cls(context)

    async def wrap(self, stream: trio.abc.Stream, server_hostname: str) -> trio.abc.Stream:
        """Do the handshake over `stream` and return the protected one. On any failure `stream` is closed.

        Raises:
          AuthenticationError: the certificate is not acceptable.
          OSError: the handshake failed otherwise.
        """
        secure = client_tls(stream, self.context, server_hostname)
        try:
            await secure.do_handshake()
            if self.fingerprint:
                self._check(secure.getpeercert(binary_form=True) or b"")
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(stream)
            raise _translated(exc.__cause__) from exc
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise
        return secure

    def _check(self, certificate: bytes) -> None:
        found = hashlib.sha256(certificate).hexdigest()
        if not hmac.compare_digest(found, self.fingerprint):
            raise AuthenticationError(f"certificate fingerprint mismatch: got {found}, want {self.fingerprint}")


def _translated(cause: BaseException | None) -> Exception:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AuthenticationError(f"tls: failed to verify certificate: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return OSError(f"tls: {cause.reason or cause}")
    return OSError("tls: connection closed during the handshake")
