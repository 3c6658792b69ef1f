"""What a command prints: one JSON envelope for programs, or lines for people (`spec/cli.md` §4)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from pilot_trio.wire import canonical_json

EXIT_FAILURE: Final = 1  # protocol, `spec/cli.md` §4.2
EXIT_USAGE: Final = 2  # the same; the command line was not understood
EXIT_INTERRUPTED: Final = 130  # what a shell reports for SIGINT

_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class CliError(Exception):
    """A command failed. `code` is one of the protocol's (`spec/cli.md` §4.3), `extra` goes into the JSON object."""

    def __init__(self, code: str, message: str, hint: str = "", *, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.extra = dict(extra or {})


class Output:
    """The two streams of one command, and whether a program or a person reads them."""

    def __init__(
        self, *, as_json: bool, verbose: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self.terminal = not as_json and self._stdout.isatty()
        self.coloured = self.terminal and not (os.environ.get("NO_COLOR") or os.environ.get("PILOT_NO_COLOR"))

    def result(self, data: Mapping[str, Any], human: Callable[[], None] | None = None) -> None:
        """Print a command's result; `human` prints it for people, by default it is indented JSON."""
        if self.as_json:
            self.event({"data": data, "status": "ok"})
        elif human is not None:
            human()
        else:
            self.line(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False))

    def event(self, data: Mapping[str, Any]) -> None:
        """Print one bare JSON object on a line of its own."""
        self.line(canonical_json.dumps(data).decode())

    def line(self, text: str = "") -> None:
        """Print a line at once: whoever reads a pipe sees it when it happens."""
        self._stdout.write(f"{text}\n")
        self._stdout.flush()

    def data(self, data: bytes) -> None:
        """Print what a peer sent: text as a line, other bytes unchanged, so that they survive a pipe."""
        try:
            self.line(data.decode())
        except UnicodeDecodeError:
            self._stdout.flush()
            self._stdout.buffer.write(data)
            self._stdout.buffer.flush()

    def note(self, text: str) -> None:
        """Tell a person something aside; programs do not see it."""
        if not self.as_json:
            self._stderr.write(f"{text}\n")
            self._stderr.flush()

    def detail(self, text: str) -> None:
        """Tell what happens inside, if `--verbose` asks for it."""
        if self.verbose:
            self._stderr.write(f"{text}\n")

    def error(self, error: CliError) -> None:
        """Print why a command failed."""
        if self.as_json:
            body: dict[str, Any] = {**error.extra, "code": error.code, "error": error.message, "message": error.message}
            if error.hint:
                body["hint"] = error.hint
            self._stderr.write(canonical_json.dumps({**body, "status": "error"}).decode() + "\n")
        else:
            self._stderr.write(f"error: {error.message}\n" + (f"hint:  {error.hint}\n" if error.hint else ""))
        self._stderr.flush()

    def styled(self, text: str, style: str) -> str:
        """Return `text` in bold, a colour, … if a person sees it on a terminal that wants it."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.coloured else text

    def state(self, good: bool, text: str) -> str:
        """Return a headline with a full or an empty dot."""
        return f"{self.styled('●', 'green') if good else self.styled('○', 'dim')} {self.styled(text, 'bold')}"

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows below headings: fitted to the terminal if there is one, else in columns of fixed width."""
        cells = [[str(cell) for cell in row] for row in rows]
        if self.coloured:
            self._rich_table(columns, cells)
            return
        widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
        for row in [list(columns), *cells]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def _rich_table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        from rich.console import Console  # for people at a terminal alone; it takes longer to load than the rest
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self._stdout).print(table)

    @contextmanager
    def progress(self, title: str, total: float) -> Generator[Callable[[float], None]]:
        """Show a bar while something takes its time; yield the function that says how far it is.

        Only people at a terminal see it, on standard error, so that it never mixes with the result.
        """
        if self.as_json or not (self.terminal and self._stderr.isatty()):
            yield lambda _done: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(file=self._stderr)
        layout = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*layout, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)


def format_bytes(count: float) -> str:
    """Return a size as people read it: `1000 B`, `2.0 KB` (1024 bytes each)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def format_clock(seconds: float) -> str:
    """Return a span as `00:02:07`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
