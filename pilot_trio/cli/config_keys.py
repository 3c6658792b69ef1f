"""Which settings `config --set` takes, and what makes a value of theirs acceptable (`spec/cli.md` §3.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from pilot_trio.address import quote
from pilot_trio.cli.daemon_flags import BY_KEY, Kind
from pilot_trio.cli.durations import parse_duration
from pilot_trio.cli.output import CliError
from pilot_trio.net.endpoint import Endpoint

_NOT_SETTABLE: Final = frozenset({"pprof"})  # a flag of one run, never a setting
_MAY_BE_EMPTY: Final = frozenset({"transport", "proxy", "proxy_cmd"})  # empty removes the key
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HEX64: Final = re.compile(r"[0-9a-fA-F]{64}")
_CREDENTIALS: Final = re.compile(r"//[^/@]*@")
_CHOICES: Final = {
    "registry_trust": ("pinned", "system"),
    "tls_trust": ("pinned", "system"),
    "log_format": ("text", "json"),
    "security_profile": ("compatible", "enterprise"),
}
_LEVELS: Final = ("debug", "info", "warn", "error")
_TRANSPORTS: Final = ("udp", "compat", "auto")


def check(key: str, text: str) -> Any:
    """Return the value to store for a text, None to remove the key.

    Raises:
      CliError: unknown key, or a value that cannot work.
    """
    flag = BY_KEY.get(key)
    if flag is None or key in _NOT_SETTABLE:
        raise _bad(f"unknown key {quote(key)}")
    if flag.kind is Kind.BOOL:
        return _boolean(key, text)
    if flag.kind is Kind.INT:
        return _number(key, text)
    if flag.kind is Kind.DURATION:
        return _duration(key, text)
    if not text:
        if key not in _MAY_BE_EMPTY:
            raise _bad(f"{key} must not be empty")
        return None
    for keys, rule in _RULES.items():
        if key in keys:
            rule(key, text)
    return text


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the credentials of a proxy."""
    shown = dict(config)
    if isinstance(shown.get("proxy"), str):
        shown["proxy"] = _CREDENTIALS.sub("//***@", shown["proxy"])
    return shown


def _boolean(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise _bad(f"{key} must be true or false")
    return text == "true"


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _bad(f"{key} must be a non-negative integer")
    return int(text)


def _duration(key: str, text: str) -> str:
    try:
        good = parse_duration(text) >= 0
    except ValueError:
        good = False
    if not good:
        raise _bad(f"{key} must be a non-negative duration")
    return text


def _endpoint(key: str, text: str) -> None:
    for part in text.split(",") if key == "beacon" else [text]:
        try:
            endpoint = Endpoint.parse(part)
        except ValueError:
            endpoint = None
        if endpoint is None or (key != "listen" and not (endpoint.host and endpoint.port)):
            raise _bad(f"{key} must be a host:port address")


def _hostname(_key: str, text: str) -> None:
    if not _HOSTNAME.fullmatch(text):
        raise _bad("hostname must be 1-63 lowercase letters, digits or internal hyphens")


def _url(key: str, text: str) -> None:
    schemes = ("wss",) if key == "compat_beacon" else ("http", "https")
    try:
        parts = urlsplit(text)
        good = parts.scheme in schemes and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good:
        raise _bad(f"invalid URL for {key}")


def _choice(key: str, text: str) -> None:
    if text not in _CHOICES[key]:
        raise _bad(f"{key} must be {' or '.join(_CHOICES[key])}")


def _fingerprint(key: str, text: str) -> None:
    if not _HEX64.fullmatch(text.replace(":", "")):
        raise _bad(f"{key} must be a SHA-256 hex digest")


def _level(_key: str, text: str) -> None:
    if text not in _LEVELS:
        raise _bad("invalid log_level")


def _transport(_key: str, text: str) -> None:
    if text not in _TRANSPORTS:
        raise _bad(f"invalid transport {quote(text)}: must be 'udp', 'compat' or 'auto'")


def _proxy(_key: str, text: str) -> None:
    words = ("auto", "off", "none", "no", "false", "direct")
    if text not in words and not text.startswith(("http://", "https://")):
        raise _bad(f"invalid proxy {quote(text)}: use auto, off, or an http:// or https:// proxy URL")


_RULES: Final[dict[tuple[str, ...], Callable[[str, str], None]]] = {
    ("registry", "beacon", "endpoint", "advertise_endpoint", "listen"): _endpoint,
    ("hostname",): _hostname,
    ("webhook", "motd_feed_url", "telemetry_url", "compat_beacon"): _url,
    tuple(_CHOICES): _choice,
    ("registry_fingerprint",): _fingerprint,
    ("log_level",): _level,
    ("transport",): _transport,
    ("proxy",): _proxy,
}


def _bad(text: str) -> CliError:
    return CliError("invalid_argument", f"config: {text}")
