"""The blocking client of the local protocol."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.cli.ipc_client import (
    DATAGRAMS_MAX,
    UNKNOWN_STREAMS_MAX,
    DaemonGone,
    DaemonNotRunning,
    DaemonTimeout,
    IPCClient,
    deadline_in,
)
from pilot_trio.errors import DaemonError
from pilot_trio.wire import ipc
from pilot_trio.wire.framing import IPC_FRAME_MAX
from pilot_trio.wire.ipc import Code

PEER = Address(NetworkId(0), NodeId(6))
Script = Callable[[socket.socket], object]
Serve = Callable[[Script], IPCClient]
PATIENCE = 60.0  # seconds that a busy machine may take for what takes none


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Run a function as the daemon's side of one connection; give the client's."""
    opened: list[socket.socket] = []
    clients: list[IPCClient] = []
    threads: list[threading.Thread] = []

    def start(script: Script) -> IPCClient:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(home / "s"))
        listener.listen()
        client = IPCClient(home / "s", deadline_in(PATIENCE))
        server, _ = listener.accept()
        opened.extend((listener, server))
        clients.append(client)

        def run() -> None:
            with suppress(OSError):
                script(server)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return client

    yield start
    for client in clients:
        client.close()
    for sock in opened:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    for thread in threads:
        thread.join(5)


def test_a_large_echo_does_not_lock_up_both_sides(serve: Serve) -> None:
    """Both buffers are full long before 16 MiB: a client that only writes would wait for ever."""
    size = 16 << 20

    def echo(server: socket.socket) -> None:
        server.sendall(ipc.encode_conn(Code.DIAL_OK, 1))
        while data := server.recv(65536):
            server.sendall(b"".join(ipc.encode_conn(Code.RECV, 1, data[:1]) for _ in range(0, len(data), 64)))

    client = serve(echo)
    stream = client.dial(PEER, 7, deadline_in(PATIENCE))
    stream.send(bytes(size), deadline_in(PATIENCE))
    assert stream.received


def test_frames_may_come_in_any_pieces(serve: Serve) -> None:
    frames = (
        ipc.encode_port(Code.BIND_OK, 5) + ipc.encode_accept(5, 9, PEER, 1) + ipc.encode_conn(Code.RECV, 9, b"hello")
    )
    frames += b"\0\0\0\0" + ipc.encode_conn(Code.CLOSE_OK, 9)

    def drip(server: socket.socket) -> None:
        server.recv(100)
        for at in range(len(frames)):
            server.sendall(frames[at : at + 1])

    client = serve(drip)
    assert client.bind(5, deadline_in(PATIENCE)) == 5
    accepted, stream = client.accept(deadline_in(PATIENCE))
    assert accepted == (5, 9, PEER, 1)
    received = b""
    while piece := stream.receive(deadline_in(PATIENCE)):
        received += piece
    assert received == b"hello"


def test_replies_of_another_kind_are_not_taken(serve: Serve) -> None:
    def answer(server: socket.socket) -> None:
        server.recv(100)
        server.sendall(
            ipc.encode_frame(Code.HEALTH_OK, b"late") + ipc.encode_frame(0x7F) + ipc.encode_frame(Code.INFO_OK, b"{}")
        )

    assert serve(answer).request(Code.INFO, b"", deadline_in(PATIENCE)) == b"{}"


def test_an_error_frame_is_an_error(serve: Serve) -> None:
    def answer(server: socket.socket) -> None:
        server.recv(100)
        server.sendall(ipc.encode_error("connection refused"))

    with pytest.raises(DaemonError, match=r"^connection refused$"):
        serve(answer).dial(PEER, 9, deadline_in(PATIENCE))


def test_a_deadline_in_the_past_does_not_wait(serve: Serve) -> None:
    client = serve(lambda server: server.recv(1))
    with pytest.raises(DaemonTimeout):
        client.request(Code.INFO, b"", deadline_in(-5))  # for the kernel less than no time is for ever


def test_a_daemon_that_does_not_read_costs_the_deadline(serve: Serve) -> None:
    never = threading.Event()
    client = serve(lambda _server: never.wait(5))
    with pytest.raises(DaemonTimeout):
        client.send(bytes(64 << 20), deadline_in(0.1))
    never.set()


@pytest.mark.parametrize("last", [b"", b"\0\0", (IPC_FRAME_MAX + 1).to_bytes(4, "big")])
def test_a_daemon_that_hangs_up_or_talks_nonsense_is_gone(serve: Serve, last: bytes) -> None:
    def leave(server: socket.socket) -> None:
        server.recv(100)
        server.sendall(last)
        server.close()

    with pytest.raises(DaemonGone):
        serve(leave).request(Code.INFO, b"", math.inf)


def test_what_nobody_asks_for_is_bounded(serve: Serve) -> None:
    def flood(server: socket.socket) -> None:
        for number in range(DATAGRAMS_MAX + 1):
            server.sendall(ipc.encode_recv_from(PEER, 1, 5, b"%d" % number))
        for number in range(UNKNOWN_STREAMS_MAX + 1):
            server.sendall(ipc.encode_conn(Code.RECV, 1000 + number, b"x"))
        server.recv(100)
        server.sendall(ipc.encode_frame(Code.INFO_OK, b"{}"))

    client = serve(flood)
    client.request(Code.INFO, b"", deadline_in(PATIENCE))
    assert len(client.datagrams) == DATAGRAMS_MAX
    assert client.next_datagram(5, deadline_in(1)).data == b"1"  # the oldest was dropped
    assert len(client._streams) == UNKNOWN_STREAMS_MAX


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch(), lambda path: path.mkdir()])
def test_without_a_daemon_there_is_nothing_to_connect_to(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "s")
    with pytest.raises(DaemonNotRunning):
        IPCClient(tmp_path / "s", deadline_in(1))


def test_a_path_that_is_too_long_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning, match="too long"):
        IPCClient(tmp_path / ("x" * 200), deadline_in(1))
