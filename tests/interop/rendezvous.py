"""A rendezvous of ours for real programs, on loopback; it can be stopped and started again on the same ports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import attrs
import trio

from pilot_trio.net.endpoint import Endpoint
from pilot_trio.rendezvous.serve import RendezvousHandle, serve_rendezvous
from pilot_trio.rendezvous.settings import RendezvousConfig
from pilot_trio.wire import canonical_json
from pilot_trio.wire.framing import REGISTRY_FRAME_MAX, FrameDecoder, encode_frame
from pilot_trio.wire.registry import decode_message

ADMIN_TOKEN = "let-me-in"
ANY_PORT = Endpoint("127.0.0.1", 0)


@attrs.define(eq=False)
class Restartable:
    """A running rendezvous."""

    settings: RendezvousConfig
    nursery: trio.Nursery
    handle: RendezvousHandle = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(init=False)
    _stopped: trio.Event = attrs.field(init=False)

    async def start(self) -> None:
        """Start it; at the second time, where it was before."""
        self.handle = await self.nursery.start(self._run)
        self.settings = attrs.evolve(
            self.settings, registry=self.handle.registry, beacon=self.handle.beacon, tls=self.handle.tls
        )

    async def stop(self) -> None:
        """Stop it and wait until it has stopped."""
        self._scope.cancel()
        await self._stopped.wait()

    def requests(self, kind: str) -> int:
        """Return how many requests of a type it was asked since its start."""
        return self.handle.statistics().registry.requests.get(kind, 0)

    async def ask(self, **request: Any) -> dict[str, Any]:
        """Ask it one question over a connection of its own, as pilotctl does."""
        assert self.handle.registry is not None
        decoder = FrameDecoder(REGISTRY_FRAME_MAX)
        async with await trio.open_tcp_stream(*self.handle.registry) as stream:
            await stream.send_all(encode_frame(canonical_json.dumps(request)))
            while (body := decoder.next_frame()) is None:
                data = await stream.receive_some()
                assert data, "closed without an answer"
                decoder.feed(data)
        return decode_message(body)

    async def _run(self, *, task_status: trio.TaskStatus[RendezvousHandle]) -> None:
        self._stopped = trio.Event()
        with trio.CancelScope() as self._scope:
            await serve_rendezvous(self.settings, task_status=task_status)
        self._stopped.set()


@contextlib.asynccontextmanager
async def open_rendezvous(store: Path | None = None, *, tls: bool = False) -> AsyncGenerator[Restartable, None]:
    """Run a rendezvous on free ports."""
    settings = RendezvousConfig(
        registry=ANY_PORT, beacon=ANY_PORT, tls=ANY_PORT if tls else None, store=store, admin_token=ADMIN_TOKEN
    )
    async with trio.open_nursery() as nursery:
        rendezvous = Restartable(settings, nursery)
        await rendezvous.start()
        yield rendezvous
        nursery.cancel_scope.cancel()
