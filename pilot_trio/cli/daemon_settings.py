"""What the daemon was told: flags, environment and configuration file in their order, ending as a `Config`.

The order (`spec/services.md` §8.2): flag, then for five settings the environment, then config.json, then for the others
the environment, then the built-in default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pilot_trio.address import quote
from pilot_trio.cli import config_file
from pilot_trio.cli.daemon_flags import BY_KEY, BY_NAME, FLAGS, Flag, Kind, Value, parse_value
from pilot_trio.config import (
    Config,
    Endpoint,
    RegistryConfig,
    ServicesConfig,
    StreamLimits,
    TrustConfig,
    TunnelConfig,
    WebhookConfig,
)
from pilot_trio.errors import ConfigError
from pilot_trio.wire.dataexchange import frame_max

_KNOWN_OTHERS: Final = frozenset({"consent"})  # keys of config.json that are not settings of the daemon
_TRANSPORTS: Final = ("udp", "compat", "auto")
# Of these, nought means the default, as it does to the reference, and to `config --set`, which lets it pass.
_ABOVE_ZERO: Final = frozenset(
    {"keepalive", "idle-timeout", "time-wait", "syn-rate-limit", "max-conns-per-port", "max-conns-total"}
)
_NETWORK_ID_DIGITS: Final = 5  # of 65535


class Note(NamedTuple):
    """Something to tell the operator once the log is open."""

    message: str
    kv: dict[str, object]


class Settings(NamedTuple):
    """Every flag's effective value, where it came from, and what to warn about."""

    values: Mapping[str, Value]
    sources: Mapping[str, str]  # "flag", "env", "config" or "default"
    notes: tuple[Note, ...]
    config_path: Path | None  # the file that was read

    def text(self, name: str) -> str:
        """Return a text setting."""
        return str(self.values[name])

    def number(self, name: str) -> int:
        """Return an integer setting."""
        return int(self.values[name])

    def is_on(self, name: str) -> bool:
        """Return a boolean setting."""
        return bool(self.values[name])

    def given(self, name: str) -> bool:
        """Say whether anybody chose the value."""
        return self.sources[name] != "default"


def resolve(given: Mapping[str, Value], environ: Mapping[str, str], home: Path) -> Settings:
    """Combine the flags given with config.json and the environment. `home` is the user's `.pilot` directory.

    Raises:
      ConfigError: the configuration file or one of the values cannot work. The text is complete.
    """
    notes: list[Note] = []
    config_path, from_file = _read_file(given, home, notes)
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for flag in FLAGS:
        candidates = [("flag", given.get(flag.name)), ("config", from_file.get(flag.name))]
        candidates.insert(1 if flag.env_beats_config else 2, ("env", _from_environment(flag, environ, notes)))
        candidates.append(("default", flag.default))
        sources[flag.name], values[flag.name] = next((s, v) for s, v in candidates if v is not None)
        if flag.name in _ABOVE_ZERO and float(values[flag.name]) <= 0:
            kv: dict[str, object] = {"setting": flag.name, "value": values[flag.name], "using": flag.default}
            notes.append(Note("setting is not above zero, using the default", kv))
            sources[flag.name], values[flag.name] = "default", flag.default
    for name in ("registry", "beacon"):
        if sources[name] == "env":
            text = f"{BY_NAME[name].env} env var overrides compiled default; {name} address is {values[name]}"
            notes.append(Note(text, {}))
    return Settings(values, sources, tuple(notes), config_path)


def to_config(settings: Settings, home: Path) -> tuple[Config, tuple[Note, ...]]:
    """Return the node's settings, and what else to warn about.

    Raises:
      ConfigError: a value cannot work; the text names flag, value and remedy.
    """
    _check_transport(settings.text("transport"))
    networks, notes = _networks(settings.text("networks"))
    keepalive = float(settings.values["keepalive"])
    config = Config(
        home=home,
        **({"socket": settings.text("socket")} if settings.text("socket") else {}),
        identity=Path(settings.text("identity")) if settings.text("identity") else None,
        registry=RegistryConfig(
            endpoint=_endpoint(settings, "registry"),
            tls=settings.is_on("registry-tls"),
            trust=_trust(settings.text("registry-trust")),
            fingerprint=settings.text("registry-fingerprint"),
            fail_fast=settings.is_on("fail-fast"),
        ),
        rendezvous=None,
        beacon=tuple(_parse("beacon", part) for part in _words(settings.text("beacon"))),
        listen=_endpoint(settings, "listen") or Endpoint("", 0),
        endpoint=_endpoint(settings, "endpoint"),
        advertise_endpoint=_endpoint(settings, "advertise-endpoint"),
        relay_only=settings.is_on("relay-only"),
        hostname=settings.text("hostname"),
        email=settings.text("email") or settings.text("owner"),
        public=settings.is_on("public"),
        admin_token=settings.text("admin-token"),
        networks=networks,
        services=ServicesConfig(
            echo=not settings.is_on("no-echo"),
            dataexchange=not settings.is_on("no-dataexchange"),
            eventstream=not settings.is_on("no-eventstream"),
            dataexchange_b64=settings.is_on("dataexchange-b64"),
            dataexchange_frame_max=settings.number("dataexchange-max-frame"),
        ),
        streams=StreamLimits(
            idle_timeout=float(settings.values["idle-timeout"]),
            keepalive=keepalive,
            time_wait=float(settings.values["time-wait"]),
            max_conns_per_port=settings.number("max-conns-per-port"),
            max_conns_total=settings.number("max-conns-total"),
            syn_rate_limit=settings.number("syn-rate-limit"),
        ),
        tunnel=TunnelConfig(
            strict_trust=settings.is_on("strict-dataplane-trust"),
            syn_whitelist=_whitelist(settings.text("syn-whitelist")),
            reply_whitelist=_whitelist(settings.text("reply-whitelist")),
            rekey_whitelist=_whitelist(settings.text("rekey-whitelist")),
            path_watch=not settings.is_on("no-path-watch"),
            address_watch=not settings.is_on("no-addr-watch"),
            receive_watch=not settings.is_on("no-rx-watchdog"),
        ),
        trust=TrustConfig(auto_approve=settings.is_on("trust-auto-approve")),
        webhook=WebhookConfig(url=settings.text("webhook"), secret=settings.text("webhook-secret")),
        keepalive=keepalive,
        encrypt=settings.is_on("encrypt"),
    )
    return config, notes


def _whitelist(text: str) -> frozenset[int] | None:
    """Read node ids; `*` or `all` is everybody. What is no id names nobody, as for the reference (`spec/tunnel.md` §7.9)."""
    words = _words(text)
    if "*" in words or "all" in words:
        return None
    return frozenset(int(word) for word in words if word.isascii() and word.isdigit() and int(word))


def _read_file(given: Mapping[str, Value], home: Path, notes: list[Note]) -> tuple[Path | None, dict[str, Value]]:
    named = str(given.get("config", ""))
    path = Path(named) if named else home / "config.json"
    try:
        content = config_file.load(path)
    except FileNotFoundError:
        if named:
            text = f"load config: open {path}: no such file or directory; correct -config or leave it out"
            raise ConfigError(text) from None
        return None, {}
    except config_file.ConfigFileError as exc:
        raise ConfigError(f"load config: {exc}") from exc
    values: dict[str, Value] = {}
    for key, value in content.items():
        flag = BY_KEY.get(key.replace("-", "_"))
        if flag is None:
            if key not in _KNOWN_OTHERS:
                notes.append(_unknown_key(path, key))
        elif value is not None:
            values[flag.name] = _from_json(flag, key, value, path)
    return path, values


def _unknown_key(path: Path, key: str) -> Note:
    import difflib  # rarely needed, and not cheap

    near = difflib.get_close_matches(key.replace("-", "_"), BY_KEY, n=1)
    hint: dict[str, object] = {"did_you_mean": near[0]} if near else {}
    return Note("config key is unknown and has no effect", {"key": key, "file": str(path), **hint})


def _from_json(flag: Flag, key: str, value: Any, path: Path) -> Value:
    """Read a JSON value as if its text had been given to the flag (`spec/services.md` §8.2)."""
    if isinstance(value, bool):
        text = str(value).lower() if flag.kind is Kind.BOOL else None
    elif isinstance(value, int | float):
        text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    else:
        text = value if isinstance(value, str) else None
    try:
        if text is None:
            raise ValueError
        return parse_value(flag, text)
    except ValueError:
        remedy = {
            Kind.TEXT: 'a text such as "…"',
            Kind.BOOL: "true or false",
            Kind.INT: "a whole number",
            Kind.DURATION: 'a duration with its unit such as "45s"',
        }[flag.kind]
        shown = quote(value) if isinstance(value, str) else f"{value}"
        raise ConfigError(f"load config: {path}: {key} is {shown}; give {remedy}") from None


def _from_environment(flag: Flag, environ: Mapping[str, str], notes: list[Note]) -> Value | None:
    text = environ.get(flag.env, "") if flag.env and not flag.ignored else ""
    if not text:
        return None
    if flag.name == "transport" and text not in _TRANSPORTS:
        notes.append(Note("ignoring unknown PILOT_TRANSPORT value", {"value": text, "valid": ", ".join(_TRANSPORTS)}))
        return None
    if flag.name == "dataexchange-max-frame":
        limit = frame_max(text)
        if str(limit) != text:
            notes.append(Note(f"ignoring {flag.env}", {"value": text, "using": limit}))
        return limit
    return text  # the other variables that are read all hold texts


def _check_transport(transport: str) -> None:
    if transport not in ("", *_TRANSPORTS):
        raise ConfigError(f"-transport: invalid transport {quote(transport)}: must be udp, compat or auto")
    if transport == "compat":
        raise ConfigError("-transport: the compat transport is not supported by this node; use udp or auto")


def _trust(text: str) -> Any:
    return text  # RegistryConfig refuses what it does not know, with the remedy


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _endpoint(settings: Settings, name: str) -> Endpoint | None:
    text = settings.text(name)
    return _parse(name, text) if text else None


def _parse(name: str, text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as exc:
        raise ConfigError(f"-{name}: {exc}") from exc


def _networks(text: str) -> tuple[tuple[int, ...], tuple[Note, ...]]:
    """Read `-networks`; a bad id is skipped and told of, so that one typo does not keep a node from starting."""
    good: list[int] = []
    notes: list[Note] = []
    for word in _words(text):
        if word.isascii() and word.isdigit() and len(word) <= _NETWORK_ID_DIGITS and int(word) <= 0xFFFF:
            good.append(int(word))
        else:
            notes.append(Note("invalid network ID skipped", {"value": word, "valid": "0 to 65535"}))
    return tuple(good), tuple(notes)
