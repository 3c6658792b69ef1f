"""The packets of one stream: how they are made, and those that wait to be asked for."""

from __future__ import annotations

from pilot_trio.address import SocketAddress
from pilot_trio.proto.stream.settings import SEGMENT
from pilot_trio.wire.packet import ACK, STREAM, SYN, Flow, Packet


class Outbox:
    """Answers and closing packets wait here until the shell asks; data does not, it is made when it may leave.

    Args:
      local: this end.
      remote: the other one.
    """

    __slots__ = ("_addresses", "_answers_first", "_waiting", "encode_data")

    def __init__(self, local: SocketAddress, remote: SocketAddress) -> None:
        self._addresses = (local.address, remote.address, local.port, remote.port)
        self._waiting: list[bytes] = []
        self._answers_first = False
        self.encode_data = Flow(ACK, local, remote, SEGMENT).encode

    def packet(self, flags: int, seq: int, ack: int, window: int, payload: bytes = b"") -> bytes:
        """Return a packet of this stream."""
        return Packet(flags, STREAM, *self._addresses, seq, ack, window, payload).encode()

    def put(self, flags: int, *, seq: int = 0, ack: int = 0, window: int = 0, payload: bytes = b"") -> None:
        """Keep a packet until the shell asks."""
        if not self._waiting:
            self._answers_first = bool(flags & SYN)
        self._waiting.append(self.packet(flags, seq, ack, window, payload))

    def add_to(self, out: list[bytes]) -> None:
        """Put what waits where it belongs: a handshake's answer precedes what follows it, a FIN follows the data."""
        if self._answers_first:
            out[:0] = self._waiting
        else:
            out += self._waiting
        self._waiting.clear()
