"""Questions to the registry about other nodes, with the caches that spare most of them (`spec/registry.md` §4.3-§4.5).

What the registry said stays usable for a while when it cannot be asked: names and routes do not change because the
registry is away. A refusal is an answer and is never papered over by a cache.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any, Final

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import KEY_SIZE, Identity
from pilot_trio.daemon.hostname_cache import HostnameCache
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.timed_cache import FRESH, STALE, TimedCache
from pilot_trio.errors import NoRoute, RegistryError, RegistryUnavailable
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.registry.client import INTERACTIVE_TIMEOUT
from pilot_trio.wire.registry import Message, node_text, resolve_text

OWN_RECORD_FRESH: Final = 1.0  # seconds; `info` and its like ask for the own record each time; protocol, §6.2
ROUTES_MAX: Final = 16_384  # routes remembered; more peers than a node talks to within an hour
ENDPOINT_MAX: Final = 261  # characters of an endpoint; a DNS name of 253, brackets, colon, port
LAN_ENDPOINTS_MAX: Final = 32  # of a node; a host with many interfaces has a few


@attrs.frozen
class Route:
    """How a node can be reached."""

    endpoint: Endpoint
    lan_endpoints: tuple[Endpoint, ...] = ()
    relay_only: bool = False


class Resolver:
    """Lookups for one node. Every call ends within 8 seconds and may be cancelled anywhere.

    Args:
      registry: whom to ask.
      state: who asks.
      hostnames: what is known of names; None: nothing yet, and nothing is kept.
    """

    def __init__(self, registry: Registry, state: NodeState, hostnames: HostnameCache | None = None) -> None:
        self._registry = registry
        self._state = state
        self._hostnames = hostnames or HostnameCache()
        self._routes: TimedCache[NodeId, Route] = TimedCache(ROUTES_MAX)
        self._own_record: TimedCache[NodeId, Message] = TimedCache(1)
        self._signer: tuple[Identity, NodeId] | None = None  # who has signed questions about names, with `_signature`
        self._signature = ""

    def known_hostname(self, name: str) -> Message | None:
        """Return the registry's answer for a name if it is not older than 60 seconds; never for the own node's."""
        return self._hostnames.get(name, FRESH)

    async def resolve_hostname(self, name: str, *, by: float = math.inf) -> Message:
        """Return the registry's answer for a name, up to 60 seconds old; the own node's is always fresh.

        Args:
          name: the host name.
          by: when the registry must have answered, if that is sooner than in eight seconds.

        Raises:
          RegistryError: there is no such name for us, or the registry gave no answer.
        """
        if (known := self.known_hostname(name)) is not None:
            return known
        try:
            answer = await self._ask_hostname(name, min(INTERACTIVE_TIMEOUT, max(by - trio.current_time(), 0.0)))
        except RegistryUnavailable:
            if (known := self._hostnames.get(name, STALE)) is not None:
                return known
            raise
        except RegistryError:
            self._hostnames.forget(name)
            raise
        if answer.get("node_id") != self._state.node_id:
            self._hostnames.put(name, answer)
        return answer

    async def resolve(self, node: int) -> Route:
        """Return how to reach a node, up to 60 seconds old.

        Raises:
          NoRoute: the registry will not say, gave no answer, or knows no endpoint; the text says which.
        """
        node_id = NodeId(node)
        if (known := self._routes.get(node_id, trio.current_time(), FRESH)) is not None:
            return known
        try:
            route = await self._ask_route(node_id)
        except RegistryUnavailable as exc:
            if (known := self._routes.get(node_id, trio.current_time(), STALE)) is not None:
                return known
            raise NoRoute(f"resolve node {node}: {exc}") from exc
        except RegistryError as exc:
            self._routes.forget(node_id)
            raise NoRoute(f"resolve node {node}: {exc}") from exc
        self._routes.put(node_id, route, trio.current_time())
        return route

    async def lookup(self, node: int) -> Message:
        """Return the registry's record of a node; the own one may be a second old.

        Raises:
          RegistryError: there is no such node, or the registry gave no answer.
        """
        node_id = NodeId(node)
        if (known := self._own_record.get(node_id, trio.current_time(), OWN_RECORD_FRESH)) is not None:
            return known
        answer = await self._registry.call("lookup", timeout=INTERACTIVE_TIMEOUT, node_id=node)
        if node_id == self._state.node_id:
            self._own_record.put(node_id, answer, trio.current_time())
        return answer

    async def public_key(self, node: int) -> bytes:
        """Return the key that the registry has for a node (32 bytes); raise `RegistryError` if it names none."""
        answer = await self.lookup(node)
        try:
            key = base64.b64decode(answer["public_key"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise RegistryError(f"node {node} has no public key", "lookup") from exc
        if len(key) != KEY_SIZE:
            raise RegistryError(f"node {node} has a public key of {len(key)} bytes", "lookup")
        return key

    async def check_trust(self, node: int) -> bool:
        """Ask whether the registry knows of trust, or of a shared network, between a node and this one; no answer is no."""
        try:
            answer = await self._registry.call(
                "check_trust", timeout=INTERACTIVE_TIMEOUT, node_id=self._state.node_id, peer_id=node
            )
        except RegistryError:
            return False
        return answer.get("trusted") is True

    def forget(self, node: int) -> None:
        """Ask anew about a node the next time; what is cached serves only if the registry cannot be asked."""
        self._routes.make_older(NodeId(node), trio.current_time(), FRESH)
        self._own_record.forget(NodeId(node))

    def forget_hostname(self, name: str) -> None:
        """Drop the cached answer for a name."""
        self._hostnames.forget(name)

    async def _ask_hostname(self, name: str, timeout: float) -> Message:
        """Ask as ourselves: a private node's name is told only to those it trusts, and any of our connections may ask."""
        state = self._state
        fields: dict[str, Any] = {}
        if state.registered:
            # The same text each time, and the dearest part of a question.
            signer = (state.identity, state.node_id)
            if self._signer != signer:
                self._signer = signer
                self._signature = state.identity.sign_text(node_text("resolve_hostname", state.node_id))
            fields = {"requester_id": state.node_id, "signature": self._signature}
        return await self._registry.call("resolve_hostname", timeout=timeout, hostname=name, **fields)

    async def _ask_route(self, node: NodeId) -> Route:
        state = self._state
        if not state.registered:
            raise RegistryUnavailable("this node is not registered yet", "resolve")
        answer = await self._registry.call(
            "resolve",
            timeout=INTERACTIVE_TIMEOUT,
            node_id=node,
            requester_id=state.node_id,
            signature=state.identity.sign_text(resolve_text(state.node_id, node)),
        )
        if not answer.get("real_addr"):
            raise NoRoute(f"resolve node {node}: node {node} has no real address")
        endpoint = _endpoint(answer["real_addr"])
        if endpoint is None:
            unusable = repr(answer["real_addr"])[:ENDPOINT_MAX]
            raise NoRoute(f"resolve node {node}: node {node} has an unusable address {unusable}")
        lan = answer.get("lan_addrs")
        lan_endpoints = (_endpoint(text) for text in (lan[:LAN_ENDPOINTS_MAX] if isinstance(lan, list) else []))
        return Route(endpoint, tuple(filter(None, lan_endpoints)), answer.get("relay_only") is True)


def _endpoint(text: Any) -> Endpoint | None:
    if not isinstance(text, str) or len(text) > ENDPOINT_MAX:
        return None
    try:
        return Endpoint.parse(text)
    except ValueError:
        return None
