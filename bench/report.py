"""Rows of measurements: two daemons, several rounds, the ratio of the medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from enum import Enum, auto
from math import isfinite, isnan, nan

import attrs


class Better(Enum):
    """Which way is up."""

    LOWER = auto()
    HIGHER = auto()


@attrs.define
class Row:
    """One measurement, repeated. The advantage is how many times better ours is than theirs.

    A round that did not measure what the row says has the value `nan`, and makes the row invalid.
    """

    name: str
    unit: str
    better: Better = Better.LOWER
    bar: float | None = None  # an advantage below this is a defect
    moonshot: float | None = None
    at_most: float | None = None  # ours may not be more than this, whatever theirs is
    summary: Callable[[Sequence[float]], float] = statistics.median  # of the rounds
    ours: list[float] = attrs.field(factory=list)
    theirs: list[float] = attrs.field(factory=list)

    @property
    def our_value(self) -> float:
        return self._value(self.ours)

    @property
    def their_value(self) -> float:
        return self._value(self.theirs)

    def _value(self, rounds: Sequence[float]) -> float:
        return nan if any(map(isnan, rounds)) else self.summary(rounds)

    @property
    def failed(self) -> bool:
        return self.verdict.isupper()

    @property
    def advantage(self) -> float:
        """`nan` where there is no ratio: one of the two is zero, or no valid value."""
        worse, better = self.our_value, self.their_value
        if self.better is Better.HIGHER:
            worse, better = better, worse
        return better / worse if better and worse else nan

    @property
    def verdict(self) -> str:
        if isnan(self.our_value + self.their_value):
            return "INVALID"
        if self.at_most is not None and self.our_value > self.at_most:
            return "ABOVE THE LIMIT"
        if self.moonshot is not None and self.advantage >= self.moonshot:
            return "moonshot"
        if self.bar is None:
            return "" if self.at_most is None else "ok"
        return "ok" if self.advantage >= self.bar else "BELOW THE BAR"


def spread(values: Sequence[float]) -> str:
    return f"{_short(min(values))}-{_short(max(values))}"


def render(rows: Sequence[Row]) -> str:
    lines = [
        f"{'measurement':44} {'unit':6} {'ours':>9} {'theirs':>9} {'ratio':>7} {'bar':>5} {'moon':>5}  {'':15} ours/theirs spread"
    ]
    for row in rows:
        if not row.ours or not row.theirs:
            continue
        lines.append(
            f"{row.name:44} {row.unit:6} {_short(row.our_value):>9} {_short(row.their_value):>9}"
            f" {_ratio(row.advantage):>7} {_optional(row.bar):>5} {_optional(row.moonshot):>5}  {row.verdict:15}"
            f" {spread(row.ours)} / {spread(row.theirs)}"
        )
    return "\n".join(lines)


def render_markdown(rows: Sequence[Row]) -> str:
    """Return the table for docs/performance.md; rows that fail are bold."""
    lines = ["| measurement | unit | ours | original | advantage | bar |", "|---|---|---|---|---|---|"]
    for row in rows:
        if not row.ours or not row.theirs:
            continue
        bar = f"at most {row.at_most:g}" if row.at_most is not None else f"{row.bar:g}x" if row.bar is not None else ""
        ours = f"**{_short(row.our_value)}**" if row.failed else _short(row.our_value)
        theirs = _short(row.their_value)
        lines.append(f"| {row.name} | {row.unit} | {ours} | {theirs} | {_ratio(row.advantage)} | {bar} |")
    return "\n".join(lines)


def _ratio(value: float) -> str:
    return f"{value:.2f}x" if isfinite(value) else ""


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
