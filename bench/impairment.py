"""A path that loses and delays, the same for everybody: a UDP proxy before one daemon, in a process of its own, seeded."""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import random
import select
import socket
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

SEED = 1
_BUFFER = 4 * 1024 * 1024


@contextlib.contextmanager
def impaired(loss: float, delay: float) -> Iterator[tuple[str, ...]]:
    """Run a proxy; give the flags for the daemon behind it."""
    front, spare = _socket(), _socket()
    target = spare.getsockname()
    spare.close()  # the daemon takes this port
    process = multiprocessing.get_context("fork").Process(target=_carry, args=(front, target, loss, delay), daemon=True)
    process.start()
    host, port = front.getsockname()
    front.close()
    try:
        yield ("-listen", f"{target[0]}:{target[1]}", "-endpoint", f"{host}:{port}")
    finally:
        process.kill()
        process.join()


def _carry(front: socket.socket, target: Any, loss: float, delay: float) -> None:
    """Each peer has a socket of its own towards the daemon, so that the daemon tells peers apart by their ports."""
    dice = random.Random(SEED)
    poll = select.epoll()
    poll.register(front.fileno(), select.EPOLLIN)
    backs: dict[Any, socket.socket] = {}
    peers: dict[int, Any] = {}  # {file number of a back socket: the peer that it stands for}
    sockets = {front.fileno(): front}
    waiting: list[tuple[float, int, socket.socket, bytes, Any]] = []
    numbers = count()
    while True:
        wait = -1.0 if not waiting else max(0.0, waiting[0][0] - time.perf_counter())
        for number, _ in poll.poll(wait):
            for data, source in _read(sockets[number]):
                if dice.random() < loss:
                    continue
                if number != front.fileno():
                    out, to = front, peers[number]
                else:
                    if source not in backs:
                        back = backs[source] = _socket()
                        peers[back.fileno()], sockets[back.fileno()] = source, back
                        poll.register(back.fileno(), select.EPOLLIN)
                    out, to = backs[source], target
                heapq.heappush(waiting, (time.perf_counter() + delay, next(numbers), out, data, to))
        now = time.perf_counter()
        while waiting and waiting[0][0] <= now:
            _, _, out, data, to = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                out.sendto(data, to)


def _read(sock: socket.socket) -> Iterator[tuple[bytes, Any]]:
    with contextlib.suppress(OSError):
        for _ in range(64):
            yield sock.recvfrom(65_535)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock
