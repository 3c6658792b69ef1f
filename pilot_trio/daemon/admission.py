"""Who may open a stream to this node, or send it a datagram (`spec/transport.md` §3.3)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Final, Protocol

import trio

from pilot_trio.address import Port
from pilot_trio.config import StreamLimits
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.errors import DialRefused
from pilot_trio.proto.admission import ReplyWindow, SynLimits
from pilot_trio.proto.tunnel.errors import TunnelError
from pilot_trio.wire.packet import RST, STREAM, Packet

TRUST_CHECKS_MAX: Final = 64  # registry questions about SYNs at once; more SYNs are dropped, their senders try again
TRUST_CHECK_TIMEOUT: Final = 8.0  # seconds for one of them; the dialler repeats its SYN meanwhile

_log = logging.getLogger("pilot_trio.streams")


class TrustGate(Protocol):
    """What admission needs of the trust service."""

    def admits(self, node: int, /) -> bool:
        """Say whether a node is trusted here."""
        ...


CheckTrust = Callable[[int], Awaitable[bool]]
"""Ask the registry whether a node and this one trust each other or share a network."""

Accept = Callable[[int, Packet, PortListener], None]
"""Open the stream that a node's SYN asks for, and give it to the listener."""


class Admission:
    """Decides about SYNs and datagrams of other nodes. `attach` joins it to the table.

    Args:
      state: public or private, and what the port policies admit.
      trust: who is trusted.
      check_trust: asks the registry about everybody else.
      limits: how many SYNs.
      whitelist: nodes without a limit on SYNs; None: all of them.
      events: hears of those that were turned away.
      send: sends a packet to a node; may raise `TunnelError`.
      turn: entered when the registry's answer lets something through.
      accept: opens a stream.
    """

    def __init__(
        self,
        *,
        state: NodeState,
        trust: TrustGate,
        check_trust: CheckTrust,
        limits: StreamLimits,
        whitelist: frozenset[int] | None,
        events: EventBus,
        send: Callable[[int, Packet], None],
        turn: AbstractContextManager[object, None],
        accept: Accept,
    ) -> None:
        self._state = state
        self._trust = trust
        self._check_trust = check_trust
        self._events = events
        self._send = send
        self._turn = turn
        self._accept = accept
        self._syns = SynLimits(limits.syn_rate_limit, whitelist)
        self.replies: Final = ReplyWindow()
        self.nursery: trio.Nursery | None = None
        """Where the registry is asked; without one it is not."""
        self._checking: set[tuple[int, int]] = set()  # (node, port) that the registry is being asked about

    def attach(self, table: StreamTable) -> None:
        """Take the table, which knows who listens."""
        self._table = table

    def expect_reply(self, node: int) -> None:
        """Let a node dial this one to answer, for the time of the reply window (§3.3.1), though it is a private one."""
        self.replies.note(node, trio.current_time())

    def on_syn(self, node: int, packet: Packet, now: float) -> None:
        """Decide about a SYN that is for no stream there is."""
        port = packet.destination_port
        if not self._table.listens(port):
            self._reset(node, packet)
        elif self._state.public or self._trust.admits(node) or self.replies.admits(node, port, now):
            self._admit(node, packet, now)
        else:
            self._ask_then(node, port, lambda: self._admit(node, packet, trio.current_time()), "syn.rejected", packet)

    def admits_datagrams(self, node: int) -> bool:
        """Say whether a node's datagrams are delivered without asking anybody."""
        return self._state.public or self._trust.admits(node)

    def on_strange_datagram(self, node: int, packet: Packet, deliver: Callable[[], None]) -> None:
        """Have a datagram delivered if the registry says that it may be."""
        self._ask_then(node, -1, deliver, "datagram.rejected", packet)

    def _ask_then(self, node: int, port: int, proceed: Callable[[], None], topic: str, packet: Packet) -> None:
        """Let the registry decide about a stranger: a shared network, or trust that we do not know of yet, admits it."""
        if self.nursery is None or (node, port) in self._checking or len(self._checking) >= TRUST_CHECKS_MAX:
            return
        self._checking.add((node, port))
        self.nursery.start_soon(self._ask, node, port, proceed, topic, packet)

    async def _ask(self, node: int, port: int, proceed: Callable[[], None], topic: str, packet: Packet) -> None:
        trusted = False
        try:
            with trio.move_on_after(TRUST_CHECK_TIMEOUT):
                trusted = await self._check_trust(node)
        finally:
            self._checking.discard((node, port))
        if trusted:
            try:
                with self._turn:
                    proceed()
            except Exception:
                # The border of one stranger: this task is the node's, and what the packet brings to light must not end it.
                _log.exception("packet of a stranger dropped", extra={"kv": {"peer_node_id": node}})
        else:
            data = {"dst_port": packet.destination_port, "reason": "untrusted", "src_addr": str(packet.source)}
            self._events.publish(topic, data)

    def _admit(self, node: int, packet: Packet, now: float) -> None:
        network, port = packet.destination.network, packet.destination_port
        if not self._state.port_allowed(network, port):
            self._events.publish("syn.port_rejected", {"dst_port": port, "src_addr": str(packet.source)})
            return
        if not self._syns.admits(node, now):
            self._events.publish("security.syn_rate_limited", {"dst_port": port, "src_node_id": node})
            return
        try:
            listener = self._table.admit(Port(port))
        except DialRefused:
            self._reset(node, packet)
        else:
            self._accept(node, packet, listener)

    def _reset(self, node: int, packet: Packet) -> None:
        """Answer a SYN with a reset, even on a private node: the dialler learns in one round trip."""
        answer = Packet(RST, STREAM, packet.destination, packet.source, packet.destination_port, packet.source_port)
        with suppress(TunnelError):
            self._send(node, answer)
