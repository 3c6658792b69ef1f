"""The receiving half's data: what may be read, and segments that came early (`spec/transport.md` §4.3, §4.4).

Positions are sequence numbers that do not wrap: the low 32 bits are what the wire carries. They sort, so the ranges of
early segments are kept merged as they arrive, and reporting them costs nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, final

from pilot_trio.proto.stream.settings import RECEIVE_SLOTS, SEGMENT
from pilot_trio.wire.packet import ACK, Packet
from pilot_trio.wire.sack import BLOCKS_MAX, MAGIC, Block

SIZE_MAX: Final = RECEIVE_SLOTS * SEGMENT  # bytes queued or early; what the advertised window promises
REPORTS_MAX: Final = 16  # reports at a time; ranges beyond them are named when they grow, or sent again for nothing
_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 1 << 31


class Reassembly:
    """In-order bytes waiting for the reader, and early segments waiting for the gap before them."""

    __slots__ = ("_early", "_ends", "_news", "_queue", "_starts", "boundaries", "position", "queued_bytes")

    def __init__(self, rcv_nxt: int = 0) -> None:
        self.position = rcv_nxt  # of the next byte in order
        self.queued_bytes = 0
        self.boundaries: list[int] = []  # positions after the segments that came in order; who wants them clears them
        self._queue: deque[bytes] = deque()
        self._early: dict[int, bytes] = {}  # {position: payload}; no two overlap
        self._starts: list[int] = []  # of the merged ranges of early segments, ascending
        self._ends: list[int] = []
        self._news: list[int] = []  # positions of early segments that came since the last report

    @property
    def rcv_nxt(self) -> int:
        """The sequence number of the next byte in order."""
        return self.position & _MASK

    @property
    def window(self) -> int:
        """Free slots to advertise. Early segments do not count: they fill room that was promised already.

        A slot is a segment of any size, so that a peer that sends single bytes does not make us hold millions of them.
        """
        by_bytes = (SIZE_MAX - self.queued_bytes) // SEGMENT
        return max(0, min(by_bytes, RECEIVE_SLOTS - len(self._queue)))

    @property
    def has_gap(self) -> bool:
        """True while early segments wait."""
        return bool(self._early)

    @property
    def early_count(self) -> int:
        """Early segments held."""
        return len(self._early)

    def receive(self, seq: int, payload: bytes) -> bool:
        """Take a segment; return True if bytes became readable.

        Segments are matched by their exact sequence number, as every implementation does: one that starts before
        `rcv_nxt` is a duplicate even if its tail is new. What does not fit is dropped, and its sender tries again.
        """
        offset = ((seq - self.position + _HALF) & _MASK) - _HALF
        if offset:
            if offset > 0 and payload:
                self._keep(self.position + offset, payload)
            return False
        size = len(payload)
        if not size or self.queued_bytes + size > SIZE_MAX + SEGMENT or len(self._queue) > RECEIVE_SLOTS:
            return False
        self._queue.append(payload)
        self.queued_bytes += size
        self.position += size
        if self._early:
            self._join()
        else:
            self.boundaries.append(self.position)
        return True

    def receive_run(self, packets: Sequence[Packet], at: int, ack: int, window: int) -> tuple[int, int]:
        """Take packets from `at` on as long as they bring data in order and nothing else.

        Args:
          packets: received together.
          at: index of the first.
          ack: acknowledgment number that is news no more.
          window: window field that is news no more.

        Returns:
          How many were taken, and their bytes.
        """
        if self._early:
            return 0, 0
        queue, boundaries, position = self._queue, self.boundaries, self.position
        last = position + SIZE_MAX - self.queued_bytes
        end = min(len(packets), at + RECEIVE_SLOTS - len(queue))
        first = at
        while at < end:
            flags, _, _, _, _, _, seq, packet_ack, packet_window, payload = packets[at]
            if (
                flags != ACK
                or seq != position & _MASK
                or packet_ack != ack
                or packet_window != window
                or not payload
                or position >= last
                or payload.startswith(MAGIC)
            ):
                break
            queue.append(payload)
            position += len(payload)
            boundaries.append(position)
            at += 1
        size = position - self.position
        self.queued_bytes += size
        self.position = position
        return at - first, size

    def _keep(self, start: int, payload: bytes) -> None:
        """Keep an early segment, unless it is beyond what was promised or touches bytes that are held already."""
        end = start + len(payload)
        starts, ends = self._starts, self._ends
        if end - self.position > SIZE_MAX - self.queued_bytes or len(self._early) >= RECEIVE_SLOTS:
            return
        at = bisect_right(starts, start)
        if (at and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            return
        self._early[start] = payload
        self._news.append(start)
        joins_left = at > 0 and ends[at - 1] == start
        joins_right = at < len(starts) and starts[at] == end
        if joins_left and joins_right:
            ends[at - 1] = ends.pop(at)
            del starts[at]
        elif joins_left:
            ends[at - 1] = end
        elif joins_right:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)

    def _join(self) -> None:
        """Append what starts exactly where the bytes in order end."""
        if self._starts[0] < self.position:
            self._purge()
        early = self._early
        if early and self._starts[0] == self.position:
            end = self._ends.pop(0)
            del self._starts[0]
            while self.position < end:
                payload = early.pop(self.position)
                self._queue.append(payload)
                self.queued_bytes += len(payload)
                self.position += len(payload)

    def _purge(self) -> None:
        """Drop early segments that a larger one overtook: a sender that cuts anew has to send the rest again."""
        kept = sorted((start, payload) for start, payload in self._early.items() if start >= self.position)
        self.discard_early()
        for start, payload in kept:
            self._keep(start, payload)

    def read(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes` of what is in order; `b""` if there is nothing."""
        queue = self._queue
        if not queue:
            return b""
        if self.queued_bytes <= max_bytes:
            data = queue[0] if len(queue) == 1 else b"".join(queue)
            queue.clear()
            self.queued_bytes = 0
            return data
        taken: list[bytes] = []
        size = 0
        while size < max_bytes:
            first = queue.popleft()
            if size + len(first) > max_bytes:
                queue.appendleft(first[max_bytes - size :])
                first = first[: max_bytes - size]
            taken.append(first)
            size += len(first)
        self.queued_bytes -= size
        return b"".join(taken)

    def discard(self) -> None:
        """Forget everything: nobody will read it."""
        self._queue.clear()
        self.queued_bytes = 0
        self.discard_early()

    def discard_early(self) -> None:
        """Forget what waits for a gap: it will not be filled."""
        self._early.clear()
        self._starts.clear()
        self._ends.clear()
        self._news.clear()

    def sack_reports(self) -> list[list[Block]]:
        """Return what to say of the bytes beyond the gap: reports of up to four ranges, each ascending; none without a gap.

        They name the ranges that grew since the last time, which may be many after a batch of packets; the last report
        has the highest four, as far as it has room. So each arrival is reported once, and what matters most more often.
        """
        starts, ends = self._starts, self._ends
        if not starts:
            self._news.clear()
            return []
        grown = sorted({bisect_right(starts, start) - 1 for start in self._news if start in self._early})
        self._news.clear()
        grown = grown[-BLOCKS_MAX * REPORTS_MAX :]
        groups = [grown[at : at + BLOCKS_MAX] for at in range(0, len(grown), BLOCKS_MAX)] or [[]]
        last = groups[-1]
        highest = (index for index in range(len(starts) - 1, -1, -1) if index not in last)
        last += islice(highest, BLOCKS_MAX - len(last))
        last.sort()
        return [[(starts[index] & _MASK, ends[index] & _MASK) for index in group] for group in groups]


@final
class NothingReceived(Reassembly):
    """What streams have whose end was reached and whose bytes were read: one for all, so nothing may come into it."""

    __slots__ = ()

    def receive(self, seq: int, payload: bytes) -> bool:
        raise AssertionError(f"{len(payload)} bytes were received on a stream that has ended")

    def receive_run(self, packets: Sequence[Packet], at: int, ack: int, window: int) -> tuple[int, int]:
        raise AssertionError(f"{len(packets) - at} packets were received on a stream that has ended")
