"""Streams of a node with itself: two connected ends in one process.

No packets, no timers, no retransmission: what one end writes is appended to the other end's receive buffer, and the room
in that buffer is the window. The idle and keepalive rules of `spec/transport.md` §3.5 do not apply: they find peers that
have died silently, and neither end of a local pair can die without the other being told.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Final

import trio

from pilot_trio.address import ConnId, SocketAddress
from pilot_trio.daemon.connection import (
    SLOT_OWN,
    SLOT_SENT,
    WINDOW_SLOTS,
    Connection,
    ConnState,
    StateHook,
    StreamFigures,
)

LOCAL_BUFFER_MAX: Final = 131_072  # bytes held per direction of a local pair; twice as much was no faster
LOCAL_LOW_WATER: Final = 32_768  # bytes of room that wake a waiting writer; less would cost a wake-up per small read

_SLOT = LOCAL_BUFFER_MAX // WINDOW_SLOTS  # bytes of our buffer that one slot of the shown window stands for


class LocalConnection(Connection):
    """One end of a pair made by `local_pair`."""

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
        self._figures = StreamFigures()
        self._closed_here = False

    @property
    def settled(self) -> bool:
        return not self._unread

    @property
    def _room(self) -> int:
        return LOCAL_BUFFER_MAX - len(self._unread)

    def write_nowait(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        if self._state is not ConnState.ESTABLISHED:
            raise trio.BrokenResourceError("the other side has closed the stream")
        peer = self._peer
        taken = min(len(data), peer._room)  # the two ends are one object in two halves
        if taken:
            peer._unread += data[:taken]
            _count(self._figures, peer._figures, taken)
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
        if self._state is ConnState.CLOSED:
            raise trio.BrokenResourceError("the other side has reset the stream")
        if self._state is ConnState.TIME_WAIT:
            return b""
        raise trio.WouldBlock

    def close(self) -> None:
        self._closed_here = True
        self._unread.clear()
        if self._state is ConnState.ESTABLISHED:
            # Both ends go straight to TIME_WAIT: the FIN and its answers cannot be lost between them.
            self._enter(ConnState.TIME_WAIT)
            self._peer._enter(ConnState.TIME_WAIT)

    def reset(self) -> None:
        self._closed_here = True
        for end in (self, self._peer):
            end._unread.clear()
            if end.state is not ConnState.CLOSED:
                end._enter(ConnState.CLOSED)

    def figures(self) -> StreamFigures:
        figures = self._figures
        figures.recv_win = self._room // _SLOT * SLOT_OWN
        figures.peer_recv_win = self._peer._room // _SLOT * SLOT_SENT
        return figures

    def _writable(self) -> bool:
        return self._state is not ConnState.ESTABLISHED or self._peer._room >= LOCAL_LOW_WATER

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


def local_pair(dialler: LocalConnection, acceptor: LocalConnection) -> None:
    """Connect two fresh ends with each other; both are `ESTABLISHED` when this returns."""
    dialler._peer, acceptor._peer = acceptor, dialler
    acceptor._enter(ConnState.ESTABLISHED)
    dialler._enter(ConnState.ESTABLISHED)


def _count(sender: StreamFigures, receiver: StreamFigures, size: int) -> None:
    sender.bytes_sent += size
    sender.segs_sent += 1
    receiver.bytes_recv += size
    receiver.segs_recv += 1
