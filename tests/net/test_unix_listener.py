"""Accepting: many at a time, this user only, whatever the process runs short of."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from pilot_trio.net import unix_listener
from pilot_trio.net.transport import Transport
from pilot_trio.net.unix_listener import ACCEPT_BATCH_MAX, UnixListener, open_unix_listener, raise_open_files_limit


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pt") as name:
        yield Path(name) / "s.sock"


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    client.connect(os.fspath(path))
    return client


class FailingSocket:
    """The listening socket, whose `accept` fails as told before it works again."""

    def __init__(self, sock: socket.socket, failures: list[int]) -> None:
        self._sock = sock
        self.failures = failures
        self.calls = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        self.calls += 1
        if self.failures:
            code = self.failures.pop(0)
            raise OSError(code, os.strerror(code))
        return self._sock.accept()

    def close(self) -> None:
        self._sock.close()


def make_fail(listener: UnixListener, *failures: int) -> FailingSocket:
    failing = FailingSocket(listener._sock, list(failures))
    listener._sock = failing  # type: ignore[assignment]
    return failing


def close_all(clients: list[socket.socket], transports: list[Transport]) -> None:
    for transport in transports:
        transport.close()
    for client in clients:
        client.close()


async def test_clients_are_accepted_in_bounded_batches(path: Path) -> None:
    listener = await open_unix_listener(path)
    assert listener.path == path
    clients = [connect(path) for _ in range(ACCEPT_BATCH_MAX + 3)]
    first = await listener.accept_some()
    second = await listener.accept_some()
    assert (len(first), len(second)) == (ACCEPT_BATCH_MAX, 3)
    close_all(clients, first + second)
    listener.close()


async def test_other_users_are_closed_and_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = await open_unix_listener(path, uid=os.getuid() + 1)
    client = connect(path)
    with trio.move_on_after(0.05):
        await listener.accept_some()
    assert client.recv(1) == b""
    assert caplog.messages[0].startswith("IPC rejected cross-UID connection")
    close_all([client], [])
    listener.close()


async def test_close_removes_the_file_and_wakes_the_acceptor(path: Path) -> None:
    listener = await open_unix_listener(path)
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept_some()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    assert not path.exists()
    listener.close()  # idempotent


async def test_a_client_that_left_before_accept_costs_nobody_anything(path: Path) -> None:
    listener = await open_unix_listener(path)
    make_fail(listener, errno.ECONNABORTED, errno.ECONNABORTED)
    client = connect(path)
    transports = await listener.accept_some()
    assert len(transports) == 1
    close_all([client], transports)
    listener.close()


async def test_a_broken_listener_says_so(path: Path) -> None:
    listener = await open_unix_listener(path)
    make_fail(listener, errno.EINVAL)
    client = connect(path)
    with pytest.raises(OSError, match="Invalid argument"):
        await listener.accept_some()
    close_all([client], [])
    listener.close()


async def test_shortage_backs_off_and_recovers_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = await open_unix_listener(path)
    failing = make_fail(listener, *[errno.ENFILE] * 6)
    client = connect(path)
    started_at = trio.current_time()
    transports = await listener.accept_some()
    assert len(transports) == 1
    # Each round: a batch that fails, and the loan of the spare descriptor, which fails too.
    assert failing.calls == 6 + 2
    assert trio.current_time() - started_at >= 3 * unix_listener.ACCEPT_BACKOFF * 0.9
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    close_all([client], transports)
    listener.close()


async def test_without_descriptors_further_clients_get_end_of_file(path: Path) -> None:
    listener = await open_unix_listener(path)
    clients = [connect(path) for _ in range(5)]
    transports: list[Transport] = []

    async def accept() -> None:
        while True:
            transports.extend(await listener.accept_some())

    async with trio.open_nursery() as nursery:
        with one_descriptor_left(), trio.fail_after(5):
            nursery.start_soon(accept)
            for client in clients[1:]:
                await trio.lowlevel.wait_readable(client)
                assert client.recv(1) == b""
        # With descriptors at hand again, clients are served again.
        clients.append(connect(path))
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert len(transports) == 2
    close_all(clients, transports)
    listener.close()


@contextlib.contextmanager
def one_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


async def test_a_thousand_clients_wait_in_the_backlog_at_once(path: Path) -> None:
    raise_open_files_limit()
    listener = await open_unix_listener(path)
    clients = [connect(path) for _ in range(1100)]  # non-blocking: a full backlog would raise
    transports: list[Transport] = []
    while len(transports) < len(clients):
        transports += await listener.accept_some()
    close_all(clients, transports)
    listener.close()


def test_open_files_limit_is_raised_to_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert raise_open_files_limit() == 4096
    assert asked == [(4096, 4096)]


@pytest.mark.parametrize("limits", [(4096, 4096), (1024, 4096)])
def test_open_files_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    setrlimit: Callable[..., None] = refuse
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert raise_open_files_limit() == limits[0]


async def test_clients_that_have_left_make_way_for_those_who_have_not(path: Path) -> None:
    listener = await open_unix_listener(path)
    gone = [connect(path) for _ in range(ACCEPT_BATCH_MAX * 3)]
    close_all(gone, [])
    clients = [connect(path) for _ in range(3)]
    clients[1].send(b"x")
    clients[2].send(b"y")
    clients[2].shutdown(socket.SHUT_WR)
    transports = await listener.accept_some()
    assert len(transports) == 3
    assert [await transport.receive_some(10) for transport in transports[1:]] == [b"x", b"y"]
    close_all(clients, transports)
    listener.close()
