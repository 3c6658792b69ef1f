"""What click does for the command line: help texts, and completion for shells. It gets our declarations as its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import click

from pilot_trio.cli.framework import Argument, Option, PilotCommand, PilotSubgroup
from pilot_trio.cli.session import PROGRAM

_WIDTH_MAX: Final = 100  # columns of a help text
_SETTINGS: Final[dict[str, Any]] = {
    "help_option_names": list[str](),
    "max_content_width": _WIDTH_MAX,
}  # --help is the grammar's affair

Declared = PilotCommand | PilotSubgroup


class Root(click.Group):
    """The program; its commands are loaded when they are named."""

    def __init__(self, names: list[str], load: Callable[[str], Declared | None]) -> None:
        super().__init__(
            PROGRAM,
            help="A Pilot Protocol node: run one, ask one, and exchange data through it.",
            params=[
                click.Option(["--json"], is_flag=True, help="One JSON object as output; may stand anywhere."),
                click.Option(["-v", "--verbose"], is_flag=True, help="Say what happens inside."),
            ],
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH_MAX},
            no_args_is_help=False,
            epilog="Try: pilot-trio up   (a node with its own rendezvous, nothing to configure)",
        )
        self._names = names
        self._load = load

    def usage(self) -> str:
        """Return the program's help."""
        return self.get_help(click.Context(self, info_name=PROGRAM, max_content_width=_WIDTH_MAX))

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return self._names

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        declared = self._load(cmd_name)
        return None if declared is None else _as_click(declared)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self._names:
            declared = self._load(name)
            assert declared is not None
            row = (name, _as_click(declared).get_short_help_str(limit=70))
            sections.setdefault(declared.section, []).append(row)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def help_text(declared: Declared, path: str) -> str:
    """Return the help of a command; `path` is how it was called."""
    found = _as_click(declared)
    return found.get_help(click.Context(found, info_name=path, **_SETTINGS))


class _Command(click.Command):
    """A command of ours."""

    def __init__(self, declared: PilotCommand) -> None:
        parameters = [] if declared.parameters is None else map(_parameter, declared.parameters)
        super().__init__(
            declared.name, help=inspect.cleandoc(declared.help), params=list(parameters), context_settings=_SETTINGS
        )
        self._pieces = declared.pieces

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._pieces:
            formatter.write_usage(ctx.command_path, " ".join(self._pieces))
        else:  # the oldest click that we allow writes no line without words
            formatter.write(f"Usage: {ctx.command_path}\n")


def _as_click(declared: Declared) -> click.Command:
    if isinstance(declared, PilotCommand):
        return _Command(declared)
    members: dict[str, click.Command] = {name: _Command(member) for name, member in declared.commands.items()}
    return click.Group(
        declared.name, help=inspect.cleandoc(declared.help), commands=members, context_settings=_SETTINGS
    )


def _parameter(declared: Argument | Option) -> click.Parameter:
    if isinstance(declared, Argument):
        nargs = -1 if declared.many else 1
        return click.Argument([declared.name], metavar=declared.metavar, required=declared.required, nargs=nargs)
    if not declared.metavar:
        return click.Option([declared.flag], is_flag=True, help=declared.help)
    return click.Option(
        [declared.flag],
        metavar=declared.metavar,
        default=declared.default,
        show_default=declared.show_default,
        help=declared.help,
    )
