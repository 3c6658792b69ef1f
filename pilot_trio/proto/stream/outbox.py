"""The packets of one stream: how they are made, and those that wait to be asked for."""

from __future__ import annotations

from typing import Final, final

from pilot_trio.address import SocketAddress
from pilot_trio.wire.packet import SYN, Flow

_NOTHING: Final[list[bytes]] = []  # of all streams of which nothing waits: of nearly all, nearly always


@final
class Outbox(Flow):
    """Answers and closing packets wait here until the shell asks; data does not, it is made when it may leave.

    Args:
      local: this end.
      remote: the other one.
    """

    __slots__ = ("_answers_first", "_waiting")

    def __init__(self, local: SocketAddress, remote: SocketAddress) -> None:
        super().__init__(local, remote)
        self._waiting = _NOTHING
        self._answers_first = False

    def put(self, flags: int, *, seq: int = 0, ack: int = 0, window: int = 0, payload: bytes = b"") -> None:
        """Keep a packet until the shell asks."""
        packet = self.packet(flags, seq, ack, window, payload)
        if self._waiting:
            self._waiting.append(packet)
        else:
            self._answers_first = bool(flags & SYN)
            self._waiting = [packet]

    def add_to(self, out: list[bytes]) -> None:
        """Put what waits where it belongs: a handshake's answer precedes what follows it, a FIN follows the data."""
        if self._waiting:
            at = 0 if self._answers_first else len(out)
            out[at:at] = self._waiting
            self._waiting = _NOTHING
