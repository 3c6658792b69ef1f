"""The data path between two nodes, against two of the real daemons: `python -m bench.overlay_bench [--quick] [--only TEXT]`.

Rounds of the pairs are interleaved, ratios are of medians. Every client is a process that speaks the IPC protocol; the same
programs load all pairs. Silent transfers stopped for five seconds before their end; there may be none: for twenty of each,
`--rounds 20 --only busy`. Goodput through an impaired path also has mixed pairs, against the original's own pair.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from typing import NamedTuple

from bench import overlay_load as load
from bench.load import percentile
from bench.peers import Pair, Pairs, open_pairs
from bench.report import Better, Row, render, render_markdown

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB
QUICK_ROUNDS = 2
GOODPUT_SECONDS = 3.0  # 75 round trips and more: enough to leave the start-up behind
TIE = 0.9  # the bar of mixed pairs: without loss all pairs are limited by the same 128 segments, and differ by chance


class Measurement(NamedTuple):
    """Rows that one function fills: it returns one value per row."""

    rows: list[Row]
    measure: Callable[[Pair], tuple[float, ...]]
    loss: float = 0.0
    delay: float = 0.0  # seconds each way
    rounds: int | None = None  # None: as many as were asked for
    fresh: bool = False  # with daemons that have done nothing yet
    mixed: Sequence[Row] = ()  # the same from ours to theirs, and from theirs to ours; against theirs alone


def stream(pair: Pair, connections: int, size: int) -> tuple[float, ...]:
    cpu = pair.cpu_seconds()
    done = load.transfer(pair, connections, size)
    cpu = pair.cpu_seconds() - cpu
    return done.received / MIB / max(done.seconds, 1e-9), float(done.silent), cpu / (max(done.received, 1) / GIB)


def stream_beside_others(pair: Pair, connections: int, size: int) -> tuple[float, ...]:
    with load.busy_cores():
        return stream(pair, connections, size)[:2]


def goodput(pair: Pair, size: int) -> tuple[float, ...]:
    assert pair.passage is not None
    before = pair.passage.inward
    done = load.transfer(pair, 1, size, seconds=GOODPUT_SECONDS)
    by_proxy = pair.passage.inward - before
    time.sleep(0.3)  # what was still on its way is not the next pair's business
    # A pair that has found a way past the proxy was not measured on the impaired path.
    return (done.received / MIB / max(done.seconds, 1e-9) if by_proxy >= done.received else nan,)


def request_reply(pair: Pair, size: int) -> tuple[float, ...]:
    latencies = load.request_reply(pair, size)
    return percentile(latencies, 0.5), percentile(latencies, 0.99)


def dials(pair: Pair) -> tuple[float, ...]:
    latencies = load.dial_one_by_one(pair)
    return percentile(latencies, 0.5), percentile(latencies, 0.99)


def dials_outstanding(pair: Pair) -> tuple[float, ...]:
    return (load.dial_outstanding(pair),)


def datagrams(pair: Pair) -> tuple[float, ...]:
    return load.datagrams(pair)


def streams_memory(pair: Pair) -> tuple[float, ...]:
    return (load.thousand_streams(pair) / KIB,)


def _streams(connections: int, bar: float, moonshot: float, size: int) -> list[Measurement]:
    name = f"stream, {connections} connection{'s' if connections > 1 else ''}"
    return [
        Measurement(
            [
                Row(name, "MiB/s", Better.HIGHER, bar, moonshot),
                Row(f"{name}: silent", "share", at_most=0, summary=statistics.mean),
                Row(f"{name}: CPU of both", "s/GiB", bar=2.5, moonshot=4.5),
            ],
            partial(stream, connections=connections, size=size),
        ),
        Measurement(
            [
                Row(f"{name}, cores busy", "MiB/s", Better.HIGHER),
                Row(f"{name}, cores busy: silent", "share", at_most=0, summary=statistics.mean),
            ],
            partial(stream_beside_others, connections=connections, size=size // 2),
        ),
    ]


def _goodput(loss: float, delay: float) -> Measurement:
    name, short = f"{loss:.0%} loss, {delay * 1000:.0f} ms each way", f"{loss:.0%}, {delay * 1000:.0f} ms"
    return Measurement(
        [Row(f"goodput, {name}", "MiB/s", Better.HIGHER, 1, 10)],
        partial(goodput, size=256 * MIB),
        loss,
        delay,
        3,
        mixed=[
            Row(f"goodput to the original, {short}", "MiB/s", Better.HIGHER, TIE),
            Row(f"goodput from the original, {short}", "MiB/s", Better.HIGHER, TIE),
        ],
    )


MEASUREMENTS = [
    *_streams(1, 2.5, 4.5, 96 * MIB),
    *_streams(8, 2.0, 4.0, 96 * MIB),
    Measurement(
        [
            Row("datagrams of 1,000 bytes, delivered", "/s", Better.HIGHER, 2.0, 4.0),
            Row("datagrams of 1,000 bytes, share", "", Better.HIGHER, 1.0),
        ],
        datagrams,
    ),
    Measurement([Row("dial p50", "us", bar=0.8, moonshot=1.2), Row("dial p99", "us", bar=1.5, moonshot=3)], dials),
    Measurement([Row("dials, 32 outstanding", "/s", Better.HIGHER, 1.5, 3)], dials_outstanding),
    Measurement(
        [
            Row("64 B request/reply p50", "us", bar=0.7, moonshot=1.0),
            Row("64 B request/reply p99", "us", bar=0.8, moonshot=1.3),
        ],
        partial(request_reply, size=64),
    ),
    Measurement(
        [
            Row("4 KiB request/reply p50", "us", bar=1.0, moonshot=1.4),
            Row("4 KiB request/reply p99", "us", bar=1.5, moonshot=3),
        ],
        partial(request_reply, size=4 * KIB),
    ),
    Measurement([Row("open stream: memory each, both ends", "KiB")], streams_memory, rounds=1, fresh=True),
    *(_goodput(loss, delay) for delay in (0.01, 0.02) for loss in (0.0, 0.01, 0.05)),
]


def rows(rounds: int, only: str = "", ours: str = "") -> list[Row]:
    """Measure; rounds of the pairs are interleaved."""
    chosen = [m for m in MEASUREMENTS if any(only in row.name for row in (*m.rows, *m.mixed))]
    for conditions in dict.fromkeys(_conditions(m) for m in chosen):
        _, loss, delay = conditions
        with open_pairs(ours, loss=loss, delay=delay) as pairs:
            for measurement in chosen:
                if _conditions(measurement) == conditions:
                    _measure(pairs, measurement, min(rounds, measurement.rounds or rounds))
    return [row for measurement in chosen for row in (*measurement.rows, *measurement.mixed)]


def _conditions(measurement: Measurement) -> tuple[bool, float, float]:
    return measurement.fresh, measurement.loss, measurement.delay


def _measure(pairs: Pairs, measurement: Measurement, rounds: int) -> None:
    for _ in range(rounds):
        # Theirs first: what the machine does to the second of a pair, it does to ours.
        theirs, ours = measurement.measure(pairs.theirs), measurement.measure(pairs.ours)
        for row, our_value, their_value in zip(measurement.rows, ours, theirs, strict=True):
            row.ours.append(our_value)
            row.theirs.append(their_value)
        for row, pair in zip(measurement.mixed, (pairs.ours_to_theirs, pairs.theirs_to_ours), strict=False):
            row.ours += measurement.measure(pair)
            row.theirs += theirs
    print(f"  {measurement.rows[0].name}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overlay_bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--only", default="", help="measure rows whose name contains this")
    parser.add_argument("--ours", default="", help="command line of our daemon, without flags")
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation")
    options = parser.parse_args(argv)
    found = rows(QUICK_ROUNDS if options.quick else options.rounds, options.only, options.ours)
    print(render_markdown(found) if options.markdown else render(found))
    return 1 if any(row.failed for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
