"""How a command is declared: click's commands with the protocol's grammar, texts and errors.

@command("find", section="Discovery")
@argument("hostname")
def find(session: Session, hostname: str) -> None:
    '''Say which node has a name.'''
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from pilot_trio.address import quote
from pilot_trio.cli.durations import parse_duration
from pilot_trio.cli.grammar import HELP_FLAGS, normalise
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT

_INT_DIGITS_MAX: Final = 18  # more would not fit the 64 bits that the reference reads

_SETTINGS: Final = {"help_option_names": list[str](), "max_content_width": 100}  # help flags are the grammar's affair

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


class PilotCommand(click.Command):
    """A command whose words are read by the protocol's grammar."""

    def __init__(self, *args: Any, section: str = "Other", **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "context_settings": {**_SETTINGS, "allow_extra_args": True}})
        self.section = section

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # completion: words may be half-written
            return super().parse_args(ctx, args)
        if HELP_FLAGS.intersection(args):
            click.echo(self.get_help(ctx), err=True)
            ctx.exit(0)
        flags = {
            name.lstrip("-"): option.is_flag
            for option in self.params
            if isinstance(option, click.Option)
            for name in option.opts
        }
        words, unknown = normalise(args, flags)
        for name in unknown:
            ctx.obj.output.note(f"warning: {ctx.info_name} has no flag {name}; ignored")
        try:
            left = super().parse_args(ctx, words)
        except click.UsageError as exc:
            raise CliError("invalid_argument", f"usage: {usage(ctx)}") from exc
        for word in left:
            ctx.obj.output.note(f"warning: {ctx.info_name} does not need {quote(word)}; ignored")
        return left

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if pieces := _pieces(self):
            formatter.write_usage(ctx.command_path, " ".join(pieces))
        else:
            formatter.write(
                f"Usage: {ctx.command_path}\n"
            )  # the oldest click that we allow writes no line without words


class PilotSubgroup(click.Group):
    """A command with subcommands."""

    def __init__(self, *args: Any, section: str = "Other", **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "context_settings": _SETTINGS})
        self.section = section

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            if args and args[0] in HELP_FLAGS:
                click.echo(self.get_help(ctx), err=True)
                ctx.exit(0)
            hint = f"available: {', '.join(self.commands)}"
            if not args:
                raise CliError("invalid_argument", f"usage: {ctx.command_path} <subcommand>", hint)
            if args[0] not in self.commands:
                raise CliError("invalid_argument", f"unknown {self.name} subcommand: {args[0]}", hint)
        return super().parse_args(ctx, args)


class DurationType(click.ParamType):  # type: ignore[type-arg]  # a class to subscript only in the newest click
    """Go's durations; a bare number is seconds."""

    name = "dur"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        del ctx
        if not isinstance(value, str):
            return float(value)
        try:
            return float(value) if _is_decimal(value) else parse_duration(value)
        except ValueError as exc:
            raise CliError("invalid_argument", f"invalid duration for {_flag(param)}: {exc}") from exc


class IntType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A decimal integer."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        del ctx
        if not isinstance(value, str):
            return int(value)
        try:
            return parse_int(value, "strconv.Atoi")
        except ValueError as exc:
            raise CliError("invalid_argument", f"invalid integer for {_flag(param)}: {exc}") from exc


DURATION: Final = DurationType()
INT: Final = IntType()


def command(name: str, *, section: str) -> Callable[[Callback], PilotCommand]:
    """Declare a command; its function gets the session first. The docstring is its help."""

    def declare(function: Callback) -> PilotCommand:
        made: PilotCommand = click.command(name, cls=PilotCommand, section=section)(click.pass_obj(function))
        return made

    return declare


def argument(
    name: str, metavar: str = "", *, required: bool = True, many: bool = False
) -> Callable[[Callback], Callback]:
    """Declare a positional word; `metavar` is what the usage line calls it."""
    return click.argument(
        name,
        metavar=f"<{metavar or name}>" if required else f"[{metavar or name}]",
        required=required,
        nargs=-1 if many else 1,
    )


def option(
    name: str, help_: str, metavar: str = "text", *, default: str | None = None
) -> Callable[[Callback], Callback]:
    """Declare a flag with a text."""
    return click.option(f"--{name}", metavar=f"<{metavar}>", default=default, help=help_)


def switch(name: str, help_: str) -> Callable[[Callback], Callback]:
    """Declare a flag without a value."""
    return click.option(f"--{name}", is_flag=True, help=help_)


def count(name: str, help_: str, default: int | None = None) -> Callable[[Callback], Callback]:
    """Declare a flag with a number."""
    return click.option(
        f"--{name}", type=INT, metavar="<n>", default=default, show_default=default is not None, help=help_
    )


def duration(name: str, help_: str) -> Callable[[Callback], Callback]:
    """Declare a flag with a duration; None if it is not given."""
    return click.option(f"--{name}", type=DURATION, metavar="<dur>", help=help_)


def timeout(
    default: str = f"{REQUEST_TIMEOUT:g}s", help_: str = "longest wait for the daemon"
) -> Callable[[Callback], Callback]:
    """Declare `--timeout`; the function gets seconds."""
    return click.option(
        "--timeout", type=DURATION, metavar="<dur>", default=default, show_default=bool(default), help=help_
    )


def usage(ctx: click.Context) -> str:
    """Return a command's usage line: arguments, then flags."""
    return " ".join([ctx.command_path, *_pieces(ctx.command)])


def describe(declared: click.Command) -> dict[str, Any]:
    """Return a command's entry in the catalogue for programs."""
    help_ = " ".join((declared.help or "").split())
    return {"args": list(_pieces(declared)), "description": help_, "returns": RETURNS.get(str(declared.name), "")}


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


def _flag(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None else "value"


def _pieces(declared: click.Command) -> Sequence[str]:
    arguments = [
        str(p.metavar) + ("..." if p.nargs == -1 else "") for p in declared.params if isinstance(p, click.Argument)
    ]
    flags = [
        f"[{p.opts[0]}]" if p.is_flag else f"[{p.opts[0]} {p.metavar}]"
        for p in declared.params
        if isinstance(p, click.Option)
    ]
    return [*arguments, *flags]


def stdin_bytes() -> bytes:
    """Return piped standard input, lines joined by newlines and the last newline dropped; nothing at a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return b"\n".join(sys.stdin.buffer.read().splitlines())
