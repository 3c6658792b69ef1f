"""What clients do to a daemon. Blocking sockets and `epoll`: the generator should cost less than what it measures."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

HEALTH = b"\x00\x00\x00\x01\x21"
INFO = b"\x00\x00\x00\x01\x0d"
PATIENCE = 30.0  # seconds; a daemon that takes longer for anything here has failed

_LENGTH = struct.Struct("!I")


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(os.fspath(path))
    return client


def read_frame(client: socket.socket) -> bytes:
    header = _read_exactly(client, 4)
    return _read_exactly(client, int.from_bytes(header, "big"))


def _read_exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise EOFError("the daemon closed the connection")
        data += more
    return data


def info(path: Path) -> dict[str, Any]:
    with connect(path) as client:
        client.sendall(INFO)
        frame = read_frame(client)
    found = json.loads(frame[1:])
    assert isinstance(found, dict)
    return found


def percentile(sorted_values: list[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def ping_pong(path: Path, seconds: float = 1.0) -> list[float]:
    """One Health at a time; sorted latencies in microseconds."""
    latencies = []
    with connect(path) as client:
        for _ in range(50):
            client.sendall(HEALTH)
            client.recv(65_536)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            client.sendall(HEALTH)
            client.recv(65_536)  # one small frame written at once arrives at once
            latencies.append((time.perf_counter() - start) * 1e6)
    return sorted(latencies)


class FrameCounter:
    """Counts frames without looking into them, in memory that is there already."""

    def __init__(self) -> None:
        self._buffer = bytearray(512 * 1024)
        self._held = 0  # bytes of a frame that is not whole yet

    def receive(self, client: socket.socket) -> int:
        """Read once; return how many frames that completed."""
        buffer, read_length = self._buffer, _LENGTH.unpack_from
        with memoryview(buffer) as view:
            held = self._held + client.recv_into(view[self._held :])
        at = frames = 0
        while at + 4 <= held and (end := at + 4 + read_length(buffer, at)[0]) <= held:
            at = end
            frames += 1
        buffer[: held - at] = buffer[at:held]
        self._held = held - at
        return frames


def outstanding(path: Path, request: bytes, window: int = 256, seconds: float = 1.0) -> float:
    """Keep `window` requests outstanding; requests per second."""
    done, replies = 0, FrameCounter()
    with connect(path) as client:
        start = time.perf_counter()
        client.sendall(request * window)
        while (elapsed := time.perf_counter() - start) < seconds:
            answered = replies.receive(client)
            done += answered
            client.sendall(request * answered)
    return done / elapsed


def crowd(path: Path, clients: int = 16, seconds: float = 1.0) -> tuple[float, float]:
    """So many clients in ping-pong at once; requests per second, and p99 of the latency in microseconds."""
    poll = select.epoll()
    connected = {(client := connect(path)).fileno(): client for _ in range(clients)}
    asked_at: dict[int, float] = {}
    latencies = []
    start = time.perf_counter()
    for number, client in connected.items():
        poll.register(number, select.EPOLLIN)
        asked_at[number] = time.perf_counter()
        client.sendall(HEALTH)
    while time.perf_counter() - start < seconds:
        for number, _ in poll.poll(PATIENCE):
            client = connected[number]
            client.recv(65_536)
            now = time.perf_counter()
            latencies.append((now - asked_at[number]) * 1e6)
            asked_at[number] = now
            client.sendall(HEALTH)
    elapsed = time.perf_counter() - start
    poll.close()
    for client in connected.values():
        client.close()
    return len(latencies) / elapsed, percentile(sorted(latencies), 0.99)


def paced_health(path: Path, seconds: float = 1.5, pause: float = 0.001) -> list[float]:
    """What a well-behaved neighbour sees: a Health every millisecond; sorted latencies in microseconds."""
    latencies = []
    with connect(path) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(pause)
            start = time.perf_counter()
            client.sendall(HEALTH)
            client.recv(65_536)
            latencies.append((time.perf_counter() - start) * 1e6)
    return sorted(latencies)


def connect_all(path: Path, count: int = 1000) -> float:
    """Connect so many clients, one Health each, all open at once; seconds."""
    start = time.perf_counter()
    clients = [connect(path) for _ in range(count)]
    for client in clients:
        client.sendall(HEALTH)
    for client in clients:
        client.recv(65_536)
    elapsed = time.perf_counter() - start
    for client in clients:
        client.close()
    return elapsed


def come_and_go(path: Path, count: int = 500) -> float:
    """Connect, one Health, close, one after the other; microseconds each."""
    start = time.perf_counter()
    for _ in range(count):
        with connect(path) as client:
            client.sendall(HEALTH)
            client.recv(65_536)
    return (time.perf_counter() - start) / count * 1e6


@contextlib.contextmanager
def flooding(path: Path, request: bytes, window: int = 256) -> Iterator[None]:
    """A client in a process of its own that keeps `window` requests outstanding and reads every answer."""
    with _in_process(_flood, path, request, window):
        yield


@contextlib.contextmanager
def stalled(path: Path, request: bytes, clients: int = 4) -> Iterator[None]:
    """Clients that flood and never read. The daemon drops them after ten seconds, so be quick."""
    opened = []
    try:
        for _ in range(clients):
            client = connect(path)
            client.setblocking(False)
            opened.append(client)
        push_until_full(opened, request)
        yield
    finally:
        for client in opened:
            client.close()


def push_until_full(clients: list[socket.socket], request: bytes, settle: float = 0.7) -> None:
    """Write to clients that never read, until the daemon has taken nothing for a while."""
    data = request * 2000
    quiet_since = time.perf_counter()
    while time.perf_counter() - quiet_since < settle:
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                client.send(data)
                quiet_since = time.perf_counter()
        time.sleep(0.01)


@contextlib.contextmanager
def _in_process(target: Callable[..., None], path: Path, *args: object) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    running = context.Event()
    process = context.Process(target=target, args=(path, *args, running), daemon=True)
    process.start()
    try:
        assert running.wait(PATIENCE)
        yield
    finally:
        process.kill()
        process.join()


def _flood(path: Path, request: bytes, window: int, running: Event) -> None:
    replies = FrameCounter()
    with connect(path) as client:
        client.sendall(request * window)
        while True:
            if answered := replies.receive(client):
                running.set()
                client.sendall(request * answered)
