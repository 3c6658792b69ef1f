"""The IPC server: what lets any number of careless local programs share one daemon (`spec/ipc.md`).

One nursery for the server, and in it one nursery per client::

    IPCServer.serve
    │  accept ──► serve_client                                      one per client, at most 1,024
    │             │
    │             ├─ reader ── health, data commands, Cancel: in place, in order
    │             │   │        answers that need no waiting: in place
    │             │   └─ CapacityLimiter(1024) ──► request task     lookups, waits; dials and shared questions: no tasks
    │             │                                    │
    │             │                                    │            stream pushers, accept pushers: no tasks
    │             │                                    │                       │
    │             │   replies ────────┬────────────────┴───────────────────────┘
    │             │             memory channel (256 frames, 256 KiB)
    │             │                   │
    │             └─ writer ◄─────────┘  move_on_after(10) around every send_all;
    │                                    when it expires, this client's nursery is cancelled
    ├─ questions                         one task per question that is under way, for all who ask the same
    ├─ hang-up watch                     one task for all clients whose readers wait
    └─ freed memory                      one task that gives back what clients have left behind

What follows from the shape, and is tested in `tests/daemon/incident`: a client that stops reading fills its own queue,
parks its own tasks and, at 1,024 of them or 256 KiB, its own reader. Nobody else waits for any of these. Ten seconds
later its writer gives up, its nursery is cancelled, and all of it is gone in one turn of the loop.

`ipc_session` is the life of one client, `ipc_client` that of its requests, `outbound` its queue and writer, `in_flight`
its requests that wait, `dispatch` what handlers are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, final

import attrs
import trio

from pilot_trio.daemon.coalescing import Coalescer
from pilot_trio.daemon.dispatch import CommandTable
from pilot_trio.daemon.freed_memory import FreedMemory
from pilot_trio.daemon.hang_up import HangUpWatch
from pilot_trio.daemon.ipc_client import Counters, IPCClient
from pilot_trio.daemon.ipc_session import serve_client
from pilot_trio.daemon.turn import Turn
from pilot_trio.net.transport import Transport, TransportListener

CLIENTS_MAX: Final = 1024  # simultaneous clients; protocol, `spec/ipc.md` §1
SHUTDOWN_DRAIN: Final = 0.8  # seconds that all clients together get to take what is queued when the daemon stops

_log = logging.getLogger("pilot_trio.ipc")


@attrs.frozen
class IPCStatistics:
    """The IPC server at one moment. The first four describe now; the rest count since the start."""

    clients: int
    in_flight: int  # requests being worked on in tasks of their own
    queued_frames: int
    queued_bytes: int
    accepted_clients: int
    refused_clients: int  # turned away because `CLIENTS_MAX` were there
    cut_clients: int  # did not take a write within its deadline
    crashes: int  # handlers and background tasks that raised what they may not
    dropped_offers: int  # frames that were offered to clients without room


@final
class IPCServer:
    """Serves clients that arrive at a listener, each in a nursery of its own."""

    def __init__(
        self, commands: CommandTable, *, turn: Turn | None = None, shutdown_drain: float = SHUTDOWN_DRAIN
    ) -> None:
        """Take the command table, which may still be filled until `serve` is called, and what holds back sending."""
        self._commands = commands
        self._turn = turn or Turn(_nothing)
        self._shutdown_drain = shutdown_drain
        self._clients: dict[int, IPCClient] = {}  # {client_id: client}
        self._last_client_id = 0
        self._counters = Counters()
        self._hang_ups = HangUpWatch()
        self._freed_memory = FreedMemory()
        self._questions = Coalescer()
        self._full = False  # said so in the log

    @property
    def client_count(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    def statistics(self) -> IPCStatistics:
        """Return the counters; cheap enough to ask for often."""
        clients = self._clients.values()
        return IPCStatistics(
            clients=len(clients),
            in_flight=sum(client.in_flight for client in clients),
            queued_frames=sum(client.outbound.queued_frames for client in clients),
            queued_bytes=sum(client.outbound.queued_bytes for client in clients),
            accepted_clients=self._counters.accepted,
            refused_clients=self._counters.refused,
            cut_clients=self._counters.cut,
            crashes=self._counters.crashes,
            dropped_offers=self._counters.dropped_offers,
        )

    def broadcast_offer(self, frames: Sequence[bytes]) -> int:
        """Offer frames to every client; return how many were taken. Never waits: who has no room loses them."""
        return sum(client.offer_all(frames) for client in self._clients.values())

    async def serve(
        self, listener: TransportListener, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; takes over the listener.

        Cancellation closes the listener, stops reading, cancels every handler, and gives the clients `shutdown_drain`
        seconds, all together, to take what is queued for them.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hang_ups.run)
            nursery.start_soon(self._freed_memory.run)
            await nursery.start(self._questions.run)
            task_status.started()
            try:
                while True:
                    for transport in await listener.accept_some():
                        self._admit(transport, nursery)
            finally:
                listener.close()
                for client in self._clients.values():
                    client.outbound.finish_within(self._shutdown_drain)

    def _admit(self, transport: Transport, nursery: trio.Nursery) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            transport.close()
            self._counters.refused += 1
            if not self._full:
                _log.warning("IPC turns clients away: %d are connected", CLIENTS_MAX)
            self._full = True
            return
        self._full = False
        self._counters.accepted += 1
        self._last_client_id += 1
        client = IPCClient(
            self._last_client_id,
            transport,
            self._commands,
            self._counters,
            self._hang_ups,
            self._turn,
            self._questions,
        )
        self._clients[client.client_id] = client
        nursery.start_soon(self._serve_client, client, transport)

    async def _serve_client(self, client: IPCClient, transport: Transport) -> None:
        try:
            await serve_client(client, transport, self._counters)
        except Exception:
            # A defect of ours, and the last place to keep it from taking the other clients along.
            self._counters.crashes += 1
            _log.exception("IPC client failed client=%d", client.client_id)
        finally:
            del self._clients[client.client_id]
            self._freed_memory.note()


def _nothing() -> None:
    """Hold nothing back."""
