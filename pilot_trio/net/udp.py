"""A UDP socket of the operating system, read and written in batches.

One system call, one wake-up and one turn of the loop per packet is what makes a datagram program slow. So reading waits
once and then takes what is there, up to a bound; equal datagrams to one destination leave in one call where the kernel
can cut them (`UDP_SEGMENT`), and arrive in one where it can join them (`UDP_GRO`). Both are optional: what the kernel, the
driver or the path refuses is done plainly from then on, for good on that socket.

Nothing here raises for what the network does: datagrams are lost, and losses are counted.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from pilot_trio.net.endpoint import Endpoint

Addr = tuple[str, int]
"""Host literal and port; an `Endpoint` is one. Plain tuples, because one is made per datagram."""

DATAGRAM_MAX: Final = 65_535  # bytes; the most that one read returns, joined datagrams included
RECEIVE_BATCH_MAX: Final = 256  # datagrams per turn; then timers and clients get theirs
SEND_QUEUE_MAX: Final = 1024  # datagrams kept while the kernel's buffer is full; more are dropped, as a network would
BUFFER_WANTED: Final = 8 << 20  # bytes of kernel buffer per direction; a burst of every peer's window must fit into it
SEGMENT_MAX: Final = 8932  # bytes of a datagram cut by the kernel at most: what fits into a jumbo frame
SEGMENT_USUAL: Final = 1452  # bytes; what fits into every usual link, and is cut for whatever destination
SEGMENTS_MAX: Final = 64  # datagrams per call; the kernel's own limit
SEGMENTED_BYTES_MAX: Final = 65_507  # bytes per call; what fits into one datagram
GREEDY_PROBE: Final = 4  # lone reads after which one more finds out whether there is more now
FEW: Final = (
    4  # datagrams; so many can come joined of a peer that waits for an answer, and most likely nothing is behind
)

_UDP_SEGMENT: Final = 103  # linux/udp.h; the socket module does not name them
_UDP_GRO: Final = 104
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; beyond the system's limit, for those who may
_SO_RCVBUFFORCE: Final = 33
_ANCILLARY: Final = socket.CMSG_SPACE(struct.calcsize("i")) if hasattr(socket, "CMSG_SPACE") else 0
_MAPPED: Final = "::ffff:"  # what an IPv6 socket has before IPv4 addresses
_INT = struct.Struct("i")
_SEGMENT_SIZE = struct.Struct("H")

_NO_SEGMENTATION: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
_NO_WAY: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})
_GONE: Final = frozenset({errno.EBADF, errno.ENOTSOCK})


@attrs.frozen
class UDPStatistics:
    """Counters of one socket."""

    received: int  # datagrams
    reads: int  # system calls that returned some
    sent: int  # datagrams
    writes: int  # system calls that took some
    queued: int  # datagrams that wait for room in the kernel's buffer now
    dropped: int  # datagrams that could not be sent
    segmentation: bool
    coalescing: bool
    receive_buffer: int  # bytes
    send_buffer: int  # bytes


class UDPSocket:
    """A bound socket, non-blocking, and what was learned about it.

    Args:
      sock: bound; owned by this object from now on.
      segmentation: use `UDP_SEGMENT` while it works.
      coalescing: use `UDP_GRO` if the kernel has it.
    """

    def __init__(self, sock: socket.socket, *, segmentation: bool = True, coalescing: bool = True) -> None:
        sock.setblocking(False)
        self._sock = sock
        host, port = sock.getsockname()[:2]
        self.endpoint: Final = Endpoint(host, port)
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._segmentation = segmentation and hasattr(sock, "sendmsg")
        self._segment_max = SEGMENT_MAX  # bytes
        self._coalescing = coalescing and _set(sock, socket.IPPROTO_UDP, _UDP_GRO, 1)
        self.receive_buffer: Final = _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self.send_buffer: Final = _enlarge(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        self._queue: deque[tuple[bytes, Addr]] = deque()
        self._queue_filled = trio.lowlevel.ParkingLot()
        self._greedy = False
        self._lone = 0  # reads in a row that found few datagrams
        self._closed = False
        self._received = self._reads = self._sent = self._writes = self._dropped = 0

    def statistics(self) -> UDPStatistics:
        """Return the counters."""
        return UDPStatistics(
            received=self._received,
            reads=self._reads,
            sent=self._sent,
            writes=self._writes,
            queued=len(self._queue),
            dropped=self._dropped,
            segmentation=self._segmentation,
            coalescing=self._coalescing,
            receive_buffer=self.receive_buffer,
            send_buffer=self.send_buffer,
        )

    @property
    def lost(self) -> int:
        """Datagrams that could not be sent so far."""
        return self._dropped

    def close(self) -> None:
        """Release the port. Tasks inside get `trio.ClosedResourceError`. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(RuntimeError):  # outside of a run nobody waits
                trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self._queue.clear()
            self._queue_filled.unpark_all()

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def receive_batch(self) -> list[tuple[bytes, Addr]]:
        """Wait until something arrives; return it, at least one datagram, and not many more than `RECEIVE_BATCH_MAX`.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        batch: list[tuple[bytes, Addr]] = []
        while not batch:
            if self._closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._sock)
            self._read(batch)
        return batch

    def _read(self, batch: list[tuple[bytes, Addr]]) -> None:
        """Take what is there. Reading on until nothing is left pays only when there was more than one read finds at once."""
        probe, reads = self._lone >= GREEDY_PROBE, 0
        while len(batch) < RECEIVE_BATCH_MAX:
            if not self._read_once(batch):
                break
            reads += 1
            if not (self._greedy or probe or reads > 1 or len(batch) > FEW):
                break
            probe = False
        self._greedy = reads > 1 or len(batch) > FEW
        self._lone = 0 if self._greedy or self._lone >= GREEDY_PROBE else self._lone + 1

    def _read_once(self, batch: list[tuple[bytes, Addr]]) -> bool:
        try:
            data, ancillary, _, source = self._sock.recvmsg(DATAGRAM_MAX, _ANCILLARY)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            if exc.errno in _GONE:
                raise trio.ClosedResourceError from exc
            # An ICMP answer to something sent earlier, or an interface that went: it says nothing about the next datagram.
            # Reading has taken the error off the socket, so the loop waits again instead of spinning.
            return False
        self._reads += 1
        address = _normalised(source) if self._is_ipv6 else source
        size = len(data)
        piece = _piece_size(ancillary) if ancillary else 0
        if 0 < piece < size:
            pieces = [(data[at : at + piece], address) for at in range(0, size, piece)]
            batch += pieces
            self._received += len(pieces)
        else:
            batch.append((data, address))
            self._received += 1
        return True

    # --- sending -----------------------------------------------------------------------------------------------------

    def send_batch(self, batch: Sequence[tuple[bytes, Addr]]) -> list[Addr]:
        """Send datagrams in this order, without waiting; return the destinations to which the system knows no way.

        Destinations are address literals: a name would be looked up here and now, and hold up everything.

        What the kernel has no room for now is kept and leaves, still in order, with the next batch or through
        `send_queued`, whichever comes first; what exceeds that queue is dropped and counted.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        unreachable: list[Addr] = []
        if self._queue:
            self._send_what_waits()
        if self._queue:
            self._enqueue(batch)
            return unreachable
        taken = self._send(batch, unreachable)
        if taken < len(batch):
            self._enqueue(batch[taken:])
        return unreachable

    async def send_queued(self) -> None:
        """Send what had to be kept whenever the kernel has room again, for ever.

        Raises:
          trio.ClosedResourceError: the socket is closed.
        """
        while True:
            while not self._queue:
                if self._closed:
                    raise trio.ClosedResourceError
                await self._queue_filled.park()
            await trio.lowlevel.wait_writable(self._sock)
            self._send_what_waits()

    def _send_what_waits(self) -> None:
        for _ in range(self._send(list(self._queue), [])):
            self._queue.popleft()

    def _enqueue(self, batch: Sequence[tuple[bytes, Addr]]) -> None:
        room = SEND_QUEUE_MAX - len(self._queue)
        self._queue.extend(batch[:room])
        self._dropped += max(0, len(batch) - room)
        self._queue_filled.unpark()

    def _send(self, batch: Sequence[tuple[bytes, Addr]], unreachable: list[Addr]) -> int:
        """Send until the kernel's buffer is full; return how many datagrams are done with, sent or lost."""
        at, end = 0, len(batch)
        suspicious = False  # segmentation failed just now: its fault, or the destination's?
        while at < end:
            to = batch[at][1]
            alone = at + 1 == end or not self._segmentation or suspicious
            pieces = [batch[at][0]] if alone else _alike(batch, at, self._segment_max)
            count = len(pieces)
            try:
                self._send_alike(pieces, to)
            except (BlockingIOError, InterruptedError):
                return at
            except OSError as exc:
                if count > 1 and exc.errno in _NO_SEGMENTATION:
                    if len(pieces[0]) > SEGMENT_USUAL:
                        self._segment_max = SEGMENT_USUAL  # too large for that destination's link, which may be all
                    else:
                        suspicious = True
                    continue  # the first of them again, alone
                self._lose(count, exc.errno, to, unreachable)
            except (TypeError, UnicodeError, OverflowError):
                self._dropped += count  # no address at all
            else:
                self._segmentation = self._segmentation and not suspicious
            suspicious = False
            at += count
        return at

    def _send_alike(self, pieces: list[bytes], to: Addr) -> None:
        if self._is_ipv6 and ":" not in to[0]:
            to = (_MAPPED + to[0], to[1])
        if len(pieces) > 1:
            size = _SEGMENT_SIZE.pack(len(pieces[0]))
            self._sock.sendmsg(pieces, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, to)
        else:
            self._sock.sendto(pieces[0], to)
        self._writes += 1
        self._sent += len(pieces)

    def _lose(self, count: int, number: int | None, to: Addr, unreachable: list[Addr]) -> None:
        if number in _GONE:
            raise trio.ClosedResourceError
        if number in _NO_WAY:
            unreachable.append(to)
        self._dropped += count


def _alike(batch: Sequence[tuple[bytes, Addr]], at: int, size_max: int) -> list[bytes]:
    """Return the datagrams from `at` on that can leave in one call: one destination, equal sizes, the last shorter."""
    first, to = batch[at]
    size = len(first)
    if not 0 < size <= size_max:
        return [first]
    pieces: list[bytes] = []
    for data, other in batch[at : at + min(SEGMENTS_MAX, SEGMENTED_BYTES_MAX // size)]:
        if len(data) != size or (other is not to and other != to):
            if 0 < len(data) < size and other == to:
                pieces.append(data)
            break
        pieces.append(data)
    return pieces


def _piece_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the size of the datagrams that the kernel has joined, 0 if it has not."""
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO and len(value) >= _INT.size:
            size: int = _INT.unpack_from(value)[0]
            return size
    return 0


def _normalised(source: tuple[str, int, int, int]) -> Addr:
    """Return an IPv6 socket's view of an IPv4 host as the IPv4 host that it is."""
    host = source[0]
    return (host.removeprefix(_MAPPED) if "." in host else host), source[1]


def _set(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _enlarge(sock: socket.socket, forced: int, usual: int) -> int:
    """Ask for a large kernel buffer; return what was granted. Linux counts its bookkeeping in, so half of it is data."""
    if not _set(sock, socket.SOL_SOCKET, forced, BUFFER_WANTED):
        _set(sock, socket.SOL_SOCKET, usual, BUFFER_WANTED)
    return sock.getsockopt(socket.SOL_SOCKET, usual)
