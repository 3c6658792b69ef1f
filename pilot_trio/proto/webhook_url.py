"""Which URLs a webhook may have (`spec/ipc.md` §5.4, `spec/services.md` §7.2)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from pilot_trio.address import PORT_MAX, quote
from pilot_trio.errors import DecodeError

URL_MAX: Final = 8192  # bytes; what common HTTP servers accept as a request line

_METADATA_HOSTS: Final = frozenset(  # they hand out a cloud machine's credentials; protocol, `spec/services.md` §7.2
    {
        "metadata.google.internal",
        "metadata.google.com",
        "metadata.azure.com",
        "ec2.internal",
        "instance-data-service.ec2.internal",
    }
)
_LINK_LOCAL_GROUPS: Final = (ipaddress.ip_network("224.0.0.0/24"), ipaddress.ip_network("ff02::/16"))
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2}).{0,2}", re.DOTALL)
_NOT_IN_HOST = re.compile(r"[ \"<>\\^`{|}]")


def check_webhook_url(url: str) -> None:
    """Raise `DecodeError` with the protocol's text unless events may be posted to `url`.

    Private ranges and loopback are allowed: a webhook on the same machine is the usual case. Names are not resolved;
    what they point to may change at any time.
    """
    host = _parse_host(url)
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if host.lower().rstrip(".") in _METADATA_HOSTS:
            raise DecodeError(f"URL cannot target cloud metadata endpoint {host}") from None
        return
    plain = getattr(address, "ipv4_mapped", None) or address
    if plain.is_link_local or any(plain in group for group in _LINK_LOCAL_GROUPS if group.version == plain.version):
        raise DecodeError(f"URL cannot target link-local address {host}")


def _parse_host(url: str) -> str:
    if len(url.encode("utf-8", "surrogatepass")) > URL_MAX:
        raise DecodeError(f"invalid URL: longer than {URL_MAX} bytes")
    invalid = f"invalid URL: parse {quote(url)}: "
    if _CONTROL.search(url):  # the standard parser would quietly drop some of them
        raise DecodeError(invalid + "net/url: invalid control character in URL")
    if bad := _BAD_ESCAPE.search(url):
        raise DecodeError(invalid + f"invalid URL escape {quote(bad.group())}")
    if url.startswith(":"):
        raise DecodeError(invalid + "missing protocol scheme")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise DecodeError(invalid + str(exc)) from exc
    if parts.scheme not in ("http", "https"):
        raise DecodeError(f"URL must use http or https scheme, got {quote(parts.scheme)}")
    host, port = _split_host(parts.netloc)
    if bad := _NOT_IN_HOST.search(host):
        raise DecodeError(invalid + f"invalid character {quote(bad.group())} in host name")
    if port not in ("", ":") and not (
        port[1:].isascii() and port[1:].isdigit() and len(port) <= 6 and int(port[1:]) <= PORT_MAX
    ):
        raise DecodeError(invalid + f"invalid port {quote(port)} after host")
    if not host:
        raise DecodeError("URL must have a host")
    return host


def _split_host(netloc: str) -> tuple[str, str]:
    """Return the host as typed, without brackets, and what follows it, colon included."""
    place = netloc.rpartition("@")[2]
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host.replace("%25", "%"), port
    host, colon, port = place.partition(":")
    return host, colon + port
