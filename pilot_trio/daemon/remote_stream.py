"""Streams to other nodes: a stream machine, the tunnel under it, and the connection table's view of it.

`RemoteConnection` has no protocol in it; `proto.stream` has. After every input, whoever gave it, `pump` is the one way on:
packets to the tunnel, events to whoever waits, the next deadline to the timers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

import trio

from pilot_trio.address import ConnId
from pilot_trio.daemon.connection import Connection, ConnState, StateHook
from pilot_trio.net.timers import Timers
from pilot_trio.proto.stream.connection import Connection as Machine
from pilot_trio.proto.stream.connection import Event, State

Pump = Callable[["RemoteConnection"], None]
"""Sends what the machine has to send, and arms its timer; called after every input."""

_STATES: Final = {
    State.SYN_SENT: ConnState.SYN_SENT,
    State.SYN_RECV: ConnState.SYN_RECV,
    State.ESTABLISHED: ConnState.ESTABLISHED,
    State.FIN_WAIT: ConnState.FIN_WAIT,
    State.TIME_WAIT: ConnState.TIME_WAIT,
    State.CLOSED: ConnState.CLOSED,
}
_BREAKING: Final = frozenset({Event.TRUNCATED, Event.IDLE_TIMEOUT, Event.DEAD_PEER})
"""Events after which what was read is not known to be all that was written."""
_EXPIRIES: Final = {Event.IDLE_TIMEOUT: "conn.idle_timeout", Event.DEAD_PEER: "conn.dead_peer"}


class RemoteConnection(Connection):
    """One end of a stream whose other end is another node's."""

    def __init__(
        self,
        conn_id: ConnId,
        machine: Machine,
        *,
        owner: Hashable,
        dialled: bool,
        on_state: StateHook,
        pump: Pump,
        clock: Callable[[], float],
        timers: Timers,
    ) -> None:
        super().__init__(conn_id, machine.local, machine.remote, owner=owner, dialled=dialled, on_state=on_state)
        self.machine: Final = machine
        self.on_answer: Callable[[], None] | None = None  # called when a dial is over, one way or the other
        self.on_unanswered: Callable[[float], None] | None = None  # has the timer for as long as it is a dial
        self.refused = False
        self.touched = False  # the carrier will advance it when its turn ends
        self.over = False  # it is in TIME_WAIT, and the carrier will forget it
        self.forgotten = False  # the carrier's tables have nothing of it any more
        self.timer: Final = timers.timer(self._on_due)
        self._pump = pump
        self._clock = clock
        self.followed = State.SYN_SENT  # the machine's state that was acted upon last
        self._closed_here = False
        self._broke = False  # the end came before the peer's was reached

    def announce(self) -> None:
        """Tell whoever follows this connection that it is established; an accepting one is from the start."""
        self._follow(self.machine.state)

    @property
    def settled(self) -> bool:
        return not self.machine.readable

    @property
    def has_input(self) -> bool:
        return self.machine.has_input or self._broke or self._closed_here

    @property
    def bytes_received(self) -> int:
        return self.machine.bytes_received

    def repeat_now(self) -> None:
        """Send again now what waits for a timeout: the path was dead and is no more."""
        self.machine.repeat_now(trio.current_time())
        self._pump(self)

    def _on_due(self, now: float) -> None:
        if self.on_unanswered is not None:
            self.on_unanswered(now)
        else:
            self.machine.handle_timeout(now)
            self._pump(self)

    def deliver_events(self) -> None:
        """Act on what the machine has to say; part of the pump. To be called if it has events, or another state."""
        readable = False
        machine = self.machine
        events = machine.events
        while events:
            event = events.popleft()
            if event is Event.READABLE or event is Event.END_OF_STREAM:
                readable = True
            elif event is Event.WRITABLE:
                self._wake_writers()
            elif event is Event.OPENED:
                # Heard where it happened: the end of the stream may have come in the same batch, and is told after it.
                self._follow(State.ESTABLISHED)
            elif event is Event.REFUSED:
                self.refused = True
            elif event in _BREAKING or (event is Event.CLOSED and self.state is ConnState.ESTABLISHED):
                self._broke = True
                self.expiry = _EXPIRIES.get(event, "")
        if readable:  # only now: a break is announced after the end of the stream, and has to be heard before it
            self._wake_readers()
        if machine.state is not self.followed:
            self._follow(machine.state)

    def _follow(self, machine_state: State) -> None:
        self.followed = machine_state
        state = _STATES[machine_state]
        # A row in TIME_WAIT is the table's from then on: unread bytes outlive the machine's own timer.
        if state is not self.state and self.state is not ConnState.TIME_WAIT:
            self._enter(state)
        if state is not ConnState.SYN_SENT and self.on_answer is not None:
            on_answer, self.on_answer = self.on_answer, None
            on_answer()

    def pump(self) -> None:
        """Send what there is to be sent."""
        self._pump(self)

    def repeat_syn(self) -> None:
        """Send the SYN of a dial again."""
        self.machine.send_syn()
        self._pump(self)

    def write_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self._closed_here or self.state is not ConnState.ESTABLISHED:
            self._check_open()
            raise trio.BrokenResourceError("the stream has ended")
        taken = self.machine.write(memoryview(data))
        if taken:
            self._pump(self)
        return taken

    def receive_nowait(self, max_bytes: int) -> bytes:
        if self._closed_here:
            self._check_open()
        data = self.machine.read(max_bytes)
        if data:
            if self.machine.owes_acknowledgment:
                self._pump(self)  # the window is open again, and nothing else would tell the peer
            return data
        if self._broke:
            raise trio.BrokenResourceError("the stream broke: the other side has reset it, or was not heard any more")
        if self.machine.ended:
            return b""
        raise trio.WouldBlock

    def close(self) -> None:
        if not self._closed_here:
            self._closed_here = True
            was_over = self.machine.state is State.TIME_WAIT
            self.machine.close(self._clock())
            if not was_over:  # else nothing comes of it
                self._pump(self)
            self._wake_readers()
            if self._writers is not None:
                self._wake_writers()

    def reset(self) -> None:
        self._closed_here = True
        self.machine.abort()
        self._pump(self)

    def hurry(self) -> None:
        self.machine.hurry(trio.current_time())
        self._pump(self)

    def row(self) -> dict[str, Any]:
        return {"id": self.conn_id, **self.machine.row(), "state": self.state.value}

    def _writable(self) -> bool:
        return self.state is not ConnState.ESTABLISHED or self.machine.send_room > 0

    def _check_open(self) -> None:
        if self._closed_here:
            raise trio.ClosedResourceError("this end of the stream was closed")
