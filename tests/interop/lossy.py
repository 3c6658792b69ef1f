"""A path that loses and delays: a UDP proxy in user space before one node's socket, seeded; it keeps the order.

    node = await start_behind(path, overlay, "go")

The node listens at `target`; the registry tells peers `endpoint`, where the proxy answers. Datagrams of every peer go through
a socket of that peer's own, so that the node tells them apart by their ports. Two things would lead around the proxy:

- The real daemon registers where it listens, whatever `-endpoint` says, if that is on loopback. So the test registers it
  once more, under its own key, at the proxy.
- The beacon tells peers from where a node sends to it. So the node sends to the beacon through a door of the proxy.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter, deque
from collections.abc import AsyncGenerator
from typing import Any, Final

import attrs
import trio

from pilot_trio.crypto.identity import Identity
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.wire.registry import register_text
from tests.interop.overlay import Kind, Overlay, OverlayNode

Sock = trio.socket.SocketType

_BUFFER: Final = 4 * 1024 * 1024  # bytes; what overflows would be lost unseen


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
    _waiting: deque[tuple[float, Sock, bytes, Any]] = attrs.field(factory=deque)  # (when, from, datagram, to)
    _more: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    lost: int = 0
    passed: int = 0
    seen: Counter[Endpoint] = attrs.field(factory=Counter)  # datagrams by sender, the lost ones too

    async def open_door(self, peer: Endpoint) -> Endpoint:
        """Return where the node may send in place of `peer`, which so comes to know the node by `endpoint`."""
        return Endpoint(*(await self._back_of(tuple(peer))).getsockname())

    async def run(self) -> None:
        """Carry what comes from peers until cancelled."""
        while True:
            data, peer = await self._front.recvfrom(65_535)
            self._pass(await self._back_of(peer), data, peer, self.target)

    async def deliver(self) -> None:
        """Send on what has been delayed enough, until cancelled."""
        while True:
            if not self._waiting:
                await self._more.park()
            due, sock, data, to = self._waiting.popleft()
            await trio.sleep_until(due)
            with contextlib.suppress(OSError):
                await sock.sendto(data, to)

    async def _back_of(self, peer: Any) -> Sock:
        back = self._back.get(peer)
        if back is None:
            back = self._back[peer] = await _open_socket()
            self.nursery.start_soon(self._run_back, back, peer)
        return back

    async def _run_back(self, back: Sock, peer: Any) -> None:
        with back:
            while True:
                with contextlib.suppress(ConnectionError):  # nobody listened for an earlier datagram: the node is away
                    data, source = await back.recvfrom(65_535)
                    self._pass(self._front, data, source, peer)

    def _pass(self, sock: Sock, data: bytes, source: Any, to: Any) -> None:
        self.seen[Endpoint(*source)] += 1
        if self._random.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        self._waiting.append((trio.current_time() + self.delay, sock, data, tuple(to)))
        self._more.unpark()


async def start_behind(path: LossyPath, overlay: Overlay, kind: Kind, *flags: str) -> OverlayNode:
    """Start a node that its peers and the beacon know by the proxy only."""
    beacon = overlay.rendezvous.handle.beacon
    assert beacon is not None
    door = await path.open_door(beacon)
    node = await overlay.start(kind, "-listen", str(path.target), "-no-addr-watch", *flags, beacon=door)
    identity, at = Identity.parse(node.home.identity.read_bytes()), str(path.endpoint)
    answer = await overlay.rendezvous.ask(
        type="register",
        listen_addr=at,
        public_key=identity.public_key_b64,
        signature=identity.sign_text(register_text(at, identity.public_key_b64)),
    )
    assert answer["node_id"] == node.node_id
    assert (await overlay.rendezvous.ask(type="lookup", node_id=node.node_id))["real_addr"] == at
    return node


@contextlib.asynccontextmanager
async def open_lossy_path(*, loss: float, seed: int, delay: float = 0.0) -> AsyncGenerator[LossyPath]:
    """Open a proxy, and choose a free port for the node behind it."""
    async with trio.open_nursery() as nursery:
        with await _open_socket() as front:
            path = LossyPath(
                Endpoint(*front.getsockname()), _free_port(), loss, delay, nursery, front, random.Random(seed)
            )
            nursery.start_soon(path.run)
            nursery.start_soon(path.deliver)
            yield path
            nursery.cancel_scope.cancel()


async def _open_socket() -> Sock:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    await sock.bind(("127.0.0.1", 0))
    return sock


def _free_port() -> Endpoint:
    """Choose a port that the kernel gives to nobody who lets it choose: theirs begin at 32,768, or below if told so."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_768)))
            return Endpoint(*sock.getsockname())
