"""Streams of a node with itself: two connected ends in one process.

No packets, no timers, no retransmission: what one end writes is appended to the other end's receive buffer, and the room
in that buffer is the window. The idle and keepalive rules of `spec/transport.md` §3.5 do not apply: they find peers that
have died silently, and neither end of a local pair can die without the other being told.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Final

import trio

from pilot_trio.address import ConnId, SocketAddress
from pilot_trio.daemon.connection import Connection, ConnState, StateHook
from pilot_trio.proto.stream.congestion import CWND_INITIAL, SSTHRESH_INITIAL
from pilot_trio.proto.stream.settings import SEGMENT

LOCAL_BUFFER_MAX: Final = 131_072  # bytes held per direction of a local pair; twice as much was no faster
LOCAL_LOW_WATER: Final = 32_768  # bytes of room that wake a waiting writer; less would cost a wake-up per small read

# Windows are shown in the units of the protocol (`spec/transport.md` §10), a full buffer being its 512 slots.
_SLOT = LOCAL_BUFFER_MAX // 512  # bytes of a buffer that one slot stands for
_SLOT_OWN = 4096  # bytes that a slot of the own window is shown as; a slot of the peer's is `SEGMENT`


class LocalConnection(Connection):
    """One end of a pair; `connect` makes the pair."""

    recyclable: ClassVar[bool] = True  # no packet of a local pair can arrive late

    _peer: LocalConnection

    def __init__(
        self,
        conn_id: ConnId,
        local: SocketAddress,
        remote: SocketAddress,
        *,
        owner: Hashable,
        dialled: bool,
        on_state: StateHook,
    ) -> None:
        super().__init__(conn_id, local, remote, owner=owner, dialled=dialled, on_state=on_state)
        self._unread = bytearray()
        self._bytes_sent = self._segments_sent = 0
        self._closed_here = False

    def connect(self, acceptor: LocalConnection) -> None:
        """Connect two fresh ends, this being the dialling one; both are `ESTABLISHED` when this returns."""
        self._peer, acceptor._peer = acceptor, self
        acceptor._enter(ConnState.ESTABLISHED)
        self._enter(ConnState.ESTABLISHED)

    @property
    def settled(self) -> bool:
        return not self._unread

    @property
    def has_input(self) -> bool:
        return bool(self._unread) or self._closed_here or self.state.ended

    @property
    def _room(self) -> int:
        return LOCAL_BUFFER_MAX - len(self._unread)

    def write_nowait(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        if self.state is not ConnState.ESTABLISHED:
            raise trio.BrokenResourceError("the other side has closed the stream")
        peer = self._peer
        taken = min(len(data), peer._room)  # the two ends are one object in two halves
        if taken:
            peer._unread += data[:taken]
            self._bytes_sent += taken
            self._segments_sent += 1
            peer._wake_readers()
        return taken

    def receive_nowait(self, max_bytes: int) -> bytes:
        self._check_open()
        if self._unread:
            data = self._take(max_bytes)
            # Only here does room appear, so only here can a writer have to be woken; `_writable` is the same condition.
            if self._room >= LOCAL_LOW_WATER:
                self._peer._wake_writers()
            return data
        if self.state is ConnState.CLOSED:
            raise trio.BrokenResourceError("the other side has reset the stream")
        if self.state is ConnState.TIME_WAIT:
            return b""
        raise trio.WouldBlock

    def close(self) -> None:
        self._closed_here = True
        self._unread.clear()
        if self.state is ConnState.ESTABLISHED:
            # Both ends go straight to TIME_WAIT: the FIN and its answers cannot be lost between them.
            self._enter(ConnState.TIME_WAIT)
            self._peer._enter(ConnState.TIME_WAIT)

    def reset(self) -> None:
        self._closed_here = True
        for end in (self, self._peer):
            end._unread.clear()
            if end.state is not ConnState.CLOSED:
                end._enter(ConnState.CLOSED)

    @property
    def bytes_received(self) -> int:
        return self._peer._bytes_sent

    def hurry(self) -> None:
        pass  # a close here waits for nobody

    def row(self) -> dict[str, Any]:
        return {
            "id": self.conn_id,
            "local_port": self.local.port,
            "remote_addr": str(self.remote.address),
            "remote_port": self.remote.port,
            "state": self.state.value,
            "bytes_sent": self._bytes_sent,
            "bytes_recv": self._peer._bytes_sent,
            "segs_sent": self._segments_sent,
            "segs_recv": self._peer._segments_sent,
            "cong_win": CWND_INITIAL,
            "ssthresh": SSTHRESH_INITIAL,
            "recv_win": self._room // _SLOT * _SLOT_OWN,
            "peer_recv_win": self._peer._room // _SLOT * SEGMENT,
            **_NOTHING_LOST,
        }

    def _writable(self) -> bool:
        return self.state is not ConnState.ESTABLISHED or self._peer._room >= LOCAL_LOW_WATER

    def _check_open(self) -> None:
        if self._closed_here:
            raise trio.ClosedResourceError("this end of the stream was closed")

    def _take(self, max_bytes: int) -> bytes:
        unread = self._unread
        if max_bytes >= len(unread):
            data = bytes(unread)
            unread.clear()
        else:
            with memoryview(unread) as view, view[:max_bytes] as head:
                data = bytes(head)  # one copy; a slice of a bytearray would be a second one
            del unread[:max_bytes]
        return data


# What only a network can do to a stream.
_NOTHING_LOST: Final[dict[str, Any]] = {
    "retransmits": 0,
    "fast_retx": 0,
    "sack_sent": 0,
    "sack_recv": 0,
    "dup_acks": 0,
    "in_flight": 0,
    "unacked": 0,
    "ooo_buf": 0,
    "in_recovery": False,
    "srtt_ms": 0,
    "rttvar_ms": 0,
}
