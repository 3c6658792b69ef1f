"""The deadline on the real clock and real sockets: everything at once, because it takes twenty seconds."""

from __future__ import annotations

import logging
import os
import socket
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pilot_trio.daemon.ipc import IPCServer
from pilot_trio.net.unix_listener import open_unix_listener
from pilot_trio.wire.ipc import Code, encode_frame
from tests.daemon.ipc.conftest import HEALTH, HEALTH_OK, Commands

OBSERVED = 21.5  # seconds; two deadlines, so that a client cut late is still seen to be cut
INFO = encode_frame(Code.INFO)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pt") as name:
        yield Path(name) / "s.sock"


class Flooder:
    """Floods with Info, reads `bytes_per_second`, and notes when the daemon hangs up."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.cut_after: float | None = None

    async def run(self, path: Path) -> None:
        with trio.socket.socket(socket.AF_UNIX) as client:
            await client.connect(os.fspath(path))
            started_at = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, client)
                try:
                    while True:
                        await client.send(INFO * 3000)
                except (BrokenPipeError, ConnectionResetError):
                    self.cut_after = trio.current_time() - started_at
                nursery.cancel_scope.cancel()

    async def _read(self, client: trio.socket.SocketType) -> None:
        while True:
            await trio.sleep(0.25)
            if self.bytes_per_second:
                await client.recv(self.bytes_per_second // 4)


async def time_health(path: Path, until: float) -> list[float]:
    """Ask again and again; return how long each answer took."""
    client = trio.socket.socket(socket.AF_UNIX)
    await client.connect(os.fspath(path))
    taken = []
    while trio.current_time() < until:
        asked_at = trio.current_time()
        await client.send(HEALTH)
        assert await client.recv(1000) == HEALTH_OK
        taken.append(trio.current_time() - asked_at)
        await trio.sleep(0.005)
    client.close()
    return taken


@pytest.mark.real_time
@pytest.mark.slow
async def test_deadline_and_lowest_rate_for_real(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = IPCServer(Commands().table())
    listener = await open_unix_listener(path)
    silent, too_slow, slow = Flooder(0), Flooder(1_200), Flooder(2_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listener)
        for client in (silent, too_slow, slow):
            nursery.start_soon(client.run, path)
        taken = await time_health(path, trio.current_time() + OBSERVED)
        nursery.cancel_scope.cancel()
    assert silent.cut_after is not None
    assert 10.0 <= silent.cut_after < 11.0
    assert too_slow.cut_after is not None
    assert slow.cut_after is None
    assert statistics.median(taken) < 0.005
    assert max(taken) < 1  # the machine may have other work; a server that waits for one of the three takes ten
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2
