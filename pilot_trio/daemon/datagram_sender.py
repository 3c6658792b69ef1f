"""Datagrams on their way to other nodes: collected in a turn, held back until there is contact, paced where they flood.

Unlike a stream's packets they are nobody's to repeat. So what is taken here is handed to the tunnel once, and what it does
not take is lost, as datagrams may be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from pilot_trio.daemon.pacing import Pacing
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import PilotError
from pilot_trio.proto.tunnel.errors import TunnelError

CONTACTS_MAX: Final = 256  # unconfirmed datagrams that wait for first contact; more are dropped

_log = logging.getLogger("pilot_trio.streams")


class DatagramTunnel(Protocol):
    """What datagrams need of the tunnel."""

    def has_session(self, node: int, /) -> bool:
        """Say whether packets to a node leave at once."""
        ...

    def send_packets(self, node: int, packets: Sequence[bytes], now: float, /, *, salvage: bool = False) -> None:
        """Send encoded packets in this order, or keep them until there is a key; again if it was lost, with `salvage`."""
        ...

    async def ensure(self, node: int, /) -> None:
        """Make contact with a node, if there is none; raise `NoRoute`. Does not wait for the key."""
        ...

    async def ping(self, node: int, /) -> float:
        """Return when a node has answered a ping, with the seconds that it took; raise `PilotError` if it cannot be asked."""
        ...


class DatagramSender:
    """Takes encoded datagrams. While `nursery` is None, as before and after the node's run, none wait or are paced.

    Args:
      tunnel: where they go.
      turn: inside, they are only collected; whoever ends it calls `flush`.
      expect_reply: told of nodes that are sent something for the first time.
    """

    def __init__(self, tunnel: DatagramTunnel, turn: Turn, expect_reply: Callable[[int], None]) -> None:
        self._tunnel = tunnel
        self._turn = turn
        self._expect_reply = expect_reply
        self._pacing = Pacing(tunnel.ping)
        self._contacting = 0  # datagrams that wait for first contact
        self.waiting: dict[int, list[bytes]] = {}
        """{node: encoded ones taken in this turn}"""
        self.nursery: trio.Nursery | None = None

    def send_datagrams(self, node: int, datagrams: Sequence[bytes]) -> bool:
        """Send datagrams if there is a tunnel to their node, in a turn at its end; False if contact has to be made first.

        Raises:
          TunnelError: not all of them were taken.
        """
        if not self._tunnel.has_session(node):
            return False
        if self._turn.depth:
            self.waiting.setdefault(node, []).extend(datagrams)
        else:
            self._tunnel.send_packets(node, datagrams, trio.current_time(), salvage=True)
        if self.nursery is not None:
            self._pacing.count(node, len(datagrams), sum(map(len, datagrams)), self.nursery)
        return True

    def flush(self) -> None:
        """Send what this turn has collected."""
        waiting, self.waiting = self.waiting, {}
        now = trio.current_time()
        for node, packets in waiting.items():
            try:
                self._tunnel.send_packets(node, packets, now, salvage=True)
            except TunnelError as exc:  # the tunnel has ended since they were taken
                _log.debug("datagrams not sent", extra={"kv": {"peer_node_id": node, "error": str(exc)}})

    def is_crowded(self, node: int) -> bool:
        """Say whether senders should `let_catch_up` a node before they send more datagrams to it."""
        return self._pacing.crowded(node)

    async def let_catch_up(self, node: int) -> None:
        """Wait a moment until a node has taken what was sent to it, if it is near."""
        await self._pacing.wait(node)

    async def send_datagrams_later(self, node: int, datagrams: Sequence[bytes]) -> None:
        """Make contact with a node, then hand datagrams to the tunnel, which keeps them until there is a key.

        Raises:
          NoRoute, TunnelError: not all of them were taken.
        """
        await self._tunnel.ensure(node)
        self._expect_reply(node)
        self._tunnel.send_packets(node, datagrams, trio.current_time(), salvage=True)

    def send_datagrams_soon(self, node: int, datagrams: Sequence[bytes]) -> int:
        """Make contact in the background; return how many of the datagrams wait for that, no more than there is room for."""
        count = min(len(datagrams), CONTACTS_MAX - self._contacting)
        if self.nursery is None or not count:
            return 0
        self._contacting += count
        self.nursery.start_soon(self._contact, node, datagrams[:count])
        return count

    async def _contact(self, node: int, datagrams: Sequence[bytes]) -> None:
        try:
            await self.send_datagrams_later(node, datagrams)
        except PilotError as exc:
            _log.debug("datagrams not sent", extra={"kv": {"peer_node_id": node, "error": str(exc)}})
        finally:
            self._contacting -= len(datagrams)
