"""Pings under way: questions to nodes, told apart by their sequence numbers (`spec/tunnel.md` §11.2)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Final

import trio

from pilot_trio.errors import NoRoute
from pilot_trio.proto.tunnel.upkeep_packets import ping
from pilot_trio.wire.packet import ACK, Packet

PINGS_MAX: Final = 1024  # pings that wait for their answers


class Pings:
    """Asks nodes for a sign of life.

    Args:
      send: sends a packet to a node; raises `TunnelError`.
    """

    def __init__(self, send: Callable[[int, Packet], None]) -> None:
        self._send = send
        self._asked: dict[int, tuple[int, trio.Event]] = {}  # {sequence number: (node, answered)}
        self._numbers = count(1)

    def check(self) -> None:
        """Raise `NoRoute` if there are too many under way for another."""
        if len(self._asked) >= PINGS_MAX:
            raise NoRoute("too many pings under way")

    async def ask(self, own: int, node: int, payload: bytes) -> float:
        """Ask a node; return the seconds until it answered. No deadline of its own.

        Raises:
          TunnelError: it could not be asked.
        """
        seq = next(self._numbers) & 0xFFFFFFFF
        answered = trio.Event()
        self._asked[seq] = (node, answered)
        try:
            sent_at = trio.current_time()
            self._send(node, ping(own, node, 0, seq, payload))
            await answered.wait()
            return trio.current_time() - sent_at
        finally:
            del self._asked[seq]

    def on_control(self, node: int, packet: Packet) -> None:
        """Take a control packet that may be an answer."""
        if packet.flags & ACK and (asked := self._asked.get(packet.seq)) is not None and asked[0] == node:
            asked[1].set()
