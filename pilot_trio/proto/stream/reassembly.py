"""The receiving half's data: what may be read, and segments that came early (`spec/transport.md` §4.3, §4.4)."""

from __future__ import annotations

from collections import deque

from pilot_trio.proto.sequence import seq_add, seq_diff, seq_lt
from pilot_trio.proto.stream.settings import RECEIVE_SLOTS, SEGMENT
from pilot_trio.wire.sack import BLOCKS_MAX, Block

_SIZE_MAX = RECEIVE_SLOTS * SEGMENT  # bytes queued or early; what the advertised window promises


class Reassembly:
    """In-order bytes waiting for the reader, and early segments waiting for the gap before them."""

    __slots__ = ("_early", "_early_bytes", "_queue", "queued_bytes", "rcv_nxt")

    def __init__(self, rcv_nxt: int) -> None:
        self.rcv_nxt = rcv_nxt
        self._queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self._early: dict[int, bytes] = {}  # {seq: payload}
        self._early_bytes = 0

    @property
    def window(self) -> int:
        """Free slots to advertise. Early segments do not count: they fill room that was promised already."""
        return max(0, (_SIZE_MAX - self.queued_bytes) // SEGMENT)

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
        offset = seq_diff(seq, self.rcv_nxt)
        if offset < 0 or not payload:
            return False
        if offset > 0:
            fits = offset + len(payload) <= _SIZE_MAX - self.queued_bytes and len(self._early) < RECEIVE_SLOTS
            if fits and seq not in self._early:
                self._early[seq] = payload
                self._early_bytes += len(payload)
            return False
        if self.queued_bytes + len(payload) > _SIZE_MAX + SEGMENT:
            return False
        self._append(payload)
        if self._early:
            self._join()
        return True

    def _append(self, payload: bytes) -> None:
        self._queue.append(payload)
        self.queued_bytes += len(payload)
        self.rcv_nxt = seq_add(self.rcv_nxt, len(payload))

    def _join(self) -> None:
        while (payload := self._early.pop(self.rcv_nxt, None)) is not None:
            self._early_bytes -= len(payload)
            self._append(payload)
        for seq in [seq for seq in self._early if seq_lt(seq, self.rcv_nxt)]:
            self._early_bytes -= len(self._early.pop(seq))

    def read(self, max_bytes: int) -> bytes:
        """Take up to `max_bytes` of what is in order; `b""` if there is nothing."""
        if not self._queue:
            return b""
        if self.queued_bytes <= max_bytes:
            data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
            self._queue.clear()
            self.queued_bytes = 0
            return data
        taken: list[bytes] = []
        size = 0
        while size < max_bytes:
            first = self._queue.popleft()
            if size + len(first) > max_bytes:
                self._queue.appendleft(first[max_bytes - size :])
                first = first[: max_bytes - size]
            taken.append(first)
            size += len(first)
        self.queued_bytes -= size
        return b"".join(taken)

    def discard(self) -> None:
        """Forget everything: nobody will read it."""
        self._queue.clear()
        self._early.clear()
        self.queued_bytes = self._early_bytes = 0

    def sack_blocks(self) -> list[Block]:
        """Return what lies beyond the gap: merged, ascending, the highest four (`spec/transport.md` §4.5)."""
        if not self._early:
            return []
        blocks: list[Block] = []
        for seq in sorted(self._early, key=lambda seq: seq_diff(seq, self.rcv_nxt)):
            end = seq_add(seq, len(self._early[seq]))
            if blocks and blocks[-1][1] == seq:
                blocks[-1] = (blocks[-1][0], end)
            else:
                blocks.append((seq, end))
        return blocks[-BLOCKS_MAX:]
