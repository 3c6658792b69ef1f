"""Write the generated pages of the manual: limits and timeouts, from the constants themselves.

A limit is a module-level `NAME: Final = value  # unit; reason`. This reads the sources, so the page cannot disagree with
the code; a numeric constant without a comment is an error.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pilot_trio"
OUT = ROOT / "docs" / "reference" / "generated"


class Limit(NamedTuple):
    """One constant."""

    name: str
    value: str
    unit: str
    reason: str


def limits_of(path: Path) -> Iterator[Limit]:
    """Yield the numeric constants of one module, in order; raise `SystemExit` for one without a comment."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            continue
        if not ast.unparse(node.annotation).startswith("Final") or node.target.id.startswith("_"):
            continue
        if not _numeric(node.value):
            continue
        _, hash_sign, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
        if not hash_sign:
            sys.exit(f"{path.relative_to(ROOT)}:{node.lineno}: {node.target.id} has no `# unit; reason` comment")
        unit, semicolon, reason = comment.partition("; ")
        yield Limit(node.target.id, ast.unparse(node.value), *((unit, reason) if semicolon else ("", comment)))


def _numeric(value: ast.expr) -> bool:
    """Say whether an expression is arithmetic on literals."""
    if isinstance(value, ast.Constant):
        return isinstance(value.value, int | float) and not isinstance(value.value, bool)
    if isinstance(value, ast.BinOp):
        return _numeric(value.left) and _numeric(value.right)
    if isinstance(value, ast.Tuple):
        return bool(value.elts) and all(map(_numeric, value.elts))
    return False


def limits_page() -> str:
    """Return the Markdown of the page."""
    parts = [
        "# Limits and timeouts\n",
        "Every bound of the program, from the constants themselves. *Protocol* in a reason means that other programs",
        "rely on the value; the rest is our choice.\n",
    ]
    for path in sorted(PACKAGE.rglob("*.py")):
        limits = list(limits_of(path))
        if not limits:
            continue
        parts.append(f"\n## `{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}`\n")
        parts.append("| limit | value | unit | reason |\n|---|---|---|---|")
        parts += [f"| `{limit.name}` | {limit.value} | {_cell(limit.unit)} | {_cell(limit.reason)} |" for limit in limits]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write all generated pages."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "limits.md").write_text(limits_page())


if __name__ == "__main__":
    main()
