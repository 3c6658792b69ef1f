"""`pilot-trio`: which command lives where, and what happens around every command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pilot_trio.address import quote
from pilot_trio.cli.grammar import HELP_FLAGS, take_globals
from pilot_trio.cli.output import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, CliError, Output
from pilot_trio.cli.session import PROGRAM, Session

if TYPE_CHECKING:
    from pilot_trio.cli.click_view import Root
    from pilot_trio.cli.framework import PilotCommand, PilotSubgroup

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
# Commands of the reference's that there are none of here, and what to do instead (`spec/cli.md` §1.2).
_VENDOR: Final = "it belongs to the vendor of the original; nothing here needs it"
_POLICIES: Final = (
    "the rules of managed networks are stored and shown by the daemon, not enforced; programs reach them by the driver"
)
_ADMINISTRATION: Final = "it administers managed networks at the vendor's registry; ours keeps no such records"
_FOREIGN: Final = {
    "quickstart": f"try: {PROGRAM} up",
    **dict.fromkeys(("appstore", "skills", "review", "update", "updates", "verify", "recovery"), _VENDOR),
    "trusted": f"no node is trusted by default; see: {PROGRAM} trust",
    "gateway": "the gateway is a program of its own, which works with this daemon, too: pilot-gateway",
    **dict.fromkeys(("managed", "policy", "member-tags"), _POLICIES),
    **dict.fromkeys(
        (
            *("audit", "audit-export", "idp", "provision", "provision-status", "deprovision"),
            *("directory-sync", "directory-status"),
        ),
        _ADMINISTRATION,
    ),
}
COMPLETE_VARIABLE: Final = "_PILOT_TRIO_COMPLETE"  # set by the shell's completion function


def load(name: str) -> PilotCommand | PilotSubgroup | None:
    """Return a command; None if there is none of that name."""
    module = MODULES.get(name)
    if module is None:
        return None
    loaded = importlib.import_module(f"pilot_trio.cli.commands.{module}")
    found: PilotCommand | PilotSubgroup = loaded.COMMANDS[name]
    return found


def root() -> Root:
    """Return the program as click sees it."""
    from pilot_trio.cli.click_view import Root

    return Root(list(MODULES), load)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if COMPLETE_VARIABLE in os.environ:
        root().main(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    flags, words = take_globals(sys.argv[1:] if argv is None else argv)
    output = Output(as_json=flags.as_json, verbose=flags.verbose)
    try:
        return _dispatch(words, output)
    except CliError as exc:
        output.error(exc)
        return EXIT_FAILURE
    except UnicodeEncodeError as exc:
        # Words that are no UTF-8 stay what they are as file names and data; names and texts of the protocol cannot be such.
        output.error(CliError("invalid_argument", f"{quote(exc.object)} is not UTF-8"))
        return EXIT_FAILURE
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\n")  # after the terminal's ^C
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def _dispatch(words: list[str], output: Output) -> int:
    if words and words[0] == "extras" and len(words) > 1:
        words = words[1:]  # the reference keeps some commands behind this word
    if not words:
        sys.stderr.write(root().usage() + "\n")
        return EXIT_USAGE
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] in HELP_FLAGS:
        sys.stdout.write(root().usage() + "\n")
        return 0
    if words[0] == "--version":
        words = ["version"]  # where everybody looks first
    name, rest = words[0], words[1:]
    found = load(name)
    if found is None:
        return _unknown(name, output)
    from pilot_trio.cli.framework import HelpWanted  # loaded with the command

    try:
        return found.run(Session(output, os.environ), f"{PROGRAM} {name}", rest)
    except HelpWanted as wanted:
        from pilot_trio.cli.click_view import help_text

        sys.stderr.write(help_text(wanted.declared, wanted.path) + "\n")
        return 0


def _unknown(name: str, output: Output) -> int:
    if name in _FOREIGN:
        output.error(CliError("not_supported", f"{name}: {PROGRAM} has no such command", _FOREIGN[name]))
        return EXIT_FAILURE
    import difflib  # rarely needed

    near = difflib.get_close_matches(name, MODULES, n=1)
    hint = f"did you mean: {PROGRAM} {near[0]}" if near else f"run '{PROGRAM} --help' for the list of commands"
    output.error(CliError("invalid_argument", f"unknown command: {name}", hint))
    if output.as_json:
        return EXIT_FAILURE
    return EXIT_USAGE
