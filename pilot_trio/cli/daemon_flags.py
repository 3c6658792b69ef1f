"""The daemon's flags: one table from which parsing, help text, configuration keys and the manual's table come.

The grammar is Go's (`spec/cli.md` §9.1): `-x v`, `-x=v` and `--x` are equal, a boolean takes its value only after `=`, and
the first word that is not a flag ends the flags. Nothing here is heavy to import: `-help` is run before every start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from pilot_trio.address import quote
from pilot_trio.cli.durations import format_duration, parse_duration
from pilot_trio.wire.dataexchange import FRAME_MAX_DEFAULT

Value = str | bool | int | float

_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INT: Final = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])+|0|[1-9](?:_?[0-9])*)", re.ASCII
)
_INT_DIGITS_MAX: Final = 80  # a longer number is out of range whatever its base


class FlagError(Exception):
    """The command line cannot be understood; the text is the first line that the reference prints."""


class Kind(Enum):
    """The type of a flag's value, spelled as the help text spells it."""

    TEXT = "string"
    BOOL = ""
    INT = "int"
    DURATION = "duration"


class Flag(NamedTuple):
    """One flag. `env` is the variable that may set it too; `ignored` ones are accepted and do nothing."""

    name: str
    kind: Kind
    default: Value
    usage: str
    env: str = ""
    env_beats_config: bool = False  # `spec/services.md` §8.2: these five only
    ignored: bool = False
    public: bool = True  # False: no configuration key, no row in the manual

    @property
    def key(self) -> str:
        """The flag's name in a configuration file."""
        return self.name.replace("-", "_")


def _text(name: str, usage: str, default: str = "", *, env: str = "", env_beats_config: bool = False) -> Flag:
    return Flag(name, Kind.TEXT, default, usage, env, env_beats_config)


def _switch(name: str, usage: str, *, default: bool = False, env: str = "") -> Flag:
    return Flag(name, Kind.BOOL, default, usage, env)


def _count(name: str, usage: str, default: int) -> Flag:
    return Flag(name, Kind.INT, default, usage)


def _time(name: str, usage: str, default: float) -> Flag:
    return Flag(name, Kind.DURATION, default, usage)


def _ignored(flag: Flag, why: str) -> Flag:
    return flag._replace(ignored=True, usage=f"accepted for compatibility, no effect: {why}")


DEFAULT_REGISTRY: Final = "34.71.57.205:9000"  # the public registry; protocol default
DEFAULT_BEACON: Final = "34.71.57.205:9001"  # the public beacon; protocol default

_NO_VENDOR: Final = "this node sends no telemetry, fetches no feeds and edits no other programs' files"

FLAGS: Final[tuple[Flag, ...]] = (
    _text("admin-token", "admin token for broadcasts and network administration", env="PILOT_ADMIN_TOKEN"),
    _text("advertise-endpoint", "endpoint (host:port) to register in place of the discovered one"),
    _text("beacon", "beacon address host:port, or several with commas", DEFAULT_BEACON, env="PILOT_BEACON"),
    _ignored(_switch("beacon-rtt-probe", ""), "an experiment of the original"),
    _ignored(_text("compat-beacon", ""), "the compat transport is not supported"),
    Flag("config", Kind.TEXT, "", "JSON configuration file (default ~/.pilot/config.json, if it exists)", public=False),
    _switch("dataexchange-b64", "store received messages as base64 (data_b64) in place of text"),
    Flag(
        "dataexchange-max-frame",
        Kind.INT,
        FRAME_MAX_DEFAULT,
        "bytes of the largest message, or file in one piece, that is taken",
        env="PILOT_DATAEXCHANGE_MAX_FRAME",
    ),
    _text("email", "owner's email address, as told to the registry"),
    _switch("encrypt", "encrypt tunnels", default=True),
    _text("endpoint", "own public endpoint (host:port); nothing is discovered then"),
    _switch("fail-fast", "exit if the registry cannot be reached at the start, instead of trying for ever"),
    Flag("help", Kind.BOOL, False, "print this help and exit", public=False),
    _text("hostname", "name to be found by (lowercase letters, digits, hyphens; at most 63)"),
    _text("identity", "key file; without it the identity lasts for this run only and nothing is kept"),
    _time("idle-timeout", "time until an idle stream is closed", 120.0),
    _time("keepalive", "time between heartbeats", 60.0),
    _text("listen", "UDP address for tunnels", ":0"),
    _text("log-format", "log format: text or json", "text"),
    _count("log-max-backups", "compressed generations of the log to keep; 0 keeps none", 3),
    _count("log-max-size", "rotate the log above this many MB if it is a file below ~/.pilot; 0 never", 50),
    _text("log-level", "log level: debug, info, warn or error", "info"),
    _count("max-conns-per-port", "streams on one port", 1024),
    _count("max-conns-total", "streams in all", 65536),
    _ignored(_text("motd-feed-url", "", env="PILOT_MOTD_URL"), _NO_VENDOR),
    _ignored(_time("motd-interval", "", 900.0), _NO_VENDOR),
    _text("networks", "comma-separated ids of networks to join at start (needs -admin-token)"),
    _switch("no-addr-watch", "do not follow changes of the own address"),
    _switch("no-dataexchange", "do not run the data exchange service (port 1001)"),
    _switch("no-echo", "do not run the echo service (port 7)"),
    _switch("no-eventstream", "do not run the event stream service (port 1002)"),
    _switch("no-path-watch", "do not probe the paths to peers that have fallen silent"),
    _switch("no-rx-watchdog", "do not register anew when nothing is received"),
    _ignored(_switch("no-skillinject", "", env="PILOT_NO_SKILLINJECT"), _NO_VENDOR),
    _text("owner", "old name of -email"),
    _ignored(_text("pprof", ""), "a profiler of the original"),
    _ignored(
        _text("proxy", "", "auto", env="PILOT_PROXY", env_beats_config=True), "only the compat transport uses a proxy"
    ),
    _ignored(
        _text("proxy-cmd", "", env="PILOT_PROXY_CMD", env_beats_config=True), "only the compat transport uses a proxy"
    ),
    _switch("public", "let everybody see this node's endpoint (default: trusted nodes only)"),
    _text("registry", "registry address host:port", DEFAULT_REGISTRY, env="PILOT_REGISTRY"),
    _text(
        "registry-fingerprint",
        "SHA-256 of the registry's certificate, in hex",
        env="PILOT_REGISTRY_FINGERPRINT",
        env_beats_config=True,
    ),
    _switch("registry-tls", "speak TLS with the registry"),
    _text(
        "registry-trust",
        "what makes the registry's certificate acceptable: 'pinned' (its fingerprint) or 'system' (the authorities)",
        "pinned",
        env="PILOT_REGISTRY_TRUST",
        env_beats_config=True,
    ),
    _text("rekey-whitelist", "node ids, or *, that may ask for keys without a limit", env="PILOT_REKEY_WHITELIST"),
    _switch("relay-only", "hide the own endpoint; others come through a beacon"),
    _text("reply-whitelist", "node ids, or *, whose repeated keys are always answered", env="PILOT_REPLY_WHITELIST"),
    _ignored(_switch("sandbox", ""), "confine the process with the service manager instead"),
    _ignored(_text("sandbox-dir", ""), "confine the process with the service manager instead"),
    _ignored(
        _text("security-profile", "", "compatible", env="PILOT_SECURITY_PROFILE"), "a preset of the original's flags"
    ),
    _text("socket", "Unix socket for local programs (default $XDG_RUNTIME_DIR/pilot.sock, else /tmp/pilot.sock)"),
    _switch(
        "strict-dataplane-trust",
        "while private, agree on keys with trusted nodes only",
        env="PILOT_STRICT_DATAPLANE_TRUST",
    ),
    _count("syn-rate-limit", "stream openings per second from others", 100),
    _text("syn-whitelist", "node ids, or *, that may open streams without a limit", env="PILOT_SYN_WHITELIST"),
    _ignored(_text("telemetry-url", "", env="PILOT_TELEMETRY_URL"), _NO_VENDOR),
    _time("time-wait", "time that a closed stream's ports stay reserved", 10.0),
    _ignored(_text("tls-trust", "", "system"), "the compat transport is not supported"),
    _text(
        "transport",
        "tunnel transport: 'udp' or 'auto' (which is udp here); 'compat' is refused",
        "udp",
        env="PILOT_TRANSPORT",
        env_beats_config=True,
    ),
    _switch("trust-auto-approve", "approve every request for trust"),
    Flag("version", Kind.BOOL, False, "print the version and exit", public=False),
    _text("webhook", "URL that events are posted to"),
    _text("webhook-secret", "key of the signature on each posted event", env="PILOT_WEBHOOK_SECRET"),
)
BY_NAME: Final = {flag.name: flag for flag in FLAGS}
BY_KEY: Final = {flag.key: flag for flag in FLAGS if flag.public}


def parse_value(flag: Flag, text: str) -> Value:
    """Turn a flag's text into its value; raise `ValueError` with the reference's words if that is not possible."""
    if flag.kind is Kind.TEXT:
        return text
    if flag.kind is Kind.BOOL:
        if text not in _TRUE | _FALSE:
            raise ValueError("parse error")
        return text in _TRUE
    if flag.kind is Kind.DURATION:
        try:
            return parse_duration(text)
        except ValueError as exc:
            raise ValueError("parse error") from exc
    return _parse_int(text)


def parse_argv(argv: Sequence[str]) -> dict[str, Value]:
    """Return the flags given, by name; the last of several wins, words after the flags are dropped.

    Raises:
      FlagError: unknown flag, missing or bad value.
    """
    given: dict[str, Value] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if len(word) < 2 or not word.startswith("-") or word == "--":
            break
        name, equals, text = word[1:].removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {word}")
        flag = BY_NAME["help"] if name == "h" else BY_NAME.get(name)
        if flag is None:
            raise FlagError(f"flag provided but not defined: -{name}")
        if not equals:
            if flag.kind is Kind.BOOL:
                text = "true"
            elif words:
                text = words.pop(0)
            else:
                raise FlagError(f"flag needs an argument: -{name}")
        try:
            given[flag.name] = parse_value(flag, text)
        except ValueError as exc:
            what = "boolean value" if flag.kind is Kind.BOOL else "value"
            join = "for" if flag.kind is Kind.BOOL else "for flag"
            raise FlagError(f"invalid {what} {quote(text)} {join} -{name}: {exc}") from exc
        if flag.name in ("help", "version") and given[flag.name]:
            break  # whatever follows need not make sense
    return given


def help_text(program: str) -> str:
    """Return the help in the layout that the reference's command line reads (`spec/cli.md` §9.6)."""
    lines = [f"Usage of {program}:"]
    for flag in sorted(FLAGS):
        lines.append(f"  -{flag.name} {flag.kind.value}".rstrip())
        lines.append(f"    \t{flag.usage}{_default_note(flag)}")
    return "\n".join(lines) + "\n"


def markdown_table() -> str:
    """Return the manual's table of flags."""
    rows = ["| flag | type | default | environment | meaning |", "|---|---|---|---|---|"]
    for flag in sorted(FLAGS):
        if flag.public:
            default = f"`{_shown(flag)}`" if flag.default not in ("", False) else ""
            env = f"`{flag.env}`" if flag.env else ""
            rows.append(f"| `-{flag.name}` | {flag.kind.value or 'bool'} | {default} | {env} | {flag.usage} |")
    return "\n".join(rows) + "\n"


def _default_note(flag: Flag) -> str:
    if flag.default in ("", False) or flag.ignored:
        return ""
    return f" (default {quote(_shown(flag)) if flag.kind is Kind.TEXT else _shown(flag)})"


def _shown(flag: Flag) -> str:
    if flag.kind is Kind.DURATION:
        return format_duration(float(flag.default))
    return str(flag.default).lower() if flag.kind is Kind.BOOL else str(flag.default)


def _parse_int(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError("parse error")
    if len(text) > _INT_DIGITS_MAX:
        raise ValueError("value out of range")
    digits = text.replace("_", "").lstrip("+-")
    # A leading zero alone means octal in Go, which Python refuses.
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    value = int(digits, 8 if octal else 0) * (-1 if text.startswith("-") else 1)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("value out of range")
    return value
