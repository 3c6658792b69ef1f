"""`pilot-trio`: which command lives where, and what happens around every command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from pilot_trio.cli.framework import PilotCommand
from pilot_trio.cli.grammar import HELP_FLAGS, take_globals
from pilot_trio.cli.output import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, CliError, Output
from pilot_trio.cli.session import PROGRAM, Session

# Command → module below `commands`, so that a command loads its own module alone.
MODULES: Final = {
    "up": "up",
    "daemon": "lifecycle",
    "rendezvous": "rendezvous",
    "info": "state",
    "health": "state",
    "peers": "state",
    "connections": "state",
    "disconnect": "state",
    "ping": "probing",
    "traceroute": "probing",
    "bench": "probing",
    "prefer-direct": "probing",
    "connect": "streams",
    "send": "streams",
    "recv": "streams",
    "dgram": "datagrams",
    "listen": "datagrams",
    "broadcast": "datagrams",
    "send-message": "messages",
    "inbox": "inbox",
    "send-file": "files",
    "received": "files",
    "publish": "events",
    "subscribe": "events",
    "find": "naming",
    "lookup": "naming",
    "set-hostname": "naming",
    "clear-hostname": "naming",
    "set-public": "naming",
    "set-private": "naming",
    "set-tags": "naming",
    "clear-tags": "naming",
    "register": "naming",
    "deregister": "naming",
    "rotate-key": "naming",
    "handshake": "trust",
    "pending": "trust",
    "approve": "trust",
    "reject": "trust",
    "untrust": "trust",
    "trust": "trust",
    "network": "network",
    "sign-request": "signing",
    "verify-request": "signing",
    "set-webhook": "webhook",
    "clear-webhook": "webhook",
    "init": "bootstrap",
    "config": "bootstrap",
    "version": "bootstrap",
    "context": "bootstrap",
    "completion": "bootstrap",
}
COMPLETE_VARIABLE: Final = "_PILOT_TRIO_COMPLETE"  # set by the shell's completion function


class PilotGroup(click.Group):
    """The root: commands are loaded when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        module = MODULES.get(cmd_name)
        if module is None:
            return None
        loaded = importlib.import_module(f"pilot_trio.cli.commands.{module}")
        found: click.Command = loaded.COMMANDS[cmd_name]
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            found = self.get_command(ctx, name)
            assert found is not None
            section = getattr(found, "section", "Other")
            sections.setdefault(section, []).append((name, found.get_short_help_str(limit=70)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


ROOT: Final = PilotGroup(
    PROGRAM,
    help="A Pilot Protocol node: run one, ask one, and exchange data through it.",
    params=[
        click.Option(
            ["--json"], is_flag=True, expose_value=False, help="One JSON object as output; may stand anywhere."
        ),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, help="Say what happens inside."),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
    epilog="Try: pilot-trio up   (a node with its own rendezvous, nothing to configure)",
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if COMPLETE_VARIABLE in os.environ:
        ROOT.main(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    flags, words = take_globals(sys.argv[1:] if argv is None else argv)
    output = Output(as_json=flags.as_json, verbose=flags.verbose)
    try:
        return _dispatch(words, output)
    except CliError as exc:
        output.error(exc)
        return EXIT_FAILURE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def _dispatch(words: list[str], output: Output) -> int:
    if words and words[0] == "extras" and len(words) > 1:
        words = words[1:]  # the reference keeps some commands behind this word
    if not words:
        sys.stderr.write(_usage() + "\n")
        return EXIT_USAGE
    if words[0] in HELP_FLAGS:
        sys.stdout.write(_usage() + "\n")
        return 0
    if words[0] == "--version":
        words = ["version"]  # where everybody looks first
    name, rest = words[0], words[1:]
    if name not in MODULES:
        return _unknown(name, output)
    found = ROOT.get_command(click.Context(ROOT), name)
    assert isinstance(found, PilotCommand | click.Group)
    parent = click.Context(ROOT, info_name=PROGRAM, obj=Session(output, os.environ))
    try:
        code = found.main(rest, prog_name=name, standalone_mode=False, parent=parent)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    return code if isinstance(code, int) else 0


def _unknown(name: str, output: Output) -> int:
    import difflib  # rarely needed

    near = difflib.get_close_matches(name, MODULES, n=1)
    hint = f"did you mean: {PROGRAM} {near[0]}" if near else f"run '{PROGRAM} --help' for the list of commands"
    output.error(CliError("invalid_argument", f"unknown command: {name}", hint))
    if output.as_json:
        return EXIT_FAILURE
    return EXIT_USAGE


def _usage() -> str:
    return ROOT.get_help(click.Context(ROOT, info_name=PROGRAM, max_content_width=100))
