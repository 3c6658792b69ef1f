"""Write the generated pages of the manual: limits and timeouts from the constants themselves, flags from their table.

A limit is a module-level `NAME: Final = value  # unit; reason`. This reads the sources, so the page cannot disagree with
the code; a numeric constant without a comment is an error.
"""

from __future__ import annotations

import ast
import importlib
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pilot_trio.cli import daemon_flags

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pilot_trio"
OUT = ROOT / "docs" / "reference" / "generated"

LIMITS_INTRO = """\
# Limits and timeouts

Every number that bounds, times or tunes the program, from the constants themselves. *Protocol* in a reason means that
other programs rely on the value; the rest is our choice.
"""
FLAGS_INTRO = """\
# Flags of the daemon

Of `pilot-trio-daemon`, from the table that parses them. `-x v`, `-x=v` and `--x=v` mean the same; a boolean takes a value
only after `=`. Each is a key of the configuration file too, with `_` in place of `-`.
"""


class Limit(NamedTuple):
    """One constant."""

    name: str
    value: str
    meaning: str


def limits_of(path: Path) -> Iterator[Limit]:
    """Yield the numeric constants of one module, in order; raise `SystemExit` for one without a comment."""
    text = path.read_text()
    comments = _comments(text)
    for node in ast.parse(text).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            continue
        if not ast.unparse(node.annotation).startswith("Final") or node.target.id.startswith("_"):
            continue
        if isinstance(node.value, ast.Call):  # made of something that has a name elsewhere
            continue
        value = getattr(importlib.import_module(_module(path)), node.target.id)
        if not _numeric(value):
            continue
        # The formatter puts the comment of a long constant inside its brackets, or behind them.
        comment = next((comments[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in comments), "")
        if not comment:
            sys.exit(f"{path.relative_to(ROOT)}:{node.lineno}: {node.target.id} has no `# unit; reason` comment")
        shown = ast.unparse(node.value) if _literal(node.value) else str(value)
        yield Limit(node.target.id, shown, comment)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _comments(text: str) -> dict[int, str]:
    """Return the comments of a source by line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _numeric(value: object) -> bool:
    """Say whether a value is a number, or several; members of enumerations have a meaning rather than a size."""
    if isinstance(value, tuple):
        return bool(value) and all(map(_numeric, value))
    return type(value) in (int, float)


def _literal(value: ast.expr) -> bool:
    """Say whether an expression can be read without knowing any name."""
    return not any(isinstance(part, ast.Name) for part in ast.walk(value))


def limits_page() -> str:
    """Return the Markdown of the page."""
    parts = [LIMITS_INTRO]
    for path in sorted(PACKAGE.rglob("*.py")):
        limits = list(limits_of(path))
        if limits:
            parts.append(f"\n## `{_module(path)}`\n")
            parts.append("| limit | value | what of, and why |\n|---|---|---|")
            parts += [f"| `{name}` | {value} | {_cell(meaning)} |" for name, value, meaning in limits]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write all generated pages."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "limits.md").write_text(limits_page())
    (OUT / "flags.md").write_text(f"{FLAGS_INTRO}\n{daemon_flags.markdown_table()}")


if __name__ == "__main__":
    main()
