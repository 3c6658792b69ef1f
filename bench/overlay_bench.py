"""The data path between two nodes, against two of the real daemons: `python -m bench.overlay_bench [--quick] [--only TEXT]`.

Rounds of the two pairs are interleaved, ratios are of medians. Every client is a process that speaks the IPC protocol; the
same programs load both pairs. Silent transfers stopped for five seconds before their end; there may be none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bench import overlay_load as load
from bench.load import percentile
from bench.peers import Pair, Pairs, open_pairs
from bench.report import Better, Row, render

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB
QUICK_ROUNDS = 2


class Measurement(NamedTuple):
    """Rows that one function fills: it returns one value per row."""

    rows: list[Row]
    measure: Callable[[Pair], tuple[float, ...]]
    loss: float = 0.0
    delay: float = 0.0  # seconds each way
    rounds: int | None = None  # None: as many as were asked for


def stream(pair: Pair, connections: int, size: int) -> tuple[float, ...]:
    cpu = pair.cpu_seconds()
    done = load.transfer(pair, connections, size)
    cpu = pair.cpu_seconds() - cpu
    return done.received / MIB / max(done.seconds, 1e-9), float(done.silent), cpu / (max(done.received, 1) / GIB)


def stream_beside_others(pair: Pair, connections: int, size: int) -> tuple[float, ...]:
    with load.busy_cores():
        return stream(pair, connections, size)[:2]


def goodput(pair: Pair, size: int) -> tuple[float, ...]:
    done = load.transfer(pair, 1, size, seconds=4.0)
    return (done.received / MIB / max(done.seconds, 1e-9),)


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
                Row(f"{name}: silent", "share", at_most=0),
                Row(f"{name}: CPU of both", "s/GiB", bar=2.5, moonshot=4.5),
            ],
            partial(stream, connections=connections, size=size),
        ),
        Measurement(
            [
                Row(f"{name}, cores busy", "MiB/s", Better.HIGHER),
                Row(f"{name}, cores busy: silent", "share", at_most=0),
            ],
            partial(stream_beside_others, connections=connections, size=size // 2),
        ),
    ]


def _goodput(loss: float, delay: float) -> Measurement:
    # No bar: the original finds its peer past the proxy on loopback, and then its figure is not one of the impaired path.
    row = Row(f"goodput, {loss:.0%} loss, {delay * 1000:.0f} ms each way", "MiB/s", Better.HIGHER)
    return Measurement([row], partial(goodput, size=256 * MIB), loss, delay, 2)


MEASUREMENTS = [
    *_streams(1, 2.5, 4.5, 128 * MIB),
    *_streams(8, 2.0, 4.0, 128 * MIB),
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
    Measurement([Row("open stream: memory each, both ends", "KiB")], streams_memory, rounds=1),
    *(_goodput(loss, delay) for delay in (0.01, 0.02) for loss in (0.0, 0.01, 0.05)),
]


def rows(rounds: int, only: str = "", ours: str = "") -> list[Row]:
    """Measure; rounds of the two pairs are interleaved."""
    chosen = [m for m in MEASUREMENTS if any(only in row.name for row in m.rows)]
    for loss, delay in dict.fromkeys((m.loss, m.delay) for m in chosen):
        with open_pairs(ours, loss=loss, delay=delay) as pairs:
            for measurement in chosen:
                if (measurement.loss, measurement.delay) == (loss, delay):
                    _measure(pairs, measurement, min(rounds, measurement.rounds or rounds))
    return [row for measurement in chosen for row in measurement.rows]


def _measure(pairs: Pairs, measurement: Measurement, rounds: int) -> None:
    for _ in range(rounds):
        for pair in pairs:
            for row, value in zip(measurement.rows, measurement.measure(pair), strict=True):
                (row.ours if pair is pairs.ours else row.theirs).append(value)
    print(f"  {measurement.rows[0].name}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overlay_bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--only", default="", help="measure rows whose name contains this")
    parser.add_argument("--ours", default="", help="command line of our daemon, without flags")
    options = parser.parse_args(argv)
    found = rows(QUICK_ROUNDS if options.quick else options.rounds, options.only, options.ours)
    print(render(found))
    return 1 if any(row.failed for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
