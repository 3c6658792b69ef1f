"""A daemon for driver tests: the real IPC server and the real data commands, the rest scripted, in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import trio

from pilot_trio.daemon.dispatch import Client, CommandTable, Lane, Later, Route
from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.driver import Driver, open_driver
from pilot_trio.errors import CommandError, RegistryError
from pilot_trio.net.unix_listener import open_unix_listener
from pilot_trio.testing import MemoryTransport, MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_frame
from tests.daemon.stream_fakes import SELF, FakeNode

OWN_ADDRESS = SELF


class StandIn(FakeNode):
    """`held` requests (their payload is a JSON string, echoed) wait until `release`; `seen` counts what arrived."""

    def __init__(self, capacity: int) -> None:
        super().__init__(admin_token="secret")
        self.seen: list[tuple[Code, bytes]] = []
        self.release = trio.Event()
        self.listener = MemoryTransportListener(capacity)
        self.server = IPCServer(self._table())

    async def connect(self) -> MemoryTransport:
        return await self.listener.open_transport()

    async def listen_at(self, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve on a real socket too."""
        await self.server.serve(await open_unix_listener(path), task_status=task_status)

    def _deliver(self, frames: Sequence[bytes]) -> None:
        self.server.broadcast_offer(frames)

    def _table(self) -> CommandTable:
        table = dict(self.commands)
        table[Code.INFO] = Route(self._info)
        table[Code.HEALTH] = Route(self._health, Lane.FIFO)
        table[Code.RESOLVE_HOSTNAME] = Route(self._resolve)
        table[Code.SET_HOSTNAME] = Route(self._held)
        table[Code.DEREGISTER] = Route(self._refuse)
        for code in (Code.HANDSHAKE, Code.NETWORK, Code.MANAGED, Code.SET_VISIBILITY, Code.SET_TAGS, Code.SET_WEBHOOK):
            table[code] = Route(self._echo(code))
        for code in (Code.SIGN_ENVELOPE, Code.VERIFY_ENVELOPE, Code.SUBMIT_BADGE, Code.ENROLL_RECOVERY):
            table[code] = Route(self._echo(code))
        for code in (Code.ROTATE_KEY, Code.PREFER_DIRECT):
            table[code] = Route(self._echo(code))
        return table

    def _info(self, _client: Client, _payload: bytes) -> bytes:
        body = {"node_id": 1, "address": str(SELF), "uptime_secs": 3.5, "version": "1.18.0", "features": ["a", "b"]}
        body |= {"peers": 2, "connections": 1, "ports": 4, "hostname": "me", "endpoint": "e:1", "public_key": "k"}
        return encode_frame(Code.INFO_OK, json.dumps(body).encode())

    def _health(self, _client: Client, _payload: bytes) -> bytes:
        body = {"status": "ok", "uptime_seconds": 7, "connections": 1, "peers": 2}
        return encode_frame(Code.HEALTH_OK, json.dumps(body).encode())

    def _resolve(self, _client: Client, payload: bytes) -> bytes:
        if payload != b"me":
            raise RegistryError("hostname not found")
        return encode_frame(Code.RESOLVE_HOSTNAME_OK, json.dumps({"node_id": 1, "address": str(SELF)}).encode())

    def _held(self, _client: Client, payload: bytes) -> Later:
        self.seen.append((Code.SET_HOSTNAME, payload))

        async def answer() -> bytes:
            await self.release.wait()
            if payload.startswith(b"bad"):
                raise CommandError(f"set_hostname: {payload.decode()}")
            return encode_frame(Code.SET_HOSTNAME_OK, json.dumps({"hostname": payload.decode()}).encode())

        return Later(answer)

    def _refuse(self, _client: Client, _payload: bytes) -> bytes:
        raise CommandError("deregister: registry: no such node")

    def _echo(self, code: Code) -> Any:
        def handler(_client: Client, payload: bytes) -> bytes:
            self.seen.append((code, payload))
            body = {"payload": payload.hex(), "pending": [{"node_id": 5}], "trusted": True}
            if code is Code.HANDSHAKE and payload[:1] == b"\x05":
                body["trusted"] = [{"node_id": 6}]
            return encode_frame(code + 1, json.dumps(body).encode())

        return handler


@contextlib.asynccontextmanager
async def open_daemon(capacity: int = 65_536) -> AsyncGenerator[StandIn]:
    """Run a stand-in; leaving the block stops it."""
    async with trio.open_nursery() as nursery:
        daemon = StandIn(capacity)
        await nursery.start(daemon.server.serve, daemon.listener)
        yield daemon
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def open_both(capacity: int = 65_536) -> AsyncGenerator[tuple[StandIn, Driver]]:
    """Run a stand-in and a driver on it."""
    async with open_daemon(capacity) as daemon, open_driver(connect_with=daemon.connect) as node:
        yield daemon, node
