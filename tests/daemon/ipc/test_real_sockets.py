"""The server on real Unix sockets: what memory cannot prove."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from pilot_trio.daemon.ipc import CLIENTS_MAX, IPCServer
from pilot_trio.net.unix_listener import open_unix_listener, raise_open_files_limit
from pilot_trio.wire.ipc import Code, encode_frame

from .conftest import HEALTH, HEALTH_OK, INFO_OK, Commands
from .raw_client import split_frames

INFO = encode_frame(Code.INFO)


@attrs.define(eq=False)
class Running:
    """A server on a real socket."""

    server: IPCServer
    commands: Commands
    path: Path
    scope: trio.CancelScope

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(os.fspath(self.path))
        return client


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    raise_open_files_limit()
    commands = Commands()
    server = IPCServer(commands.table())
    scope = trio.CancelScope()
    with tempfile.TemporaryDirectory(prefix="pt") as directory:
        path = Path(directory) / "s"
        listener = await open_unix_listener(path)

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await server.serve(listener, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield Running(server, commands, path, scope)
            scope.cancel()


async def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while True:
        await trio.lowlevel.wait_readable(client)
        more = client.recv(1 << 16)
        if not more:
            return data
        data += more


async def test_1024_clients_are_served_and_the_rest_get_end_of_file(running: Running) -> None:
    clients = [running.connect() for _ in range(CLIENTS_MAX + 6)]
    for client in clients[CLIENTS_MAX:]:
        assert await read_to_end(client) == b""
    for client in clients[:CLIENTS_MAX]:
        client.send(HEALTH)
    for client in clients[:CLIENTS_MAX]:
        await trio.lowlevel.wait_readable(client)
        assert client.recv(100) == HEALTH_OK
    for client in clients:
        client.close()
    with trio.fail_after(5):
        while running.server.client_count:
            await trio.lowlevel.checkpoint()


async def test_client_beyond_the_cap_that_writes_first_gets_end_of_file_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot_trio.daemon.ipc.CLIENTS_MAX", 0)
    client = running.connect()
    client.send(HEALTH)
    assert await read_to_end(client) == b""
    client.close()


async def test_half_close_gets_every_answer_and_then_the_end(running: Running) -> None:
    client = running.connect()
    client.send(HEALTH * 30 + INFO * 5 + encode_frame(Code.DIAL) * 20)
    client.shutdown(socket.SHUT_WR)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert running.server.statistics().in_flight == 20
    running.commands.gate.set()
    frames = split_frames(await read_to_end(client))
    assert frames[:35] == [HEALTH_OK[4:]] * 30 + [INFO_OK[4:]] * 5
    assert len(frames) == 55
    client.close()


async def test_hang_up_with_requests_in_flight_is_noticed_soon(running: Running) -> None:
    client = running.connect()
    client.send(encode_frame(Code.DIAL) * 20)
    client.shutdown(socket.SHUT_WR)
    await trio.testing.wait_all_tasks_blocked(0.02)
    client.close()
    with trio.fail_after(1):
        while running.server.client_count:
            await trio.lowlevel.checkpoint()
    assert running.server.statistics().in_flight == 0


async def test_garbage_length_closes_with_end_of_file_although_more_was_sent(running: Running) -> None:
    client = running.connect()
    client.send(HEALTH + b"GET / HTTP/1.1\r\n\r\n" * 1000)
    assert await read_to_end(client) == HEALTH_OK
    client.close()


async def test_stopping_tells_idle_clients_at_once_and_removes_the_path(running: Running) -> None:
    idle, answered = running.connect(), running.connect()
    answered.send(INFO * 100)
    await trio.testing.wait_all_tasks_blocked(0.02)
    running.scope.cancel()
    with trio.fail_after(0.5):
        assert await read_to_end(idle) == b""
        assert split_frames(await read_to_end(answered)) == [INFO_OK[4:]] * 100
    assert not running.path.exists()
    idle.close()
    answered.close()
