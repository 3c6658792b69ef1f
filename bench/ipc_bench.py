"""The IPC socket against the real daemon: `python -m bench.ipc_bench [--rounds N] [--only TEXT]`.

Rounds of the two daemons are interleaved, ratios are of medians. Bars are what the project promises at least; a row below
its bar makes the exit code 1.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from bench import load
from bench.peers import Peer, Peers, open_peers
from bench.report import Better, Row, render, render_markdown

KIB = 1024
MIB = 1024 * 1024
UNKNOWN = b"\x00\x00\x00\x01\x7f"


class Measurement(NamedTuple):
    """Rows that one function fills: it returns one value per row."""

    rows: list[Row]
    measure: Callable[[Peer], tuple[float, ...]]
    rounds: int | None = None  # None: as many as were asked for


def health_ping_pong(peer: Peer) -> tuple[float, ...]:
    latencies = load.ping_pong(peer.socket)
    return load.percentile(latencies, 0.5), load.percentile(latencies, 0.99)


def health_outstanding(peer: Peer) -> tuple[float, ...]:
    return (load.outstanding(peer.socket, load.HEALTH),)


def info_outstanding(peer: Peer) -> tuple[float, ...]:
    return (load.outstanding(peer.socket, load.INFO),)


def crowd(peer: Peer) -> tuple[float, ...]:
    return load.crowd(peer.socket)


def paced(peer: Peer) -> tuple[float, ...]:
    latencies = load.paced_health(peer.socket)
    return load.percentile(latencies, 0.5), load.percentile(latencies, 0.99)


def beside_healths(peer: Peer) -> tuple[float, ...]:
    with load.flooding(peer.socket, load.HEALTH):
        return (load.percentile(load.paced_health(peer.socket), 0.99),)


def beside_dials(peer: Peer) -> tuple[float, ...]:
    dial = struct.pack("!IBHIH", 9, 0x03, 0, peer.node_id, 9)  # to itself, where nobody listens
    with load.flooding(peer.socket, dial, window=64):
        return (load.percentile(load.paced_health(peer.socket), 0.99),)


def beside_lookups(peer: Peer) -> tuple[float, ...]:
    name = b"nobody-has-this-name"
    lookup = struct.pack("!IB", 1 + len(name), 0x11) + name
    with load.flooding(peer.socket, lookup, window=64):
        return (load.percentile(load.paced_health(peer.socket), 0.99),)


def beside_stalled(peer: Peer) -> tuple[float, ...]:
    # Stalled clients leave the machine idle, and a neighbour that pauses would measure how deep the processors sleep.
    with load.stalled(peer.socket, load.INFO):
        return (load.percentile(load.ping_pong(peer.socket), 0.99),)


def connect_all(peer: Peer) -> tuple[float, ...]:
    elapsed = load.connect_all(peer.socket) * 1000
    time.sleep(0.3)  # their clean-up is not the next row's business
    return (elapsed,)


def come_and_go(peer: Peer) -> tuple[float, ...]:
    return (load.come_and_go(peer.socket),)


def idle_memory(peer: Peer) -> tuple[float, ...]:
    before = peer.resident()
    clients = [load.connect(peer.socket) for _ in range(1000)]
    for client in clients[::100]:
        client.sendall(load.HEALTH)
        client.recv(65_536)
    time.sleep(0.5)
    after = peer.resident()
    for client in clients:
        client.close()
    time.sleep(0.3)
    return ((after - before) / 1000 / KIB,)


def stalled_memory(peer: Peer) -> tuple[float, ...]:
    """What ten stalled clients hold, each; what is still there once they were dropped; and when that was."""
    with load.connect(peer.socket) as warm:  # the allocator's first growth is not the client's
        warm.sendall(load.INFO * 512)
        for _ in range(512):
            load.read_frame(warm)
    before = peer.resident()
    start = time.perf_counter()
    clients = [load.connect(peer.socket) for _ in range(10)]
    for client in clients:
        client.setblocking(False)
    load.push_until_full(clients, load.INFO)
    held = max(peer.resident() - before, 0) / len(clients)
    while len(clients) > 0 and not _dropped(clients[-1]):
        time.sleep(0.005)
        assert time.perf_counter() - start < load.PATIENCE, "never dropped"
    dropped_after = time.perf_counter() - start
    time.sleep(1.0)
    left = max(peer.resident() - before, 0) / len(clients)
    for client in clients:
        client.close()
    return held / MIB, left / MIB, dropped_after


def _dropped(client: socket.socket) -> bool:
    poller = select.poll()
    poller.register(client, 0)  # hang-ups are reported always
    return bool(poller.poll(0))


def command(peer: Peer) -> tuple[float, ...]:
    start = time.perf_counter()
    for _ in range(10):
        subprocess.run([*peer.ctl, "health"], env=peer.environment, check=True, stdout=subprocess.DEVNULL)
    return ((time.perf_counter() - start) * 100,)


def idle_resident(peer: Peer) -> tuple[float, ...]:
    return (peer.resident() / MIB,)


MEASUREMENTS = [
    Measurement([Row("idle daemon: resident memory", "MiB", at_most=48)], idle_resident, 1),
    Measurement([Row("command line: health, start to end", "ms", at_most=60)], command),
    Measurement([Row("idle client: memory each, of 1,000", "KiB", bar=1.0, moonshot=1.3)], idle_memory, 1),
    Measurement(
        [Row("health ping-pong p50", "us", bar=0.75, moonshot=1.2), Row("health ping-pong p99", "us")], health_ping_pong
    ),
    Measurement([Row("health, 256 outstanding", "/s", Better.HIGHER, 5, 10)], health_outstanding),
    Measurement([Row("info, 256 outstanding", "/s", Better.HIGHER, 5, 10)], info_outstanding),
    Measurement(
        [
            Row("16 clients in ping-pong, rate", "/s", Better.HIGHER, 0.8, 1.2),
            Row("16 clients in ping-pong, p99", "us", bar=2.5, moonshot=6),
        ],
        crowd,
    ),
    Measurement([Row("a health every millisecond, p50", "us"), Row("a health every millisecond, p99", "us")], paced),
    Measurement([Row("health p99 beside a flood of healths", "us", bar=1.5, moonshot=5)], beside_healths),
    Measurement([Row("health p99 beside a flood of dials", "us", bar=1.5, moonshot=5)], beside_dials),
    Measurement([Row("health p99 beside a flood of lookups", "us", bar=1.5, moonshot=5)], beside_lookups),
    Measurement([Row("health p99 beside 4 stalled clients", "us", bar=1.5, moonshot=5)], beside_stalled),
    Measurement([Row("1,000 connects, one health each", "ms", bar=0.4, moonshot=0.85)], connect_all),
    Measurement([Row("connect + health + close", "us", bar=0.3, moonshot=0.6)], come_and_go),
    Measurement(
        [
            Row("stalled client: memory held, each of 10", "MiB", at_most=1),
            Row("stalled client: memory left after the drop", "MiB", at_most=0.1),
            Row("stalled client: dropped after", "s", at_most=10.5),
        ],
        stalled_memory,
        1,
    ),
]


def rows(peers: Peers, rounds: int, only: str = "") -> list[Row]:
    """Measure; rounds of the two daemons are interleaved."""
    chosen = [m for m in MEASUREMENTS if any(only in row.name for row in m.rows)]
    for measurement in chosen:
        for _ in range(measurement.rounds or rounds):
            for peer in peers:
                for row, value in zip(measurement.rows, measurement.measure(peer), strict=True):
                    (row.ours if peer is peers.ours else row.theirs).append(value)
        print(f"  {measurement.rows[0].name}", file=sys.stderr, flush=True)
    return [row for measurement in chosen for row in measurement.rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ipc_bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure rows whose name contains this")
    parser.add_argument("--ours", default="", help="command line of our daemon, without flags")
    parser.add_argument("--markdown", action="store_true", help="print the table for the documentation")
    options = parser.parse_args(argv)
    with open_peers(options.ours) as peers:
        found = rows(peers, options.rounds, options.only)
    print(render_markdown(found) if options.markdown else render(found))
    return 1 if any(row.failed for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
