"""A path that loses and delays: a UDP proxy in user space before one node's socket, seeded.

The node listens at `target` and registers `endpoint` in its place, where the proxy answers. Datagrams of every peer go through
a socket of that peer's own, so that the node tells them apart by their ports.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import attrs
import trio

from pilot_trio.net.endpoint import Endpoint

Sock = trio.socket.SocketType


@attrs.define(eq=False)
class LossyPath:
    """The proxy of one node."""

    endpoint: Endpoint  # where peers send to
    target: Endpoint  # where the node listens
    loss: float  # share of datagrams lost, each way
    delay: float  # seconds, each way
    nursery: trio.Nursery
    _front: Sock
    _random: random.Random
    _back: dict[Any, Sock] = attrs.field(factory=dict)  # {peer: the socket that stands for it}
    lost: int = 0
    passed: int = 0

    async def run(self) -> None:
        """Carry datagrams until cancelled."""
        while True:
            data, peer = await self._front.recvfrom(65_535)
            back = self._back.get(peer)
            if back is None:
                back = self._back[peer] = await _open_socket()
                self.nursery.start_soon(self._run_back, back, peer)
            self._pass(back, data, self.target)

    async def _run_back(self, back: Sock, peer: Any) -> None:
        with back:
            while True:
                with contextlib.suppress(ConnectionError):  # nobody listened for an earlier datagram: the node is away
                    data, _ = await back.recvfrom(65_535)
                    self._pass(self._front, data, peer)

    def _pass(self, sock: Sock, data: bytes, to: Any) -> None:
        if self._random.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        self.nursery.start_soon(partial(self._deliver, sock, data, to))

    async def _deliver(self, sock: Sock, data: bytes, to: Any) -> None:
        await trio.sleep(self.delay)
        with contextlib.suppress(OSError):
            await sock.sendto(data, tuple(to))


@contextlib.asynccontextmanager
async def open_lossy_path(*, loss: float, seed: int, delay: float = 0.0) -> AsyncGenerator[LossyPath]:
    """Open a proxy, and choose a free port for the node behind it."""
    async with trio.open_nursery() as nursery:
        with await _open_socket() as front:
            path = LossyPath(
                Endpoint(*front.getsockname()), _free_port(), loss, delay, nursery, front, random.Random(seed)
            )
            nursery.start_soon(path.run)
            yield path
            nursery.cancel_scope.cancel()


async def _open_socket() -> Sock:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    await sock.bind(("127.0.0.1", 0))
    return sock


def _free_port() -> Endpoint:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return Endpoint(*sock.getsockname())
