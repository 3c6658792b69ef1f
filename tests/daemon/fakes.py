"""Small stand-ins for the parts of a node."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import RegistryError, RegistryUnavailable
from pilot_trio.net.network import DatagramSocket, Endpoint
from pilot_trio.wire.registry import Message

SEED = bytes(range(32))


@attrs.frozen
class Call:
    type: str
    fields: dict[str, Any]
    timeout: float | None
    at: float


Answer = Message | Exception


@attrs.define(eq=False)
class FakeClient:
    """Stands for the registry client: answers from a function, or a mapping from request type to answer."""

    answers: dict[str, Answer | Callable[[dict[str, Any]], Answer]] = attrs.field(factory=dict)
    delay: float = 0.0
    calls: list[Call] = attrs.field(factory=list)

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        self.calls.append(Call(type_, fields, timeout, trio.current_time()))
        await trio.sleep(self.delay)
        answer = self.answers.get(type_, {"type": f"{type_}_ok"})
        if callable(answer):
            answer = answer(fields)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def types(self) -> list[str]:
        return [call.type for call in self.calls]

    def of(self, type_: str) -> list[Call]:
        return [call for call in self.calls if call.type == type_]


class ShortestWaits(random.Random):
    """Dice that always draw the lower end."""

    def uniform(self, a: float, b: float) -> float:
        return a


class Link:
    """The node's socket without tunnels."""

    def __init__(self, sock: DatagramSocket) -> None:
        self.sock = sock
        self.beacon: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self.sock.endpoint

    def send_beacon(self, message: bytes, beacon: Endpoint) -> bool:
        return self.sock.send_nowait(message, beacon)

    def set_beacon(self, beacon: Endpoint | None) -> None:
        self.beacon = beacon


def refused(text: str = "request failed") -> RegistryError:
    return RegistryError(text)


def unavailable(text: str = "no answer") -> RegistryUnavailable:
    return RegistryUnavailable(text)


def make_state(node_id: int = 7) -> NodeState:
    return NodeState(Identity.from_seed(SEED), 0.0, node_id=NodeId(node_id), email="a@b")


def record_events(bus: EventBus) -> list[Event]:
    seen: list[Event] = []
    bus.subscribe(seen.append)
    return seen
