"""What drives the tunnel machine: a socket, a clock, and the rule that everything happens in turns.

Every input - datagrams, a packet to send, an answer of the registry, a deadline - is a *turn*: the machine works it in, what
it says is acted upon, what it wants to send leaves in one batch and in the order in which nonces were taken, and the timer is
armed anew. Nothing sits between nonce and socket, because whatever did could reorder, and a peer takes reordered frames for
replayed ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.turn import Turn
from pilot_trio.net.network import Addr, DatagramSocket
from pilot_trio.net.timers import Timers
from pilot_trio.proto.tunnel.events import Event
from pilot_trio.proto.tunnel.machine import Received, RouteAnswer, TunnelMachine

RECEIVE_PAUSE: Final = 0.1  # seconds of rest after the operating system refused to receive
DEFECT_PAUSE: Final = 1.0  # seconds until upkeep goes on after a defect in it

_log = logging.getLogger("pilot_trio.tunnel")


class TunnelLoop:
    """One machine, its socket and its timer.

    Args:
      sock: closed by its owner.
      machine: what to drive; others may call it inside of `turn`.
      state: who we are.
      act: acts on one event of the machine.
      deliver: gets the packets of one receive batch but control packets, with the nodes that sealed them.
    """

    def __init__(
        self,
        sock: DatagramSocket,
        machine: TunnelMachine,
        state: NodeState,
        *,
        act: Callable[[Event], None],
        deliver: Callable[[list[Received]], None],
    ) -> None:
        self.turn: Final = Turn(self._settle)
        """A context manager: what is sent inside leaves in one batch when the outermost one ends."""
        self.timers: Final = Timers()
        """Run by `run`; one task for everything on this node that has deadlines."""
        self.turns = 0  # that have ended
        self.defects = 0  # batches, answers and rounds of upkeep that a defect of ours cost
        self._socket = sock
        self._machine = machine
        self._state = state
        self._act = act
        self.deliver = deliver
        self._known_as: tuple[object, object] = (None, None)
        self._timer = self.timers.timer(self._on_due)
        self._clock: Callable[[], float] = trio.current_time

    async def run(self) -> None:
        """Receive, repeat and keep alive until cancelled."""
        self._clock = trio.lowlevel.current_clock().current_time  # half the calls of Trio's function
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timers.run)
            nursery.start_soon(self._socket.send_queued)
            nursery.start_soon(self._receive_forever)

    def flush(self) -> None:
        """Send what has been sealed so far, without waiting for the end of the turn."""
        out = self._machine.out
        if not out:
            return
        batch = out.copy()
        out.clear()
        try:
            unreachable = self._socket.send_batch(batch)
        except trio.ClosedResourceError:
            return  # the node ends; nobody is left who could miss it
        for to in set(unreachable):
            self._machine.unreachable(to)

    def take_on_identity(self) -> None:
        """Follow registration and key rotation: the next key frame must name who we are by now."""
        state = self._state
        if self._known_as[0] != state.node_id or self._known_as[1] is not state.identity:
            self._known_as = (state.node_id, state.identity)
            self._machine.on_registered(state.node_id, state.identity)

    # --- inputs ------------------------------------------------------------------------------------------------------

    def on_key(self, node: int, key: bytes | None) -> None:
        """Work in an answer to `KeyNeeded`."""
        self._take(node, lambda: self._hand_up(self._machine.on_key(node, key, trio.current_time())))

    def on_route(self, node: int, answer: RouteAnswer | None) -> None:
        """Work in an answer to `RouteNeeded`."""
        self._take(node, lambda: self._machine.on_route(node, answer, trio.current_time()))

    def _take(self, node: int, answer: Callable[[], None]) -> None:
        try:
            with self.turn:
                self.take_on_identity()
                answer()
        except Exception:
            # The border of all peers is here too: anybody's key frame waits for such an answer.
            self.defects += 1
            _log.exception("answer about a node dropped", extra={"kv": {"peer_node_id": node}})

    async def _receive_forever(self) -> None:
        while True:
            try:
                batch = await self._socket.receive_batch()
            except OSError as exc:
                # Interfaces come and go; a socket that fails for good must not turn this into a busy loop.
                _log.debug("UDP receive failed", extra={"kv": {"error": str(exc)}})
                await trio.sleep(RECEIVE_PAUSE)
                continue
            try:
                self._receive(batch)
            except Exception:
                # The border of all peers: a defect costs the datagrams of this batch, never the loop.
                self.defects += 1
                _log.exception("datagrams dropped", extra={"kv": {"count": len(batch)}})

    def _receive(self, batch: Sequence[tuple[bytes, Addr]]) -> None:
        with self.turn:
            self.take_on_identity()
            self._hand_up(self._machine.receive_datagrams(batch, self._clock()))

    def _hand_up(self, received: list[Received]) -> None:
        if self._machine.events:
            self._follow_events()  # first: a peer that has restarted may dial in the same batch
        if received:
            self.deliver(received)

    def _on_due(self, now: float) -> None:
        try:
            with self.turn:
                self.take_on_identity()
                self._machine.handle_timeout(now)
        except Exception:
            # The same border, for what time brings: one peer's upkeep must not end the node.
            self.defects += 1
            _log.exception("upkeep failed", extra={"kv": {}})
            self._timer.arm(now + DEFECT_PAUSE)
        else:
            self._timer.arm(self._machine.next_deadline())

    # --- the end of a turn -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Follow every turn: send, act on what the machine says and on what comes of that, arm the timer."""
        machine = self._machine
        self.turns += 1
        if machine.out:
            self.flush()
        while machine.events:
            self._follow_events()
            self.flush()
        if machine.touched:  # nearly every packet leaves the deadline where it is, or moves it on
            self._timer.arm(machine.next_deadline())

    def _follow_events(self) -> None:
        """Act on all that the machine says."""
        said = self._machine.events
        while said:
            self._act(said.popleft())
