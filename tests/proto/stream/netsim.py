"""Several senders behind one bottleneck with a tail-drop queue: discrete events, a seed, no clock but its own.

`Stream` is a pair of our stream machines; `Reno` is what the original does (`spec/transport.md` §5): a window that grows by a
constant per round trip, halves at a loss, and repairs one hole per round trip.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from math import inf
from typing import Protocol

from pilot_trio.proto.stream.budget import Budget
from pilot_trio.proto.stream.connection import Connection, State
from pilot_trio.proto.stream.settings import SEGMENT
from pilot_trio.wire.packet import SYN, decode

from .link import address

OVERHEAD = 70  # bytes around a payload on the wire
_ENDLESS = bytes(1 << 20)


class Flow(Protocol):
    """Somebody who sends as much as it can."""

    delivered: int  # bytes

    def start(self) -> None: ...
    def deadline(self) -> float: ...
    def wake(self) -> None: ...


class Bottleneck:
    """One direction is narrow; what is sent back only takes its time."""

    def __init__(self, *, rate: float, delay: float, queue: float, loss: float = 0.0, seed: int = 1) -> None:
        self.now = 0.0
        self.rate = rate  # bytes per second
        self.delay = delay  # seconds each way
        self.queue = queue  # bytes that wait; more are dropped
        self.loss = loss  # share lost at random, forwards
        self.random = random.Random(seed)
        self.flows: list[Flow] = []
        self._busy_until = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def forward(self, size: int, arrive: Callable[[], None]) -> None:
        """Carry a packet of so many bytes through the bottleneck."""
        start = max(self.now, self._busy_until)
        if (start - self.now) * self.rate > self.queue or self.random.random() < self.loss:
            return
        self._busy_until = start + size / self.rate
        self.at(self._busy_until + self.delay, arrive)

    def back(self, arrive: Callable[[], None]) -> None:
        """Carry something in the other direction."""
        self.at(self.now + self.delay, arrive)

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), action))

    def join(self, flow: Flow, after: float = 0.0) -> None:
        self.flows.append(flow)
        self.at(self.now + after, flow.start)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = min(self.flows, key=lambda flow: flow.deadline())
            event = self._heap[0][0] if self._heap else inf
            at = min(event, due.deadline())
            if at > end:
                self.now = end
                return
            self.now = max(self.now, at)
            if event <= due.deadline():
                heapq.heappop(self._heap)[2]()
            else:
                due.wake()

    def measure(self, seconds: float) -> list[float]:
        """Run; return the rates of the flows in that time, as shares of the bottleneck's payload rate."""
        before = [flow.delivered for flow in self.flows]
        self.run(seconds)
        capacity = self.rate * SEGMENT / (SEGMENT + OVERHEAD)
        return [(flow.delivered - was) / seconds / capacity for flow, was in zip(self.flows, before, strict=True)]


class Stream:
    """Our kind at both ends; the reader reads at once."""

    def __init__(self, net: Bottleneck, budget: Budget | None = None, *, window: int | None = None) -> None:
        self.net = net
        self.delivered = 0
        self.window = window  # segments that the receiver says it has; None: as it says
        self._budget = budget
        self.a: Connection | None = None
        self.b: Connection | None = None

    def start(self) -> None:
        self.a = Connection.dialling(address(1, 49152), address(2, 7), self.net.now, budget=self._budget)
        self._dial()

    def _dial(self) -> None:
        assert self.a is not None
        if self.a.state is State.SYN_SENT:
            self.a.send_syn()
            self.net.at(self.net.now + 0.25, self._dial)
        self._pump_a()

    def deadline(self) -> float:
        return min(end.next_deadline() for end in (self.a, self.b) if end) if self.a else inf

    def wake(self) -> None:
        for end in (self.a, self.b):
            if end is not None and end.next_deadline() <= self.net.now:
                end.handle_timeout(self.net.now)
        self._pump_a()
        self._pump_b()

    def _pump_a(self) -> None:
        assert self.a is not None
        while self.a.send_room and self.a.write(memoryview(_ENDLESS)[: self.a.send_room]):
            pass
        for data in self.a.packets_to_send(self.net.now):
            self.net.forward(len(data) - 34 + OVERHEAD, lambda data=data: self._reach_b(data))  # type: ignore[misc]

    def _pump_b(self) -> None:
        if self.b is not None:
            for data in self.b.packets_to_send(self.net.now):
                self.net.back(lambda data=data: self._reach_a(data))  # type: ignore[misc]

    def _reach_b(self, data: bytes) -> None:
        packet = decode(data)
        if self.b is None:
            self.b = Connection.accepting(packet, self.net.now)
        elif packet.flags & SYN:
            pass  # a repeated one
        else:
            self.b.receive_packet(packet, self.net.now)
        self.delivered += len(self.b.read(1 << 30))
        self._pump_b()

    def _reach_a(self, data: bytes) -> None:
        assert self.a is not None
        packet = decode(data)
        if self.window is not None:
            packet = packet._replace(window=min(packet.window, self.window))
        self.a.receive_packet(packet, self.net.now)
        self._pump_a()


class Reno:
    """The original's sender and receiver, in segments; `limit` is its bound of what is out."""

    UNIT = 4096  # bytes by which the window grows; kept by it from its old segment size
    LEAST = 8192  # bytes

    def __init__(self, net: Bottleneck, limit: int = 128, *, sack: bool = False) -> None:
        self.net = net
        self.sack = sack  # repairs all holes at once, as RFC 6675 does
        self._repaired = self._after_timeout = 0
        self.delivered = 0
        self.limit = limit
        self.cwnd, self.ssthresh = 40_960.0, 524_288.0
        self._next = self._acked = self._duplicates = 0
        self._recover = -1  # segment that ends the recovery; -1: none runs
        self._expected = self._unanswered = 0  # the receiver's
        self._early: set[int] = set()
        self._known: set[int] = set()  # early ones that the sender was told of
        self._rto_at, self._rto, self._srtt, self._rttvar = inf, 1.0, 0.0, 0.0
        self._sent_at: dict[int, float] = {}  # of segments sent once
        self._ack_at = inf

    def start(self) -> None:
        self._send()

    def deadline(self) -> float:
        return min(self._rto_at, self._ack_at)

    def wake(self) -> None:
        if self._ack_at <= self.net.now:
            self._answer()
        if self._rto_at <= self.net.now:
            self.ssthresh, self.cwnd = max(self._flight() / 2, self.LEAST), float(self.UNIT)
            self._recover, self._after_timeout = -1, self._next
            self._rto = min(10.0, 2 * self._rto)
            self._duplicates = 0
            self._resend_first()

    def _flight(self) -> int:
        if self._recover >= 0 and not self.sack:
            return (self._next - self._acked) * SEGMENT  # its window is inflated by what arrived, instead
        return (self._next - self._acked - len(self._known)) * SEGMENT

    def _send(self) -> None:
        while self._flight() < self.cwnd and self._next - self._acked < self.limit:
            self._sent_at[self._next] = self.net.now
            self._carry(self._next)
            self._next += 1
        self._rto_at = self.net.now + self._rto

    def _carry(self, number: int) -> None:
        self.net.forward(SEGMENT + OVERHEAD, lambda: self._receive(number))

    def _resend_first(self) -> None:
        start = max(self._acked, self._repaired) if self.sack and self._recover >= 0 else self._acked
        number = next(n for n in itertools.count(start) if n not in self._known)
        if self.sack and number > max(self._known, default=self._acked):
            return
        self._repaired = number + 1
        if number < self._next:
            self._sent_at.pop(number, None)
            self._carry(number)
        self._rto_at = self.net.now + self._rto

    def _receive(self, number: int) -> None:
        if number >= self._expected:
            self._early.add(number)
        in_order = number == self._expected
        while self._expected in self._early:
            self._early.remove(self._expected)
            self._expected += 1
            self.delivered += SEGMENT
        self._unanswered += 1
        if self._early or not in_order or self._unanswered >= 2:
            self._answer()
        else:
            self._ack_at = self.net.now + 0.005

    def _answer(self) -> None:
        self._unanswered, self._ack_at = 0, inf
        ack, early = self._expected, frozenset(self._early)
        self.net.back(lambda: self._take(ack, early))

    def _take(self, ack: int, early: frozenset[int]) -> None:
        covered = ack - self._acked
        if covered < 0:
            return
        fresh = sum(n not in self._known for n in range(self._acked, ack)) * SEGMENT
        self._known = set(early)
        if covered:
            self._sample(range(self._acked, ack))
            self._acked, self._duplicates = ack, 0
            if self._recover < 0:
                grown = min(fresh, 8192) if self.cwnd < self.ssthresh else self.UNIT * min(fresh, self.UNIT) / self.cwnd
                self.cwnd = min(1 << 20, self.cwnd + grown)
                if ack < self._after_timeout:
                    self._resend_first()
            elif ack >= self._recover:
                self.cwnd, self._recover = self.ssthresh, -1
            else:
                self.cwnd = max(self.ssthresh, self.cwnd - covered * SEGMENT + SEGMENT)
                self._resend_first()
            self._rto_at = self.net.now + self._rto
        elif self._next > self._acked:
            self._duplicates += 1
            if self._recover >= 0:
                if self.sack:
                    self._resend_first()
                self.cwnd += 0 if self.sack else SEGMENT
            elif self._duplicates == 3:
                self.ssthresh = max(self._flight() / 2, self.LEAST)
                self.cwnd, self._recover = self.ssthresh + 3 * SEGMENT, self._next
                self._repaired = 0
                self._resend_first()
        self._send()

    def _sample(self, numbers: range) -> None:
        sent = [self._sent_at.pop(number, None) for number in numbers]
        if None in sent or sent[0] is None:
            return
        rtt = self.net.now - sent[0]
        if not self._srtt:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        self._rto = max(0.2, self._srtt + max(0.01, 4 * self._rttvar))


def fairness(shares: list[float]) -> float:
    """Jain's index: 1 for equal shares, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
