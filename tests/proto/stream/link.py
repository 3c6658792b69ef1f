"""A simulated path between two stream machines: discrete events, a seed, no clock but its own."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from math import inf

import attrs

from pilot_trio.address import Address, NetworkId, NodeId, Port, SocketAddress
from pilot_trio.proto.stream.budget import Budget
from pilot_trio.proto.stream.connection import Connection, Event, State
from pilot_trio.proto.stream.settings import SEGMENT, StreamSettings
from pilot_trio.wire.packet import Packet, decode


def address(node: int, port: int) -> SocketAddress:
    return SocketAddress(Address(NetworkId(0), NodeId(node)), Port(port))


@attrs.define
class Path:
    """What happens to packets on their way."""

    delay: float = 0.0  # seconds, each way
    jitter: float = 0.0  # seconds added at random: reorders
    loss: float = 0.0  # share lost, each way
    duplication: float = 0.0  # share that arrives twice
    rate: float = inf  # bytes per second of the narrowest hop
    queue: int = 1 << 20  # bytes that wait before it; more are dropped
    largest: float = inf  # bytes of payload that it carries; longer packets vanish


class Link:
    """Two connections and the path between them; `a` dials `b`."""

    def __init__(
        self,
        path: Path,
        seed: int = 0,
        settings: StreamSettings | None = None,
        *,
        segment_limit: int = SEGMENT,
        budgets: list[Budget] | None = None,
    ) -> None:
        self.path = path
        self.budgets = budgets or [Budget(segment_limit), Budget(segment_limit)]
        self.now = 0.0
        self.random = random.Random(seed)
        self.ends: list[Connection | None] = [None, None]
        self.events: list[list[Event]] = [[], []]
        self.filter: Callable[[int, Packet], bool] = lambda sender, packet: True
        self.alter: Callable[[Packet], Packet] = lambda packet: packet
        self.sent: list[tuple[float, int, Packet]] = []
        self.keep_sent = False
        self.wake_every = inf  # seconds after which `step` returns though nothing happened: users act unprovoked
        self._heap: list[tuple[float, int, int, Packet]] = []
        self._order = itertools.count()
        self._busy_until = [0.0, 0.0]
        self._settings = settings
        self.ends[0] = Connection.dialling(address(1, 49152), address(2, 7), 0.0, settings, self.budgets[0])
        self.pump(0)

    @property
    def a(self) -> Connection:
        end = self.ends[0]
        assert end is not None
        return end

    @property
    def b(self) -> Connection:
        end = self.ends[1]
        assert end is not None
        return end

    def pump(self, index: int) -> None:
        end = self.ends[index]
        if end is None:
            return
        for packet in end.packets_to_send(self.now):
            self._carry(index, decode(packet))
        while (event := end.next_event()) is not None:
            self.events[index].append(event)

    def _carry(self, sender: int, packet: Packet) -> None:
        packet = self.alter(packet)
        if self.keep_sent:
            self.sent.append((self.now, sender, packet))
        path = self.path
        if not self.filter(sender, packet) or self.random.random() < path.loss or len(packet.payload) > path.largest:
            return
        size = 70 + len(packet.payload)
        start = max(self.now, self._busy_until[sender])
        if path.rate < inf and (start - self.now) * path.rate > path.queue:
            return
        self._busy_until[sender] = start + size / path.rate
        for _ in range(2 if self.random.random() < path.duplication else 1):
            at = self._busy_until[sender] + path.delay + self.random.random() * path.jitter
            heapq.heappush(self._heap, (at, next(self._order), 1 - sender, packet))

    def step(self) -> bool:
        """Advance to the next thing that happens; False if nothing will."""
        deadlines = [end.next_deadline() for end in self.ends if end is not None]
        at = min([self._heap[0][0] if self._heap else inf, self.now + self.wake_every, *deadlines])
        if at == inf:
            return False
        self.now = max(self.now, at)
        touched = set()
        while self._heap and self._heap[0][0] <= self.now:
            _, _, receiver, packet = heapq.heappop(self._heap)
            end = self.ends[receiver]
            if end is None:
                end = self.ends[receiver] = Connection.accepting(packet, self.now, self._settings, self.budgets[1])
            else:
                end.receive_packet(packet, self.now)
            touched.add(receiver)
        for index, end in enumerate(self.ends):
            if end is not None and end.next_deadline() <= self.now:
                end.handle_timeout(self.now)
                touched.add(index)
        for index in sorted(touched):
            self.pump(index)
            end = self.ends[index]
            # A shell calls again at once for what is due still, and again, for as long as nothing else happens.
            assert end is not None
            assert end.next_deadline() > self.now, "what was due is still due"
        return True

    def run(self, until: Callable[[], bool], limit: float) -> None:
        """Step until a condition holds; fail if that takes longer than `limit` seconds of the link's time."""
        end = self.now + limit
        while not until():
            assert self.step(), f"nothing will ever happen again at {self.now:.3f}; a={self.ends[0] and self.a.row()}"
            assert self.now <= end, f"not done after {limit} s: a={self.a.row()} b={self.ends[1] and self.b.row()}"

    def settle(self, seconds: float) -> None:
        """Let the time pass, and everything happen that happens in it."""
        end = self.now + seconds
        while min([self._heap[0][0] if self._heap else inf, *(e.next_deadline() for e in self.ends if e)]) <= end:
            self.step()
        self.now = end

    def lose_what_is_under_way(self) -> None:
        self._heap.clear()

    def connect(self) -> None:
        """Open the connection, repeating the SYN as a dialler would."""
        retry = 0.25
        for _ in range(12):
            deadline = self.now + retry
            while self.a.state is State.SYN_SENT and self._heap and self._heap[0][0] < deadline:
                self.step()
            if self.a.state is not State.SYN_SENT:
                break
            self.now = max(self.now, deadline)
            self.a.send_syn()
            self.pump(0)
        assert self.a.state is State.ESTABLISHED

    def transfer(self, data: bytes, limit: float, *, sender: int = 0) -> bytes:
        """Write `data` at one end and read at the other until all of it is there."""
        source, sink = (self.a, self.b) if sender == 0 else (self.b, self.a)
        received = bytearray()
        written = 0

        def move() -> bool:
            nonlocal written
            if written < len(data):
                written += source.write(memoryview(data)[written:])
                self.pump(sender)
            if sink.readable:
                received.extend(sink.read(1 << 30))
                self.pump(1 - sender)
            return len(received) >= len(data)

        self.run(move, limit)
        return bytes(received)
