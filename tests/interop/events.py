"""Takes the events that daemons post to a webhook.

async with open_webhook() as hook:
    node = await overlay.start("go", "-webhook", hook.url)
    event = await hook.wait_for("conn.dead_peer")
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import attrs
import h11
import trio


@attrs.define(eq=False)
class Webhook:
    """An HTTP endpoint for one daemon."""

    url: str = ""
    events: list[dict[str, Any]] = attrs.field(factory=list)  # as they were posted
    _arrived: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def named(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names so far."""
        return [event for event in self.events if event["event"] in names]

    async def wait_for(self, *names: str) -> dict[str, Any]:
        """Return the first event of one of these names, past or future."""
        while not (found := self.named(*names)):
            await self._arrived.park()
        return found[0]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Take the posts of one connection."""
        connection, body = h11.Connection(h11.SERVER), b""
        with contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError):  # a daemon that ends in mid-post
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.events.append(json.loads(body))
                    self._arrived.unpark_all()
                    body = b""
                    answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
                    await stream.send_all(
                        (connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b"")
                    )
                    if connection.our_state is h11.MUST_CLOSE:
                        return
                    connection.start_next_cycle()
                elif isinstance(event, h11.ConnectionClosed):
                    return


@contextlib.asynccontextmanager
async def open_webhook() -> AsyncGenerator[Webhook]:
    """Serve an endpoint until the end of the block."""
    hook = Webhook()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, hook.serve, 0, host="127.0.0.1"))
        hook.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/events"
        yield hook
        nursery.cancel_scope.cancel()
