"""Throughput by loss and delay, compared with a table in the repository: a change of performance is a difference to read.

To accept a change, run `python -m tests.proto.stream.test_netsim` and commit the table.
"""

from __future__ import annotations

import random
from pathlib import Path as File

import pytest

from .link import Link, Path

pytestmark = pytest.mark.simulation

TABLE = File(__file__).with_name("netsim_table.txt")
SIZES = {"own kind": 8 << 20, "reference window": 3 << 20}  # bytes per transfer: enough to leave the start behind
LOSSES = (0.0, 0.01, 0.05, 0.1)
DELAYS = (0.0005, 0.005, 0.02, 0.1)  # seconds each way
PEERS = {"own kind": False, "reference window": True}
TOLERANCE = 0.02  # of the table's figure: arithmetic of other Python versions, not other behaviour


def measure(delay: float, loss: float, *, as_reference: bool) -> float:
    """Return the goodput in MiB/s of virtual time."""
    link = Link(Path(delay=delay, loss=loss), seed=7)
    if as_reference:
        link.alter = lambda packet: packet._replace(window=min(512, packet.window))
    link.connect()
    started = link.now
    size = SIZES["reference window" if as_reference else "own kind"]
    data = random.Random(1).randbytes(size)
    assert link.transfer(data, limit=600) == data
    return size / (1 << 20) / (link.now - started)


def table() -> str:
    lines = ["MiB/s of one stream; rows: one-way delay in ms; columns: share of packets lost, each way"]
    for title, as_reference in PEERS.items():
        lines.append(f"\n{title:<18}" + "".join(f"{loss:>10.0%}" for loss in LOSSES))
        for delay in DELAYS:
            cells = (measure(delay, loss, as_reference=as_reference) for loss in LOSSES)
            lines.append(f"{delay * 1000:<18g}" + "".join(f"{cell:>10.4g}" for cell in cells))
    return "\n".join(lines) + "\n"


def rows(title: str) -> list[list[float]]:
    block = TABLE.read_text(encoding="utf-8").split(f"\n{title}")[1].split("\n\n")[0]
    return [[float(cell) for cell in line.split()] for line in block.splitlines()[1:] if line]


@pytest.mark.parametrize("title", PEERS)
@pytest.mark.parametrize("delay", DELAYS)
def test_throughput_is_what_the_table_says(title: str, delay: float) -> None:
    (recorded,) = (row[1:] for row in rows(title) if row[0] == delay * 1000)
    now = [measure(delay, loss, as_reference=PEERS[title]) for loss in LOSSES]
    assert now == [pytest.approx(cell, rel=TOLERANCE) for cell in recorded]


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
