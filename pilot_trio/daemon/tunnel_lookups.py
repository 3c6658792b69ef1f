"""Questions that tunnels have for the registry: whose key is it, and where is the node (`spec/tunnel.md` §7.10, §10.5).

A lookup can take seconds, so each runs beside the receive loop: at most one per node and question, a bounded number at
once, and the rest in a queue. Who asks for a route while somebody else's question is under way waits for that answer.

Anybody can send a key frame under any number, and each such number is a question. So nodes that this one deals with come
first, and those of strangers never take all the places.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import attrs
import trio

from pilot_trio.daemon.resolver import Route
from pilot_trio.daemon.same_lan import neighbour
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import NoRoute, RegistryError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.tunnel.machine import RouteAnswer

LOOKUPS_MAX: Final = 32  # at once; the registry client has few connections, and each lookup ends within 8 seconds
STRANGERS_MAX: Final = 8  # of these about nodes that only say that they exist; enough for every connection to be busy
WAITING_MAX: Final = 8192  # questions in the queue; beyond, the answer is "cannot be had", and they come again later
NAME_TIMEOUT: Final = 5.0  # seconds for an endpoint that is registered under a host name

_log = logging.getLogger("pilot_trio.tunnel")


class KeyAndRouteResolver(Protocol):
    """The resolver, as far as tunnels need it."""

    async def resolve(self, node: int, /) -> Route:
        """Return how to reach a node; raise `NoRoute`."""
        ...

    async def public_key(self, node: int, /) -> bytes:
        """Return the key that the registry has for a node; raise `RegistryError`."""
        ...

    def forget(self, node: int, /) -> None:
        """Drop what is cached about a node."""
        ...


class NameResolver(Protocol):
    """The network, as far as it is needed here."""

    async def resolve(self, name: Endpoint, at: Endpoint, /) -> Endpoint:
        """Turn a host name into an address that a socket bound at `at` can send to; raise `OSError`."""
        ...


@attrs.define(eq=False)
class PendingRoute:
    """A question under way."""

    done: trio.Event = attrs.field(factory=trio.Event)
    error: str = ""  # why there is no route; empty once `done` is set: there is one


Find = Callable[[int], Awaitable[None]]


class Lookups:
    """Asks, in tasks of its own.

    Args:
      state: says in which network this node is.
      resolver: asks the registry, with its caches.
      network: resolves host names of endpoints.
      bound: where the tunnels' socket is bound at the moment.
      on_key: gets a node's key, None if it could not be had.
      on_route: likewise for routes.
    """

    def __init__(
        self,
        state: NodeState,
        resolver: KeyAndRouteResolver,
        network: NameResolver,
        *,
        bound: Callable[[], Endpoint],
        on_key: Callable[[int, bytes | None], None],
        on_route: Callable[[int, RouteAnswer | None], None],
    ) -> None:
        self._state = state
        self._resolver = resolver
        self._network = network
        self._bound = bound
        self._on_key = on_key
        self._on_route = on_route
        self._keys: set[int] = set()  # asked for, in the queue or under way
        self._routes: dict[int, PendingRoute] = {}
        self._queue: deque[tuple[Find, int]] = deque()
        self._of_strangers: deque[tuple[Find, int]] = deque()
        self._running = self._running_for_strangers = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            self._start()
            await trio.sleep_forever()

    def key(self, node: int, *, known: bool) -> None:
        """Find a node's key and tell `on_key`; nothing happens if that is under way.

        Args:
          node: whose key.
          known: this node deals with it, so that the question comes before those about strangers.
        """
        if node in self._keys:
            return
        if len(self._queue) + len(self._of_strangers) >= WAITING_MAX:
            self._on_key(node, None)
            return
        self._keys.add(node)
        (self._queue if known else self._of_strangers).append((self._find_key, node))
        self._start()

    def route(self, node: int) -> PendingRoute:
        """Find out how to reach a node and tell `on_route`; return what shows when that is done."""
        pending = self._routes.get(node)
        if pending is None:
            pending = PendingRoute()
            if len(self._queue) >= WAITING_MAX:
                pending.error = f"resolve node {node}: too many lookups"
                pending.done.set()
                return pending
            self._routes[node] = pending
            self._queue.append((self._find_route, node))
            self._start()
        return pending

    def _start(self) -> None:
        while self._nursery is not None and self._running < LOOKUPS_MAX:
            if self._queue:
                self._nursery.start_soon(self._work, *self._queue.popleft())
            elif self._of_strangers and self._running_for_strangers < STRANGERS_MAX:
                self._running_for_strangers += 1
                self._nursery.start_soon(self._work_for_stranger, *self._of_strangers.popleft())
            else:
                return
            self._running += 1

    async def _work(self, find: Find, node: int) -> None:
        try:
            await find(node)
        finally:
            self._running -= 1
        self._start()

    async def _work_for_stranger(self, find: Find, node: int) -> None:
        try:
            await find(node)
        finally:
            self._running -= 1
            self._running_for_strangers -= 1
        self._start()

    async def _find_key(self, node: int) -> None:
        key: bytes | None = None
        try:
            key = await self._resolver.public_key(node)
        except RegistryError as exc:
            _log.debug("key lookup failed", extra={"kv": {"peer_node_id": node, "error": str(exc)}})
        except Exception:
            # The border of one node: whatever the registry says of it is no reason to end this one.
            _log.exception("key lookup failed", extra={"kv": {"peer_node_id": node}})
        finally:
            self._keys.discard(node)
        self._on_key(node, key)

    async def _find_route(self, node: int) -> None:
        pending = self._routes[node]
        answer: RouteAnswer | None = None
        try:
            route = await self._resolver.resolve(node)
            answer = await self._answer(route)
        except NoRoute as exc:
            pending.error = str(exc)
        except OSError as exc:
            pending.error = f"resolve node {node}: {exc}"
        except trio.TooSlowError:
            pending.error = f"resolve node {node}: the host name of its endpoint was not resolved in time"
        except Exception as exc:
            # The same border.
            pending.error = f"resolve node {node}: {exc}"
            _log.exception("resolving failed", extra={"kv": {"peer_node_id": node}})
        finally:
            del self._routes[node]
        if pending.error:
            _log.debug("no route", extra={"kv": {"peer_node_id": node, "error": pending.error}})
        self._on_route(node, answer)
        pending.done.set()

    async def _answer(self, route: Route) -> RouteAnswer:
        if not route.relay_only:
            inside = neighbour(route, self._state.lan_endpoints, self._state.endpoint)
            if inside is not None:
                return RouteAnswer(inside, same_lan=True)
        return RouteAnswer(await self._literal(route.endpoint), route.relay_only)

    async def _literal(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint by address. A socket that is given a name would look it up and hold up everything."""
        try:
            ipaddress.ip_address(endpoint.host)
        except ValueError:
            with trio.fail_after(NAME_TIMEOUT):
                return await self._network.resolve(endpoint, self._bound())
        return endpoint
