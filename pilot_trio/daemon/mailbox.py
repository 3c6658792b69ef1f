"""Fetching relayed handshakes from the registry: when to poll, and that no poll is lost (`spec/services.md` §1.7).

Polling empties the mailbox, so a poll under way is never abandoned: at a shutdown it gets a moment to finish. At most one
is in flight; whoever wants one meanwhile joins it.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from pilot_trio.address import NodeId
from pilot_trio.daemon.grace import complete
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import RegistryError
from pilot_trio.proto.limits import TokenBucket
from pilot_trio.wire.registry import node_text

POLL_GAP: Final = 2.0  # seconds between polls at least; protocol, `spec/services.md` §1.7
AWAIT_WINDOW: Final = 120.0  # seconds of polling every `POLL_GAP` after a request was sent; protocol, §1.7
AWAITED_MAX: Final = 64  # requests that polls are made for; protocol, §1.7
CLIENT_HOLD: Final = 3.0  # seconds that a client's request is held up by a poll; protocol, §1.7
START_JITTER: Final = 5.0  # seconds; nodes that started together do not poll together; protocol, §1.7
POKE_BURST: Final = 3  # notifications from the beacon that are followed at once; protocol, §1.7
POKE_INTERVAL: Final = 5.0  # seconds for one more of them; protocol, §1.7
POLL_TIMEOUT: Final = 8.0  # seconds for one poll; what a client's own lookups get, `spec/ipc.md` §8

_NODE_MAX: Final = 0xFFFFFFFF

_log = logging.getLogger("pilot_trio.trust")


class Mailbox:
    """The polls. `run` has to run for anything to happen.

    Args:
      state: who we are.
      registry: has the mailbox.
      on_request: called with the sender and the text of a relayed request.
      on_response: called with the sender of a relayed answer, whether it is an approval, and when the registry got it
        (Unix seconds; infinity if it does not say).
      keepalive: seconds between polls of an idle node.
      jitter: a number from 0 to 1.
    """

    def __init__(
        self,
        state: NodeState,
        registry: Registry,
        on_request: Callable[[NodeId, str], Awaitable[None]],
        on_response: Callable[[NodeId, bool, float], None],
        keepalive: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._state = state
        self._registry = registry
        self._on_request = on_request
        self._on_response = on_response
        self._keepalive = keepalive
        self._jitter = jitter
        self._awaited: OrderedDict[NodeId, float] = OrderedDict()  # node -> end of its window
        self._pokes = TokenBucket(rate=1 / POKE_INTERVAL, burst=POKE_BURST)
        self._started_at = -math.inf  # of the last poll
        self._in_flight: trio.Event | None = None  # set when that poll is over
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None

    @property
    def due(self) -> bool:
        """Whether `poll_for_client` would wait: a poll is under way, or the last one is long enough ago."""
        if self._nursery is None or not self._state.registered:
            return False
        return self._in_flight is not None or trio.current_time() >= self._started_at + POLL_GAP

    def awaits(self, node: NodeId) -> bool:
        """Say whether an answer of this node is being polled for."""
        return self._awaited.get(node, -math.inf) > trio.current_time()

    def expect(self, node: NodeId) -> None:
        """Poll often for a while: a request to this node was sent. A repetition does not extend the window."""
        if self.awaits(node):
            return
        self._awaited.pop(node, None)
        while len(self._awaited) >= AWAITED_MAX:
            self._awaited.popitem(last=False)
        self._awaited[node] = trio.current_time() + AWAIT_WINDOW
        self._wake.set()

    def settle(self, node: NodeId) -> None:
        """Stop polling for this node: it answered, or is trusted, or the request is void."""
        self._awaited.pop(node, None)

    def poke(self) -> None:
        """Poll now if that is not too often."""
        if self._pokes.take(trio.current_time()):
            self._begin()

    async def poll_for_client(self) -> None:
        """Poll, or join the poll under way, unless the last one is a moment ago; go on after `CLIENT_HOLD` anyway."""
        self._begin()
        if (over := self._in_flight) is not None:
            with trio.move_on_at(self._started_at + CLIENT_HOLD):
                await over.wait()

    async def run(self) -> None:
        """Poll on schedule until cancelled."""
        baseline_at = trio.current_time() + self._keepalive + START_JITTER * self._jitter()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    with trio.move_on_at(min(baseline_at, self._next_awaited_poll())):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    now = trio.current_time()
                    if now >= baseline_at:
                        baseline_at = now + self._keepalive
                        self._begin()
                    elif now >= self._next_awaited_poll():
                        self._begin()
            finally:
                self._nursery = None

    def _next_awaited_poll(self) -> float:
        now = trio.current_time()
        while self._awaited and next(iter(self._awaited.values())) <= now:
            self._awaited.popitem(last=False)
        if not self._awaited or self._in_flight is not None or not self._state.registered:
            return math.inf  # the end of the poll, and the next request, wake the loop
        return self._started_at + POLL_GAP

    def _begin(self) -> None:
        now = trio.current_time()
        if self._nursery is None or self._in_flight is not None or not self._state.registered:
            return
        if now >= self._started_at + POLL_GAP:  # in the words of `_next_awaited_poll`: sums are rounded
            self._started_at = now
            self._in_flight = trio.Event()
            self._nursery.start_soon(self._poll, self._in_flight)

    async def _poll(self, over: trio.Event) -> None:
        try:
            await complete(self._empty)
        except RegistryError as exc:
            _log.debug("relayed handshakes not fetched", extra={"kv": {"error": str(exc)}})
        finally:
            self._in_flight = None
            over.set()
            self._wake.set()

    async def _empty(self) -> None:
        own = self._state.node_id
        signature = self._state.identity.sign_text(node_text("poll_handshakes", own))
        answer = await self._registry.call("poll_handshakes", timeout=POLL_TIMEOUT, node_id=own, signature=signature)
        for entry in _entries(answer.get("responses")):
            await self._pass_on(self._pass_on_response, entry)
        for entry in _entries(answer.get("requests")):
            await self._pass_on(self._pass_on_request, entry)

    async def _pass_on(self, handle: Callable[[dict[str, Any]], Awaitable[None]], entry: dict[str, Any]) -> None:
        try:
            await handle(entry)
        except Exception:
            # The border of one peer: what it wrote must not cost the others their messages, which are here only once.
            _log.exception("relayed handshake failed", extra={"kv": {"from_node_id": entry["from_node_id"]}})

    async def _pass_on_request(self, entry: dict[str, Any]) -> None:
        text = entry.get("justification")
        await self._on_request(entry["from_node_id"], text if isinstance(text, str) else "")

    async def _pass_on_response(self, entry: dict[str, Any]) -> None:
        at = entry.get("timestamp")
        arrived_at = at if isinstance(at, int | float) and at > 0 else math.inf
        self._on_response(entry["from_node_id"], entry.get("accept") is True, arrived_at)


def _entries(rows: object) -> list[dict[str, Any]]:
    """Return the rows that name a sender; a registry that sends others does not stop the rest."""
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and type(node := row.get("from_node_id")) is int and 0 < node <= _NODE_MAX
    ]
