"""A path that loses and delays, the same for everybody: a UDP proxy before one daemon, in a process of its own, seeded.

Peers know the daemon by the proxy's address, because the registry tells them that one (`bench.peers`). Telling the daemon
is not enough: the original takes a loopback address given with `-endpoint` for unusable, and registers its own socket.
Each peer has a socket of its own towards the daemon, which tells peers apart by it and answers there. The proxy counts
what it carries, so that a measurement can prove that its path was this one.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final

import attrs

from pilot_trio.net.endpoint import Endpoint

SEED: Final = 1
DATAGRAM_MAX: Final = 1472  # bytes; what an Ethernet carries. Longer ones vanish, as loopback is no model of a path
_BUFFER: Final = 4 * 1024 * 1024  # bytes; what the path drops is decided by the dice alone
_READ_MAX: Final = 65_535  # bytes of one read: a datagram, or several of one size
_READS: Final = 64  # of one socket in a turn, so that what is due does not wait for them
_UDP_SEGMENT: Final = 103  # socket option, Linux: cut what is sent into datagrams
_UDP_GRO: Final = 104  # socket option, Linux: read several datagrams at once
_PIECES_MAX: Final = 60  # datagrams sent at once; the kernel takes 64
_GRO_SIZE: Final = struct.Struct("i")
_SEGMENT_SIZE: Final = struct.Struct("H")


@attrs.frozen
class Passage:
    """A proxy in front of the address where its daemon is to listen."""

    front: Endpoint
    daemon: Endpoint
    _carried: Any  # shared with the process: bytes towards the daemon, bytes from it

    @property
    def inward(self) -> int:
        """Bytes that came out of it towards the daemon so far."""
        return int(self._carried[0])


@contextlib.contextmanager
def passage(loss: float, delay: float) -> Iterator[Passage]:
    """Run a proxy: a share `loss` of the datagrams vanishes, the others arrive `delay` seconds late, in both directions."""
    front, spare = _socket(), _socket()
    target = spare.getsockname()
    spare.close()  # the daemon takes this port
    carried = multiprocessing.RawArray("q", 2)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: _Proxy(front, target, loss, delay, carried).run(), daemon=True
    )
    process.start()
    found = Passage(Endpoint(*front.getsockname()), Endpoint(*target), carried)
    front.close()
    try:
        yield found
    finally:
        process.kill()
        process.join()


class _Proxy:
    """Reads and sends several datagrams at once where they come and go so: it should be no bottleneck."""

    def __init__(self, front: socket.socket, target: Any, loss: float, delay: float, carried: Any) -> None:
        self._front, self._target = front, target
        self._loss, self._delay, self._carried = loss, delay, carried
        self._dice = random.Random(SEED)
        self._poll = select.epoll()
        self._sockets = {front.fileno(): front}
        self._backs: dict[Any, socket.socket] = {}  # {peer: the socket that the daemon takes for it}
        self._peers: dict[int, Any] = {}  # {file number of such a socket: the peer}
        self._late: list[tuple[float, int, socket.socket, Any, int, list[bytes]]] = []
        self._numbers = count()
        self._poll.register(front.fileno(), select.EPOLLIN)

    def run(self) -> None:
        late = self._late
        while True:
            wait = -1.0 if not late else max(0.0, late[0][0] - time.perf_counter())
            for number, _ in self._poll.poll(wait):
                self._read(number)
            now = time.perf_counter()
            while late and late[0][0] <= now:
                _, _, out, to, way, pieces = heapq.heappop(late)
                with contextlib.suppress(OSError):
                    _send(out, to, pieces)
                    self._carried[way] += sum(map(len, pieces))

    def _read(self, number: int) -> None:
        sock = self._sockets[number]
        inward = sock is self._front
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READS):
                data, ancillary, _, source = sock.recvmsg(_READ_MAX, 64)
                size = _GRO_SIZE.unpack(ancillary[0][2])[0] if ancillary else len(data)
                pieces = [data[at : at + size] for at in range(0, len(data), size)]
                pieces = [piece for piece in pieces if len(piece) <= DATAGRAM_MAX and self._dice.random() >= self._loss]
                if pieces:
                    out, to = (self._back(source), self._target) if inward else (self._front, self._peers[number])
                    at = time.perf_counter() + self._delay
                    heapq.heappush(self._late, (at, next(self._numbers), out, to, 0 if inward else 1, pieces))

    def _back(self, peer: Any) -> socket.socket:
        back = self._backs.get(peer)
        if back is None:
            back = self._backs[peer] = _socket()
            self._peers[back.fileno()], self._sockets[back.fileno()] = peer, back
            self._poll.register(back.fileno(), select.EPOLLIN)
        return back


def _send(out: socket.socket, to: Any, pieces: Sequence[bytes]) -> None:
    """Send datagrams of one size, the last of which may be shorter."""
    if len(pieces) == 1:
        out.sendto(pieces[0], to)
        return
    for at in range(0, len(pieces), _PIECES_MAX):
        part = pieces[at : at + _PIECES_MAX]
        out.sendmsg(part, [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(len(part[0])))], 0, to)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock
