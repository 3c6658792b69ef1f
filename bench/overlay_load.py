"""What clients do with two daemons: streams, datagrams, dials. Blocking sockets; the far side is a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench.load import PATIENCE, connect, read_frame
from bench.peers import Pair, Peer

BIND, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK = range(1, 10)
ERROR, SEND_TO, RECV_FROM = 0x0A, 0x0B, 0x0C
ECHO = 7
PORT = 5000
SILENCE = 5.0  # seconds without a byte: the transfer has stopped
CHUNK = 32 * 1024
_FRAME = struct.Struct("!IB")


class Transfer(NamedTuple):
    """What came of a one-way transfer."""

    received: int  # bytes
    seconds: float  # from the first byte to the last
    silent: bool  # it stopped before its end


def frame(code: int, payload: bytes) -> bytes:
    return _FRAME.pack(1 + len(payload), code) + payload


def dial(client: socket.socket, peer: Peer, port: int) -> bytes:
    """Open a stream; its id as four bytes."""
    client.sendall(frame(DIAL, struct.pack("!HIH", 0, peer.node_id, port)))
    while (answer := read_frame(client))[0] not in (DIAL_OK, ERROR):
        pass
    assert answer[0] == DIAL_OK, answer
    return answer[1:5]


def transfer(pair: Pair, connections: int, size: int, seconds: float = 60.0) -> Transfer:
    """Send `size` bytes over so many connections at once, or as much as `seconds` allow; count what arrives."""
    with _sink(pair.far.socket, size, connections, seconds) as report:
        clients = [connect(pair.near.socket) for _ in range(connections)]
        left: dict[int, int] = {}
        poll = select.poll()
        frames, by_number, rests = {}, {}, {}
        for client in clients:
            number = client.fileno()
            frames[number] = frame(SEND, dial(client, pair.far, PORT) + bytes(CHUNK))
            client.setblocking(False)
            by_number[number], rests[number], left[number] = client, b"", size // connections
            poll.register(number, select.POLLOUT)
        end = time.perf_counter() + seconds + SILENCE
        while left and time.perf_counter() < end and not report.poll():
            for number, _ in poll.poll(200):
                rest = rests[number] or frames[number]
                with contextlib.suppress(BlockingIOError):
                    rests[number] = rest[by_number[number].send(rest) :]
                    if not rests[number]:
                        left[number] -= CHUNK
                        if left[number] <= 0:
                            poll.unregister(number)
                            del left[number]
        assert report.poll(seconds + 2 * SILENCE + PATIENCE), "the receiver never reported"
        found = Transfer(*report.recv())
        for client in clients:
            client.close()
    return found


@contextlib.contextmanager
def _sink(path: Path, size: int, connections: int, seconds: float) -> Iterator[Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(path, size, connections, seconds, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(PATIENCE)
        ours.recv()
        yield ours
    finally:
        process.kill()
        process.join()


def _receive(path: Path, size: int, connections: int, seconds: float, report: Connection) -> None:
    size -= size % (CHUNK * connections)
    with connect(path) as client:
        client.sendall(frame(BIND, struct.pack("!H", PORT)))
        assert read_frame(client)[0] == BIND_OK
        report.send("ready")
        buffer = bytearray()
        received, started, last, silent = 0, 0.0, 0.0, False
        client.settimeout(SILENCE)
        while received < size:
            try:
                data = client.recv(1 << 20)
            except TimeoutError:
                silent = True
                break
            buffer += data
            at, end = 0, len(buffer)
            while end - at >= 5:
                length, code = _FRAME.unpack_from(buffer, at)
                if end - at < 4 + length:
                    break
                if code == RECV:
                    received += length - 5
                at += 4 + length
            del buffer[:at]
            last = time.perf_counter()
            if received and not started:
                started = last
            if started and last - started > seconds:
                break
        report.send((received, last - started, silent))
        time.sleep(PATIENCE)


def request_reply(pair: Pair, size: int, seconds: float = 1.0) -> list[float]:
    """One echoed message at a time; sorted latencies in microseconds."""
    latencies = []
    with connect(pair.near.socket) as client:
        message = frame(SEND, dial(client, pair.far, ECHO) + os.urandom(size))
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            client.sendall(message)
            got = 0
            while got < size:
                answer = read_frame(client)
                assert answer[0] == RECV, answer[:20]
                got += len(answer) - 5
            latencies.append((time.perf_counter() - start) * 1e6)
    return sorted(latencies)


def dial_one_by_one(pair: Pair, count: int = 300) -> list[float]:
    """Dial and close; sorted latencies of the dials in microseconds."""
    latencies = []
    with connect(pair.near.socket) as client:
        for _ in range(count):
            start = time.perf_counter()
            number = dial(client, pair.far, ECHO)
            latencies.append((time.perf_counter() - start) * 1e6)
            client.sendall(frame(CLOSE, number))
    return sorted(latencies)


def dial_outstanding(pair: Pair, window: int = 32, count: int = 1500) -> float:
    """Keep so many dials outstanding, close each stream as it opens; dials per second."""
    request = frame(DIAL, struct.pack("!HIH", 0, pair.far.node_id, ECHO))
    with connect(pair.near.socket) as client:
        start = time.perf_counter()
        client.sendall(request * window)
        opened = 0
        while opened < count:
            answer = read_frame(client)
            if answer[0] == DIAL_OK:
                opened += 1
                client.sendall(frame(CLOSE, answer[1:5]) + request)
            elif answer[0] == ERROR:  # an accept queue was full; a refusal is an answer, and costs its time
                client.sendall(request)
        elapsed = time.perf_counter() - start
    time.sleep(0.5)  # what is outstanding is not the next row's business
    return opened / elapsed


def datagrams(pair: Pair, size: int = 1000, seconds: float = 1.0) -> tuple[float, float]:
    """Send datagrams unpaced; delivered per second, and the share of those sent that was."""
    with connect(pair.near.socket) as warm:
        dial(warm, pair.far, ECHO)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_count_datagrams, args=(pair.far.socket, theirs), daemon=True)
    process.start()
    ours.recv()
    message = frame(SEND_TO, struct.pack("!HIH", 0, pair.far.node_id, 6000) + bytes(size))
    sent = 0
    with connect(pair.near.socket) as client:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            client.sendall(message * 16)
            sent += 16
        assert ours.poll(PATIENCE)
        received, elapsed = ours.recv()
    process.join()
    return received / elapsed, received / sent


def _count_datagrams(path: Path, report: Connection) -> None:
    with connect(path) as client:
        report.send("ready")
        buffer = bytearray()
        received, started, last = 0, 0.0, 0.0
        with contextlib.suppress(TimeoutError):
            while True:
                data = client.recv(1 << 20)
                last = time.perf_counter()
                started = started or last
                client.settimeout(1.0)
                buffer += data
                at, end = 0, len(buffer)
                while end - at >= 5:
                    length, code = _FRAME.unpack_from(buffer, at)
                    if end - at < 4 + length:
                        break
                    received += code == RECV_FROM
                    at += 4 + length
                del buffer[:at]
        report.send((received, max(last - started, 1e-9)))


def thousand_streams(pair: Pair, count: int = 1000) -> float:
    """Open so many streams that say nothing; resident bytes of both daemons per stream."""
    before = pair.resident()
    with connect(pair.near.socket) as client:
        for _ in range(count):
            dial(client, pair.far, ECHO)
        time.sleep(0.5)
        after = pair.resident()
    time.sleep(1.0)
    return (after - before) / count


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every processor busy with other work."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_burn, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _burn() -> None:
    while True:
        pass
