"""One end of an overlay stream, whoever carries it.

`Connection` is what the IPC commands, the services and the connection table hold. `local_stream` implements it for a
node that dials itself; tunnels implement it with a TCP-like machine. What an implementation adds is little: take bytes,
give bytes, close, reset. The waiting is here, so that no implementation can lose a wake-up of its own.

There is no half-close (`spec/transport.md` §0): after `close` by either side nobody sends any more, and what was written
before is still delivered to the side that did not close.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, ClassVar, Final

import trio

from pilot_trio.address import ConnId, SocketAddress


class ConnState(Enum):
    """States as users see them (`spec/transport.md` §3.1)."""

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN_SENT"
    SYN_RECV = "SYN_RECV"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT = "FIN_WAIT"
    CLOSE_WAIT = "CLOSE_WAIT"
    TIME_WAIT = "TIME_WAIT"

    __hash__ = object.__hash__  # members are singletons, and the usual one is a call of Python at every look-up

    def __init__(self, text: str) -> None:
        self.active: Final = text not in {"CLOSED", "TIME_WAIT"}
        """Whether limits and counters include a connection in this state."""
        self.ended: Final = text not in {"SYN_SENT", "SYN_RECV", "ESTABLISHED"}
        """Whether nothing more can be written in this state, now or later."""


StateHook = Callable[["Connection", ConnState], None]

Consumer = Callable[[], None]
"""Called when there is something to receive; must neither wait nor raise, may read, write and close."""


class Connection(abc.ABC):
    """One end of a stream. Everything but the `wait_…` methods, `write_all` and `receive_some` returns at once.

    One task may write while another reads, or a consumer in its place: a call costs a fraction of waking a task. Methods raise `trio.ClosedResourceError` once this end was closed or reset by
    us, `trio.BrokenResourceError` once the stream was ended by the other side (for reading: only by a reset; a graceful
    end is `b""` after the last byte).

    Implementations call `_enter` for every change of state, `_wake_readers` whenever `receive_nowait` has something new
    to say, `_wake_writers` whenever `_writable` turns true.

    Args:
      conn_id: the id that local clients use; unique in the table.
      local: own address in the network of the dial, and the local port.
      remote: the other end.
      owner: who gets to use it: closed with `StreamTable.close_owned`.
      dialled: True for the dialling end; its local port is an ephemeral one and goes back with the table's row.
      on_state: called after each change of state with the connection and its old state.
    """

    recyclable: ClassVar[bool] = False  # a finished row may go early: nothing of it can arrive late

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
        self.conn_id: Final = conn_id
        self.local: Final = local
        self.remote: Final = remote
        self.owner: Final = owner
        self.dialled: Final = dialled
        self.expiry = ""  # the event that says why it was given up; "" unless it was
        self.state = ConnState.SYN_SENT if dialled else ConnState.SYN_RECV
        """Where in its life the connection is; changed by `_enter` alone."""
        self._on_state = on_state
        self._consumer: Consumer | None = None
        # Made when somebody waits, as on most streams nobody does: they cost more than all else here, and there are many.
        self._readers: trio.lowlevel.ParkingLot | None = None
        self._writers: trio.lowlevel.ParkingLot | None = None

    @property
    @abc.abstractmethod
    def settled(self) -> bool:
        """True once nothing is left that anybody may want: no unread bytes, nothing unsent."""

    @property
    @abc.abstractmethod
    def has_input(self) -> bool:
        """Whether `receive_nowait` has something to say. Cheaper than a call in vain, which takes an exception."""

    @abc.abstractmethod
    def write_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for, in order; return how many bytes that were, 0 if the send buffer is full.

        The bytes are copied: the caller may reuse its buffer.
        """

    @abc.abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes:
        """Return 1 to `max_bytes` bytes, or `b""` once the other side closed and all it wrote was read.

        Reading is what opens the window again: whoever takes bytes wakes the sender, wherever it is.

        Raises:
          trio.WouldBlock: nothing there yet.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close gracefully: all that was written is delivered, what is unread is discarded. Idempotent."""

    @abc.abstractmethod
    def reset(self) -> None:
        """End the stream at once in both directions; unread bytes are lost. Idempotent."""

    @abc.abstractmethod
    def hurry(self) -> None:
        """Let a close that waits for the other side's acknowledgment wait no longer: the node is going."""

    @property
    @abc.abstractmethod
    def bytes_received(self) -> int:
        """How many bytes have arrived from the other side, read or not."""

    @abc.abstractmethod
    def row(self) -> dict[str, Any]:
        """Return this connection as a row of the connection list, `id` included (`spec/ipc.md` §5.9)."""

    @abc.abstractmethod
    def _writable(self) -> bool:
        """Whether a waiting writer should try again: room worth a wake-up, or an end of the stream."""

    async def write_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything, waiting for room; not a checkpoint if it fits. Cancelled: a prefix may have been written."""
        rest = memoryview(data)
        while True:
            rest = rest[self.write_nowait(rest) :]
            if not rest:
                return
            await self.wait_writable()

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return as `receive_nowait` does, waiting for something; not a checkpoint if something is there."""
        while True:
            try:
                return self.receive_nowait(max_bytes)
            except trio.WouldBlock:
                if self._readers is None:
                    self._readers = trio.lowlevel.ParkingLot()
                await self._readers.park()

    def attach(self, consumer: Consumer) -> None:
        """Call `consumer` whenever `receive_nowait` has something new to say; no task receives from then on.

        If it has something to say already, it is called at once.
        """
        self._consumer = consumer
        if self.has_input:
            consumer()

    def detach(self) -> None:
        """Call it no more. Whoever has seen the end of the stream does this."""
        self._consumer = None

    async def wait_writable(self) -> None:
        """Return when there is room worth a try, or when the stream has ended; not a checkpoint if that is so now."""
        while not self._writable():
            if self._writers is None:
                self._writers = trio.lowlevel.ParkingLot()
            await self._writers.park()

    def _enter(self, state: ConnState) -> None:
        old, self.state = self.state, state
        self._on_state(self, old)
        if self._consumer is not None or self._readers is not None:
            self._wake_readers()
        if self._writers is not None:
            self._wake_writers()

    def _wake_readers(self) -> None:
        if self._consumer is not None:
            self._consumer()
        elif self._readers is not None:
            self._readers.unpark_all()

    def _wake_writers(self) -> None:
        if self._writers is not None:
            self._writers.unpark_all()
