"""Carries handshake messages to peers, over a stream where one can be had, else through the registry's relay.

Most of it happens in the background: whoever approves does not wait until the peer knows. What fails there only costs time;
the registry's mailbox, or the next request, makes up for it (`spec/services.md` §1.6).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from pilot_trio.address import NodeId
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import DialError, RegistryError
from pilot_trio.proto.trust import OUTGOING_MAX, sanitise
from pilot_trio.services.handshake import close_later
from pilot_trio.wire.handshake import Kind, make_message
from pilot_trio.wire.registry import handshake_text, pair_text, respond_text
from pilot_trio.wire.service_ports import HANDSHAKE_PORT

RELAY_AGAIN: Final = 900.0  # seconds; a receiver may take a second direct request for a replay that long, §1.4
BACKGROUND_MAX: Final = 256  # messages and reports under way; more are given up, the registry's mailbox repairs that

_log = logging.getLogger("pilot_trio.trust")

Dial = Callable[[NodeId, int], Awaitable[trio.abc.Stream]]


class Courier:
    """The messages of one node. Works while `nursery` is set.

    Args:
      state: who we are.
      registry: relays requests and answers, and learns of trust.
      dial: opens a stream to a port of a node; raises `DialError`.
      wall_time: Unix seconds.
    """

    def __init__(self, state: NodeState, registry: Registry, dial: Dial, wall_time: Callable[[], float]) -> None:
        self.nursery: trio.Nursery | None = None
        self.under_way = 0  # in the background; at most BACKGROUND_MAX, and the streams that these have written to
        self._state = state
        self._registry = registry
        self._dial = dial
        self._now = wall_time
        self._sent_directly: OrderedDict[NodeId, float] = OrderedDict()  # when, oldest first; at most OUTGOING_MAX

    def soon(self, run: Callable[..., Awaitable[None]], *args: object) -> None:
        """Do something in the background; its `DialError` or `RegistryError` is logged at debug and forgotten."""
        if self.nursery is None or self.under_way >= BACKGROUND_MAX:
            _log.warning("handshake step given up", extra={"kv": {"step": run.__name__}})
            return
        self._start(self.nursery, run, args)

    async def request(self, peer: NodeId, justification: str) -> None:
        """Deliver a request, or park it at the registry; raise `RegistryError` if neither works."""
        try:
            await self._send(peer, Kind.REQUEST, justification=justification)
        except (DialError, trio.BrokenResourceError) as exc:
            kv = {"peer_node_id": peer, "error": str(exc)}
            _log.info("direct handshake failed, relaying via registry", extra={"kv": kv})
            await self._relay_request(peer, justification)
            _log.info("handshake relayed via registry", extra={"kv": {"peer_node_id": peer}})
        else:
            if self._is_repetition(peer, trio.current_time()):
                self.soon(self._relay_request, peer, justification)

    async def tell(self, peer: NodeId, kind: Kind, reason: str = "") -> None:
        """Send a peer a message directly; raise `DialError` or `trio.BrokenResourceError` if that does not work."""
        await self._send(peer, kind, reason=reason)

    async def respond(self, peer: NodeId, accept: bool) -> None:
        """Answer a peer's request through the registry; raise `RegistryError`."""
        own = self._state.node_id
        signature = self._state.identity.sign_text(respond_text(own, peer))
        await self._registry.call("respond_handshake", node_id=own, peer_id=peer, accept=accept, signature=signature)

    async def report(self, peer: NodeId) -> None:
        """Tell the registry that a peer is trusted, so that it may resolve us; raise `RegistryError`."""
        await self._call_about("report_trust", peer)

    async def vouch(self, peer: NodeId) -> None:
        """Tell the registry that a peer is trusted, and through it the peer; raise `RegistryError`.

        In this order: if it has not seen the request, it carries an approval only between nodes of which it knows that one
        trusts the other. The direct message alone would not do: a reference node that we have approved before, within 15
        minutes, takes it for a replay.
        """
        try:
            await self.report(peer)
        except RegistryError as exc:
            _log.debug("trust not reported", extra={"kv": {"peer_node_id": peer, "error": str(exc)}})
        await self.respond(peer, True)

    async def withdraw(self, peer: NodeId) -> None:
        """Tell the registry that a peer is no longer trusted; raise `RegistryError`."""
        await self._call_about("revoke_trust", peer)

    async def _call_about(self, type_: str, peer: NodeId) -> None:
        own = self._state.node_id
        signature = self._state.identity.sign_text(pair_text(type_, own, peer))
        await self._registry.call(type_, node_id=own, peer_id=peer, signature=signature)

    async def _relay_request(self, peer: NodeId, justification: str) -> None:
        own = self._state.node_id
        await self._registry.call(
            "request_handshake",
            from_node_id=own,
            to_node_id=peer,
            justification=sanitise(justification),
            signature=self._state.identity.sign_text(handshake_text(own, peer)),
        )

    async def _send(self, peer: NodeId, kind: Kind, *, justification: str = "", reason: str = "") -> None:
        state = self._state
        stream = await self._dial(peer, HANDSHAKE_PORT)
        try:
            message = make_message(
                kind, state.identity, state.node_id, peer, self._now(), justification=justification, reason=reason
            )
            await stream.send_all(message.encode())
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if self.nursery is None:
            await stream.aclose()  # this node ends
        else:
            # However much is under way: a stream that nobody closes would stay, and it is at most one for each step.
            self._start(self.nursery, close_later, (stream,))

    def _is_repetition(self, peer: NodeId, now: float) -> bool:
        """Note a request that went out directly; say whether another one did lately."""
        before = self._sent_directly.pop(peer, None)
        while len(self._sent_directly) >= OUTGOING_MAX:
            self._sent_directly.popitem(last=False)
        self._sent_directly[peer] = now
        return before is not None and now - before < RELAY_AGAIN

    def _start(self, nursery: trio.Nursery, run: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        self.under_way += 1
        nursery.start_soon(self._run_in_background, run, args)

    async def _run_in_background(self, run: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await run(*args)
        except (DialError, RegistryError, trio.BrokenResourceError) as exc:
            _log.debug("handshake step failed", extra={"kv": {"step": run.__name__, "error": str(exc)}})
        except Exception:
            # The border of one peer: a message that cannot be carried is no reason to stop the node.
            _log.exception("handshake step failed", extra={"kv": {"step": run.__name__}})
        finally:
            self.under_way -= 1
