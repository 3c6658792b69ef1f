"""How a command is declared, and how its words are read: the protocol's grammar, texts and errors.

@command("find", section="Discovery")
@argument("hostname")
def find(session: Session, hostname: str) -> None:
    '''Say which node has a name.'''

Click shows these declarations, as help and to shells that complete words (`click_view`). It does not read words: loading it
takes as long as all the rest of a command that asks the daemon one question.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pilot_trio.address import quote
from pilot_trio.cli.durations import parse_duration
from pilot_trio.cli.grammar import HELP_FLAGS, normalise
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session

_INT_DIGITS_MAX: Final = 18  # more would not fit the 64 bits that the reference reads

# What programs find in a command's `data`; commands that pass a reply through are not listed.
RETURNS: Final = {
    "info": "node_id, address, hostname, uptime_secs, peers, connections, ports, bytes_sent, bytes_recv, conn_list, peer_list",
    "health": "status, uptime_seconds, peers, connections, bytes_sent, bytes_recv",
    "peers": "peers [{node_id, encrypted, authenticated, relay}], total, encrypted",
    "connections": "connections, total",
    "disconnect": "conn_id",
    "ping": "target, to, timeout, results [{seq, bytes, rtt_ms} | {seq, error}]",
    "traceroute": "target, setup_ms, rtt_samples | error",
    "bench": "target, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, send_mbps, total_mbps, complete",
    "connect": "target, port, sent, response",
    "send": "target, port, sent, response",
    "recv": "messages [{seq, port, data, bytes}], timeout",
    "dgram": "target, port, bytes, confirmed",
    "listen": "messages [{src_addr, src_port, data, bytes}], timeout; without --count one object per line",
    "broadcast": "network_id, port, bytes",
    "send-message": "target, to, type, seq, bytes, ack, message_id, tagged, reused [, reply, reply_after_ms]",
    "inbox": "messages [{id, from, received_at, type, bytes, preview | data}], total, shown, dir",
    "send-file": "filename, bytes, bytes_sent, bytes_resumed, sha256, destination, elapsed_ms, throughput_mbps, verified",
    "received": "files [{name, bytes, modified, path}], total, shown, dir",
    "publish": "target, topic, bytes",
    "subscribe": "events [{topic, data, bytes}], timeout; without --count one object per line",
    "find": "hostname, node_id, address, public",
    "handshake": "node_id, status",
    "pending": "pending [{node_id, public_key, justification, received_at}]",
    "trust": "trusted [{node_id, public_key, mutual, network, approved_at}], total",
    "sign-request": "envelope, signature, address",
    "verify-request": "valid, node_id, address, verified_via, trusted | reason",
    "start": "node_id, address, pid, socket, hostname, log_file",
    "stop": "pid, forced",
    "status": "running, responsive, pid, pid_file, socket, node_id, address, hostname, uptime_secs, peers, connections",
}

Callback = Callable[..., int | None]
C = TypeVar("C", bound=Callback)


class Argument(NamedTuple):
    """A positional word; `many`: all that are left."""

    name: str
    metavar: str
    required: bool
    many: bool


class Option(NamedTuple):
    """A flag; without `metavar` it is a switch, which takes no value."""

    flag: str
    help: str
    metavar: str = ""
    default: Any = None
    show_default: bool = False
    convert: Callable[[str, str], Any] | None = None  # of the flag's name and its text; raises `CliError`

    @property
    def name(self) -> str:
        """What the function calls it."""
        return self.flag.lstrip("-").replace("-", "_")

    def value(self, text: Any) -> Any:
        """Return what a text means."""
        return self.convert(self.flag, text) if self.convert is not None and isinstance(text, str) else text


Parameter = Argument | Option

_declared: dict[Callback, list[Parameter]] = {}  # of functions that are not commands yet


class HelpWanted(Exception):
    """The words ask for the help of a command; `path` is how it was called. To show it is the program's business."""

    def __init__(self, declared: PilotCommand | PilotSubgroup, path: str) -> None:
        super().__init__(path)
        self.declared = declared
        self.path = path


class PilotCommand:
    """A command whose words are read by the protocol's grammar. `parameters` of None: they belong to another program."""

    def __init__(
        self, name: str, section: str, function: Callback, parameters: Sequence[Parameter] | None, pieces: str = ""
    ) -> None:
        self.name = name
        self.section = section
        self.help = function.__doc__ or ""
        self.parameters = parameters
        self._function = function
        self._pieces = pieces

    @property
    def pieces(self) -> list[str]:
        """What follows the command in its usage line: arguments, then flags."""
        if self.parameters is None:
            return [self._pieces]
        arguments = [p.metavar + ("..." if p.many else "") for p in self.parameters if isinstance(p, Argument)]
        options = [p for p in self.parameters if isinstance(p, Option)]
        return [*arguments, *(f"[{p.flag} {p.metavar}]" if p.metavar else f"[{p.flag}]" for p in options)]

    def run(self, session: Session, path: str, words: list[str]) -> int:
        """Carry the command out; `path` is how it was called. Return the exit code."""
        if self.parameters is None:
            return self._function(session, words) or 0
        if HELP_FLAGS.intersection(words):
            raise HelpWanted(self, path)
        return self._function(session, **self._read(self.parameters, session, path, words)) or 0

    def _read(self, parameters: Sequence[Parameter], session: Session, path: str, words: list[str]) -> dict[str, Any]:
        name = path.rpartition(" ")[2]
        options = {p.flag: p for p in parameters if isinstance(p, Option)}
        flags, plain, unknown = normalise(words, {flag.lstrip("-"): not p.metavar for flag, p in options.items()})
        for flag in unknown:
            session.output.note(f"warning: {name} has no flag {flag}; ignored")
        values: dict[str, Any] = {p.name: p.value(p.default) for p in options.values()}
        for flag, text in flags:
            option = options[f"--{flag}"]
            values[option.name] = option.value(text) if option.metavar else True
        for argument in (p for p in parameters if isinstance(p, Argument)):
            if argument.required and not plain:
                raise CliError("invalid_argument", f"usage: {' '.join([path, *self.pieces])}")
            if argument.many:
                values[argument.name], plain = tuple(plain), []
            else:
                values[argument.name] = plain.pop(0) if plain else None
        for word in plain:
            session.output.note(f"warning: {name} does not need {quote(word)}; ignored")
        return values


class PilotSubgroup:
    """A command with subcommands."""

    def __init__(self, name: str, section: str, help_: str, members: Sequence[PilotCommand]) -> None:
        self.name = name
        self.section = section
        self.help = help_
        self.commands = {member.name: member for member in members}

    def run(self, session: Session, path: str, words: list[str]) -> int:
        """Carry out the subcommand that the first word names."""
        if words and words[0] in HELP_FLAGS:
            raise HelpWanted(self, path)
        hint = f"available: {', '.join(self.commands)}"
        if not words:
            raise CliError("invalid_argument", f"usage: {path} <subcommand>", hint)
        member = self.commands.get(words[0])
        if member is None:
            raise CliError("invalid_argument", f"unknown {self.name} subcommand: {words[0]}", hint)
        return member.run(session, f"{path} {words[0]}", words[1:])


def command(name: str, *, section: str) -> Callable[[Callback], PilotCommand]:
    """Declare a command; its function gets the session first. The docstring is its help."""
    return lambda function: PilotCommand(name, section, function, _declared.pop(function, []))


def pass_through(name: str, pieces: str, *, section: str) -> Callable[[Callback], PilotCommand]:
    """Declare a command whose words, `pieces` in the usage line, belong to another program; its function gets them as a list."""
    return lambda function: PilotCommand(name, section, function, None, pieces)


def argument(name: str, metavar: str = "", *, required: bool = True, many: bool = False) -> Callable[[C], C]:
    """Declare a positional word; `metavar` is what the usage line calls it."""
    shown = f"<{metavar or name}>" if required else f"[{metavar or name}]"
    return _declare(Argument(name, shown, required, many))


def option(name: str, help_: str, metavar: str = "text", *, default: str | None = None) -> Callable[[C], C]:
    """Declare a flag with a text."""
    return _declare(Option(f"--{name}", help_, f"<{metavar}>", default))


def switch(name: str, help_: str) -> Callable[[C], C]:
    """Declare a flag without a value."""
    return _declare(Option(f"--{name}", help_, default=False))


def count(name: str, help_: str, default: int | None = None) -> Callable[[C], C]:
    """Declare a flag with a number."""
    return _declare(Option(f"--{name}", help_, "<n>", default, default is not None, _read_int))


def duration(name: str, help_: str) -> Callable[[C], C]:
    """Declare a flag with a duration (Go's form; a bare number is seconds); None if it is not given."""
    return _declare(Option(f"--{name}", help_, "<dur>", convert=read_duration))


def timeout(default: str = f"{REQUEST_TIMEOUT:g}s", help_: str = "longest wait for the daemon") -> Callable[[C], C]:
    """Declare `--timeout`; the function gets seconds."""
    return _declare(Option("--timeout", help_, "<dur>", default, bool(default), read_duration))


def _declare(parameter: Parameter) -> Callable[[C], C]:
    def declare(function: C) -> C:
        _declared.setdefault(function, []).insert(0, parameter)  # decorators are applied from the last to the first
        return function

    return declare


def read_duration(flag: str, text: str) -> float:
    """Read the value of a flag as a duration; a bare number is seconds."""
    try:
        return float(text) if _is_decimal(text) else parse_duration(text)
    except ValueError as exc:
        raise CliError("invalid_argument", f"invalid duration for {flag}: {exc}") from exc


def _read_int(flag: str, text: str) -> int:
    try:
        return parse_int(text, "strconv.Atoi")
    except ValueError as exc:
        raise CliError("invalid_argument", f"invalid integer for {flag}: {exc}") from exc


def describe(declared: PilotCommand) -> dict[str, Any]:
    """Return a command's entry in the catalogue for programs."""
    help_ = " ".join(declared.help.split())
    return {"args": declared.pieces, "description": help_, "returns": RETURNS.get(declared.name, "")}


def parse_int(text: str, function: str) -> int:
    """Read a decimal integer; raise `ValueError` with the reference's words."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    prefix = f"{function}: parsing {quote(text)}: "
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(prefix + "invalid syntax")
    if len(digits.lstrip("0")) > _INT_DIGITS_MAX:
        raise ValueError(prefix + "value out of range")
    return int(text)


def parse_uint(text: str, maximum: int, what: str) -> int:
    """Read an unsigned integer up to `maximum`; raise `CliError` that calls it `what`."""
    try:
        if text[:1] in ("-", "+"):
            raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax")
        value = parse_int(text, "strconv.ParseUint")
        if value > maximum:
            raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    except ValueError as exc:
        raise CliError("invalid_argument", f"invalid {what}: {exc}") from exc
    return value


def parse_port(text: str) -> int:
    """Read a port."""
    return parse_uint(text, 0xFFFF, f"port {quote(text)}")


def _is_decimal(text: str) -> bool:
    body = text[1:] if text[:1] in ("-", "+") else text
    return body.isascii() and body.replace(".", "", 1).isdigit()


def stdin_bytes() -> bytes:
    """Return piped standard input, lines joined by newlines and the last newline dropped; nothing at a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return b"\n".join(sys.stdin.buffer.read().splitlines())
