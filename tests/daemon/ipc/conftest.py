"""A server with a small command table, on memory transports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import attrs
import pytest
import trio

from pilot_trio.daemon.dispatch import Answer, Client, CommandTable, Lane, Later, Promise, Route, RunRoute, Shared
from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.daemon.ipc_client import IPCClient
from pilot_trio.errors import CommandError
from pilot_trio.testing.memory_transport import MemoryTransportListener
from pilot_trio.wire.ipc import Code, encode_frame

from .raw_client import RawClient

HEALTH = encode_frame(Code.HEALTH)
HEALTH_OK = encode_frame(Code.HEALTH_OK, b'{"status":"ok"}')
RUN_HEAD = 3  # bytes that SEND_TO requests have in common if they are handled together
CRASH = bytes([Code.SEND_TO]) + b"crash"
INFO_OK = encode_frame(Code.INFO_OK, b'{"features":[' + b'"x",' * 250 + b'""]}')


@attrs.define(eq=False)
class Commands:
    """Handlers of every kind, and what they saw."""

    gate: trio.Event = attrs.field(factory=trio.Event)
    seen: list[tuple[int, bytes]] = attrs.field(factory=list)
    clients: list[IPCClient] = attrs.field(factory=list)  # those that sent DIAL
    started: int = 0
    runs: list[list[bytes]] = attrs.field(factory=list)  # of SEND_TO, codes included
    promised: list[tuple[bytes, Answer]] = attrs.field(factory=list)  # what RESOLVE_HOSTNAME waits for

    def table(self) -> CommandTable:
        return {
            Code.HEALTH: Route(lambda client, payload: HEALTH_OK, Lane.FIFO, snapshot=True),
            Code.INFO: Route(lambda client, payload: INFO_OK, snapshot=True),
            Code.DIAL: Route(self.wait_for_gate),
            Code.RESOLVE_HOSTNAME: Route(self.promise),
            Code.PREFER_DIRECT: Route(self.share, error_prefix="shared: "),
            Code.SEND: Route(self.record, Lane.FIFO, replies=False),
            Code.SEND_TO_CONFIRM: Route(self.confirm, Lane.FIFO, error_prefix="sendto: "),
            Code.SEND_TO: RunRoute(self.record_run, RUN_HEAD),
            Code.NETWORK: Route(self.crash),
            Code.MANAGED: Route(self.crash_later),
            Code.CANCEL: Route(self.crash, Lane.FIFO, replies=False),
            Code.SET_TAGS: Route(self.refuse),
            Code.SIGN_ENVELOPE: Route(lambda client, payload: encode_frame(Code.SIGN_ENVELOPE_OK, bytes(1 << 20))),
        }

    def wait_for_gate(self, client: Client, payload: bytes) -> Later:
        assert isinstance(client, IPCClient)
        self.clients.append(client)

        async def wait() -> bytes:
            self.started += 1
            await self.gate.wait()
            return encode_frame(Code.DIAL_OK, payload)

        return Later(wait)

    def promise(self, client: Client, payload: bytes) -> Promise:
        if payload == b"refused":
            raise CommandError("refused at once")

        def start(answer: Answer) -> None:
            if payload == b"now":
                answer(encode_frame(Code.RESOLVE_HOSTNAME_OK, payload))
            elif payload == b"crash":
                raise ZeroDivisionError("a bug")
            else:
                self.promised.append((payload, answer))

        return Promise(start)

    def share(self, client: Client, payload: bytes) -> Shared:
        async def ask(by: float) -> bytes:
            self.started += 1
            await self.gate.wait()
            if payload == b"refused":
                raise CommandError("no")
            if payload == b"crash":
                raise ZeroDivisionError("a bug")
            return encode_frame(Code.PREFER_DIRECT_OK, payload)

        return Shared(payload, ask)

    def record(self, client: Client, payload: bytes) -> Later | None:
        self.seen.append((client.client_id, payload))
        if payload != b"blocked":
            return None

        async def wait() -> None:
            await self.gate.wait()

        return Later(wait)

    def record_run(self, client: Client, requests: Sequence[bytes]) -> Later | None:
        if requests[0] == CRASH:
            raise ZeroDivisionError("a bug")
        if len(requests[0]) < RUN_HEAD:
            raise CommandError("too short")
        self.runs.append(list(requests))
        self.seen += [(client.client_id, request) for request in requests]
        return Later(self.gate.wait) if requests[-1].endswith(b"wait") else None

    def confirm(self, client: Client, payload: bytes) -> bytes | Later:
        if not payload:
            raise CommandError("missing header")

        async def wait() -> bytes:
            await trio.sleep(payload[0] / 1000)
            return encode_frame(Code.SEND_TO_OK, payload)

        return Later(wait) if payload[0] % 2 else encode_frame(Code.SEND_TO_OK, payload)

    def crash(self, client: Client, payload: bytes) -> bytes:
        raise ZeroDivisionError("a bug")

    def crash_later(self, client: Client, payload: bytes) -> Later:
        async def crash() -> bytes:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("a bug")

        return Later(crash)

    def refuse(self, client: Client, payload: bytes) -> Later:
        async def refuse() -> bytes:
            await trio.lowlevel.checkpoint()
            raise CommandError("set_tags: maximum 3 tags allowed")

        return Later(refuse)


@attrs.define(eq=False)
class Bench:
    """A running server, its listener and its commands."""

    server: IPCServer
    listener: MemoryTransportListener
    commands: Commands
    scope: trio.CancelScope

    async def connect(self) -> RawClient:
        return await RawClient.connect(self.listener)

    def stop(self) -> None:
        self.scope.cancel()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    commands = Commands()
    server = IPCServer(commands.table())
    listener = MemoryTransportListener()
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await server.serve(listener, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield Bench(server, listener, commands, scope)
        scope.cancel()
