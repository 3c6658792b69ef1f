"""Ports and connection ids: who bound what, which ephemeral port is next, how many connections there may be.

Pure bookkeeping (`spec/transport.md` §1.1, §3.3; `spec/ipc.md` §5.1, §5.2, §8). Nothing here knows what a connection is;
`pilot_trio.daemon.streams` does, and it asks this module before it makes one.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from typing import Final

from pilot_trio.address import EPHEMERAL_FIRST, PORT_MAX, ConnId, Port
from pilot_trio.errors import PortInUse, PortsExhausted

EPHEMERAL_COUNT: Final = PORT_MAX + 1 - EPHEMERAL_FIRST  # 16,384 ports; protocol, `spec/transport.md` §1.1
CONN_ID_MAX: Final = 0xFFFF_FFFF  # ids are u32 on the wire, and 0 is never one; `spec/ipc.md` §5.2

_FREE: Final = 0
_ALLOCATED: Final = 1  # bit: an ephemeral port of a connection or a datagram
_BOUND: Final = 2  # bit: a listener sits on it


class PortTable:
    """Bound ports with their owners, and the ephemeral ports.

    A port may be bound whatever its number, 0 included: it is then port 0, nothing is allocated. The allocator skips bound
    ports, so that what arrives on a port is never ambiguous; the reverse is allowed, as in the reference.

    Args:
      random_start: entropy for where ephemeral ports begin. Late packets of connections from before a restart cannot
        then fit a new one, although every stream starts at sequence number 0 (`spec/transport.md` §1.1).
    """

    def __init__(self, random_start: int) -> None:
        self._owners: dict[Port, Hashable] = {}
        self._marks = bytearray(EPHEMERAL_COUNT)  # one byte per ephemeral port: finding a free one is a memchr
        self._cursor = random_start % EPHEMERAL_COUNT
        self._allocated = 0

    def bind(self, port: Port, owner: Hashable) -> None:
        """Give `port` to `owner`; raise `PortInUse` if anybody has it, this owner included."""
        if port in self._owners:
            raise PortInUse(port)
        self._owners[port] = owner
        if port >= EPHEMERAL_FIRST:
            self._marks[port - EPHEMERAL_FIRST] |= _BOUND

    def unbind(self, port: Port) -> None:
        """Take the port back; nothing happens if it was not bound."""
        if self._owners.pop(port, None) is not None and port >= EPHEMERAL_FIRST:
            self._marks[port - EPHEMERAL_FIRST] &= ~_BOUND

    def owner(self, port: Port) -> Hashable | None:
        """Who bound the port, or None."""
        return self._owners.get(port)

    @property
    def bound(self) -> int:
        """How many ports are bound."""
        return len(self._owners)

    @property
    def allocated(self) -> int:
        """How many ephemeral ports are in use."""
        return self._allocated

    def allocate(self) -> Port:
        """Take the next free ephemeral port, round robin; raise `PortsExhausted` if there is none."""
        index = self._marks.find(_FREE, self._cursor)
        if index < 0:
            index = self._marks.find(_FREE, 0, self._cursor)
        if index < 0:
            raise PortsExhausted
        self._marks[index] |= _ALLOCATED
        self._allocated += 1
        self._cursor = (index + 1) % EPHEMERAL_COUNT
        return Port(EPHEMERAL_FIRST + index)

    def next_free(self, count: int) -> Sequence[int]:
        """Return the ports that so many calls of `allocate` would, each followed by one of `release`.

        Raises:
          PortsExhausted: there is none, and `count` is not 0.
        """
        first, end = self._cursor, self._cursor + count
        if end < EPHEMERAL_COUNT and self._marks.count(_FREE, first, end) == count:  # as nearly always
            self._cursor = end
            return range(EPHEMERAL_FIRST + first, EPHEMERAL_FIRST + end)
        ports: list[int] = []
        for _ in range(count):
            ports.append(port := self.allocate())
            self.release(port)
        return ports

    def release(self, port: Port) -> None:
        """Give an ephemeral port back.

        Raises:
          ValueError: it was not allocated. Two holders of one port would be worse than a crash here.
        """
        index = port - EPHEMERAL_FIRST
        if index < 0 or not self._marks[index] & _ALLOCATED:
            raise ValueError(f"port {port} is not allocated")
        self._marks[index] &= ~_ALLOCATED
        self._allocated -= 1


class ConnectionIds:
    """Connection ids: counted from 1, never 0, and after four thousand million of them not one that is still in use."""

    def __init__(self, start: int = 1) -> None:
        self._next = start

    def allocate(self, in_use: Container[int]) -> ConnId:
        """Return the next id; `in_use` says which ids anything can still refer to."""
        while True:
            conn_id = self._next
            self._next = conn_id + 1 if conn_id < CONN_ID_MAX else 1
            if conn_id not in in_use:
                return ConnId(conn_id)


class ConnectionCounts:
    """How many connections are active: neither `CLOSED` nor `TIME_WAIT` (`spec/transport.md` §3.3, tests 7 and 8)."""

    def __init__(self, per_port: int, total: int) -> None:
        self._per_port_max = per_port
        self._total_max = total
        self._per_port: dict[Port, int] = {}
        self.total = 0

    def room(self, port: Port, others: int = 0) -> bool:
        """Say whether one more connection may live on `port`, beside `others` new ones on ports of their own."""
        return self._per_port.get(port, 0) < self._per_port_max and self.total + 1 + others <= self._total_max

    def add(self, port: Port) -> None:
        """Count a connection on `port`."""
        self._per_port[port] = self._per_port.get(port, 0) + 1
        self.total += 1

    def remove(self, port: Port) -> None:
        """Count it no more."""
        left = self._per_port[port] - 1
        if left:
            self._per_port[port] = left
        else:
            del self._per_port[port]
        self.total -= 1
