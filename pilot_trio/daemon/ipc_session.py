"""The life of one IPC client: its nursery, its reader, its writer, and how all of it ends.

`ipc` has the diagram, `ipc_client` what the reader does with the bytes, `outbound` what the writer does.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from pilot_trio.daemon.ipc_client import Counters, IPCClient
from pilot_trio.daemon.outbound import Ending
from pilot_trio.errors import DecodeError, IPCClosedError
from pilot_trio.net.transport import Transport

READ_MAX: Final = 64 * 1024  # bytes per read; a stalled client pins one such read, a busy one saves system calls

_log = logging.getLogger("pilot_trio.ipc")


async def serve_client(client: IPCClient, transport: Transport, counters: Counters) -> None:
    """Serve the client until it leaves, is cut, or this is cancelled; returns with everything released.

    Every ending takes the same road: the reader is done, one way or another, ports and connections are released, handlers
    are cancelled. The writer alone goes on, to drain what is queued; a write that takes longer than 3 s ends that, and
    `Outbound.finish_within` sets a limit to all of it.
    """
    try:
        async with trio.open_nursery() as nursery:
            client.nursery = nursery
            nursery.start_soon(_write, client, counters)
            try:
                await _read(client, transport)
                await client.settle()
            finally:
                client.release()
                client.outbound.finish()
                if client.in_flight:  # else the writer is alone, and ends by itself
                    nursery.cancel_scope.cancel()
    finally:
        transport.close()


async def _write(client: IPCClient, counters: Counters) -> None:
    """The writer. Once the client takes nothing more, everything in its nursery ends."""
    ending = await client.outbound.write_frames()
    if ending is Ending.STALLED:
        counters.cut += 1
        _log.warning("IPC client cut: it does not read client=%d", client.client_id)
    if ending is not Ending.DRAINED:
        client.end()


async def _read(client: IPCClient, transport: Transport) -> None:
    """The reader: handle requests until the client's input ends, or stops making sense."""
    try:
        while data := await transport.receive_some(READ_MAX):
            if not client.answer_at_once(data):
                await client.handle(data)
    except DecodeError as exc:
        # There is no way back into step. What came before was answered; then the connection closes.
        _log.info("IPC client lost: %s client=%d", exc, client.client_id)
    except (IPCClosedError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client left
