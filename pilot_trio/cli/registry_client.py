"""One question to a registry, on a plain socket (`spec/registry.md` §2)."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pilot_trio.errors import DecodeError, RegistryError, RegistryUnavailable
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import LENGTH, REGISTRY_FRAME_MAX, encode_frame
from pilot_trio.wire.registry import Message, decode_message

REGISTRY_TIMEOUT: Final = 5.0  # seconds for connecting, asking and reading the answer together


class RegistryTLS(NamedTuple):
    """How to check the registry's certificate: by fingerprint, or by the system's authorities if that is empty."""

    fingerprint: str


def call(
    address: str, request: Mapping[str, Any], tls: RegistryTLS | None = None, timeout: float = REGISTRY_TIMEOUT
) -> Message:
    """Ask the registry at `address` and return its answer.

    Raises:
      RegistryError: it answered with an error.
      RegistryUnavailable: no answer could be had.
    """
    deadline = time.monotonic() + timeout
    try:
        endpoint = Endpoint.parse(address)
        with _connect(endpoint, tls, timeout) as stream:
            stream.sendall(encode_frame(canonical_json.dumps(request)))
            (length,) = LENGTH.unpack(_read(stream, LENGTH.size, deadline))
            if length > REGISTRY_FRAME_MAX:
                raise DecodeError(f"frame too large: {length} bytes")
            answer = decode_message(_read(stream, length, deadline))
    except (OSError, ValueError, DecodeError) as exc:
        raise RegistryUnavailable(_reason(exc), str(request.get("type", ""))) from exc
    if answer.get("type") == "error":
        raise RegistryError(str(answer.get("error", "")), str(request.get("type", "")))
    return answer


def _connect(endpoint: Endpoint, tls: RegistryTLS | None, timeout: float) -> socket.socket:
    plain = socket.create_connection(endpoint, timeout=timeout)
    if tls is None:
        return plain
    try:
        return _wrap(plain, endpoint.host, tls)
    except BaseException:
        plain.close()
        raise


def _wrap(plain: socket.socket, host: str, tls: RegistryTLS) -> socket.socket:
    import hashlib
    import ssl

    if not tls.fingerprint:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the fingerprint says more than a name
    context.verify_mode = ssl.CERT_NONE
    wrapped = context.wrap_socket(plain)
    certificate = wrapped.getpeercert(binary_form=True) or b""
    if hashlib.sha256(certificate).hexdigest() != tls.fingerprint.replace(":", "").lower():
        wrapped.close()
        raise OSError("the registry's certificate does not have the pinned fingerprint")
    return wrapped


def _read(stream: socket.socket, size: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the registry did not answer in time")
        stream.settimeout(remaining)
        data = stream.recv(min(size - len(parts), 1 << 16))
        if not data:
            raise ConnectionError("the registry closed the connection")
        parts += data
    return bytes(parts)


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__
