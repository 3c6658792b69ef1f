"""The services that every node runs on its own ports: handshake, echo, data exchange, event stream (`spec/services.md`).

The services themselves are in `pilot_trio.services` and run on any Trio listener; here they meet this node's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.config import Config
from pilot_trio.daemon.connection import Connection
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.overlay import OverlayStream, listen
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.daemon.trust import TrustService
from pilot_trio.services.dataexchange import DataExchange
from pilot_trio.services.echo import serve_echo
from pilot_trio.services.eventstream import EventStream
from pilot_trio.services.handshake import serve_handshakes
from pilot_trio.services.mailbox import Mailbox
from pilot_trio.wire.handshake import HandshakeMessage
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT, ECHO_PORT, EVENT_STREAM_PORT, HANDSHAKE_PORT

_log = logging.getLogger("pilot_trio.daemon")


@attrs.define(eq=False)
class BuiltinServices:
    """The services of one node.

    Args:
      config: which of them to run.
      state: who we are.
      table: the ports.
      trust: gets handshakes; says who may use what.
      events: where arrivals are published.
      now_ns: Unix nanoseconds.
    """

    config: Config
    state: NodeState
    table: StreamTable
    trust: TrustService
    events: EventBus
    now_ns: Callable[[], int]

    def start(self, nursery: trio.Nursery) -> None:
        """Bind the ports and serve them in the nursery."""
        chosen = self.config.services
        nursery.start_soon(
            partial(
                serve_handshakes,
                listen(self.table, HANDSHAKE_PORT, "handshake"),
                self._receive_handshake,
                peer_of=_node_of,
            )
        )
        _log.info("handshake service listening", extra={"kv": {"port": HANDSHAKE_PORT}})
        if chosen.echo:
            nursery.start_soon(
                partial(serve_echo, self.table.bind(ECHO_PORT, "echo"), admit=self._admits, clock_ns=self.now_ns)
            )
            _log.info("echo service listening", extra={"kv": {"port": ECHO_PORT}})
        if chosen.dataexchange:
            mailbox = Mailbox(self.config.home, text_as_base64=chosen.dataexchange_b64, now_ns=self.now_ns)
            exchange = DataExchange(
                mailbox, self.events.publish, frame_max=chosen.dataexchange_frame_max, now_ns=self.now_ns
            )
            self._serve_port(nursery, "dataexchange", DATA_EXCHANGE_PORT, exchange.handle)
        if chosen.eventstream:
            broker = EventStream(self.events.publish)
            self._serve_port(nursery, "eventstream", EVENT_STREAM_PORT, broker.handle)

    def _serve_port(
        self, nursery: trio.Nursery, name: str, port: int, handle: Callable[[OverlayStream], Awaitable[None]]
    ) -> None:
        async def serve_one(stream: OverlayStream) -> None:
            async with stream:
                try:
                    await handle(stream)
                except Exception:
                    # The border of one peer: whatever goes wrong with it is no reason to stop serving the others.
                    _log.exception("%s failed", name, extra={"kv": {"remote": str(stream.remote)}})

        nursery.start_soon(trio.serve_listeners, serve_one, [listen(self.table, port, name)])
        _log.info("%s service listening", name, extra={"kv": {"port": port}})

    async def _receive_handshake(self, message: HandshakeMessage, stream: OverlayStream) -> None:
        await self.trust.receive(message, stream.remote.address.node)

    def _admits(self, connection: Connection) -> bool:
        """Say whether a peer may use the echo: everybody's on a public node, else trusted ones' (`spec/services.md` §2)."""
        return self.state.public or self.trust.admits(connection.remote.address.node)


def _node_of(stream: OverlayStream) -> NodeId:
    return stream.remote.address.node
