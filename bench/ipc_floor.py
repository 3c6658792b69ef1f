"""The least that local clients can cost a server on Trio: `python -m bench.ipc_floor [--rounds N]`.

A third server beside the two daemons. It does what nobody can leave out who serves each client in a nursery of its own,
with a reader, a writer and a channel between them, and nothing else: it looks at no request, and answers each five bytes
with as many as a Health has. Rounds of the three are interleaved; what the floor does not reach, no daemon on Trio does.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from bench import load
from bench.peers import open_peers

ANSWER = (331).to_bytes(4, "big") + b"\x22" + bytes(330)
BUFFER = 65_536
ACCEPT_BATCH = 16


async def _write(frames: trio.MemoryReceiveChannel[bytes], client: socket.socket) -> None:
    async for frame in frames:
        with trio.move_on_after(10):
            await trio.lowlevel.wait_writable(client)
            client.send(frame)


async def _read(client: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):  # the first request has often come by now
        if not _answer(client):
            return
    while True:
        await trio.lowlevel.wait_readable(client)
        if not _answer(client):
            return


def _answer(client: socket.socket) -> bool:
    data = client.recv(BUFFER)
    if data:
        client.send(ANSWER * (len(data) // len(load.HEALTH)))
    return bool(data)


async def _serve_client(client: socket.socket) -> None:
    queue, frames = trio.open_memory_channel[bytes](256)
    with client, queue, frames:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write, frames, client)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it left before its answer
                await _read(client)
            nursery.cancel_scope.cancel()
        trio.lowlevel.notify_closing(client)


async def _serve(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(os.fspath(path))
    listener.listen(4096)
    gc.freeze()
    gc.set_threshold(25_000, 1)  # as the daemon has it
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPT_BATCH):
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    break
                client.setblocking(False)
                nursery.start_soon(_serve_client, client)


def _run(path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(_serve, path)


def _ping_pong(path: Path) -> tuple[float, ...]:
    latencies = load.ping_pong(path)
    return load.percentile(latencies, 0.5), load.percentile(latencies, 0.99)


def _crowd(path: Path) -> tuple[float, ...]:
    return (load.crowd(path)[0],)


def _connect_all(path: Path) -> tuple[float, ...]:
    elapsed = load.connect_all(path) * 1000
    time.sleep(0.3)  # their clean-up is not the next one's business
    return (elapsed,)


def _come_and_go(path: Path) -> tuple[float, ...]:
    return (load.come_and_go(path),)


MEASUREMENTS: dict[tuple[str, ...], Callable[[Path], tuple[float, ...]]] = {
    ("health ping-pong p50, us", "health ping-pong p99, us"): _ping_pong,
    ("16 clients in ping-pong, rate, /s",): _crowd,
    ("1,000 connects, one health each, ms",): _connect_all,
    ("connect + health + close, us",): _come_and_go,
}


def main() -> None:
    """Print the medians of the floor and of the two daemons."""
    parser = argparse.ArgumentParser(prog="python -m bench.ipc_floor", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, open_peers() as peers:
        path = Path(folder, "socket")
        floor = multiprocessing.get_context("fork").Process(target=_run, args=(path,), daemon=True)
        floor.start()
        while not path.exists():
            time.sleep(0.01)
        sockets = {"floor": path, "ours": peers.ours.socket, "original": peers.theirs.socket}
        print(f"{'':40}" + "".join(f"{name:>10}" for name in sockets))
        for names, measure in MEASUREMENTS.items():
            found: dict[str, list[tuple[float, ...]]] = {server: [] for server in sockets}
            for _ in range(rounds):
                for server, where in sockets.items():
                    found[server].append(measure(where))
            for at, name in enumerate(names):
                medians = [statistics.median(values[at] for values in each) for each in found.values()]
                print(f"{name:40}" + "".join(f"{median:10.1f}" for median in medians), flush=True)
        floor.kill()


if __name__ == "__main__":
    main()
