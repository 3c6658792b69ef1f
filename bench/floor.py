"""The least that a request through two Trio processes can take: `python -m bench.floor`.

Two processes stand for two daemons and do nothing but what no implementation can leave out: wait for a socket, read it,
open or seal one packet, write the other socket. No streams, no acknowledgments, no frames, no clients' rights. What is
above the bar here is above it for every daemon on Trio.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.load import percentile

KEY = bytes(32)
NONCE = bytes(12)
SIZES = (64, 4096)
PIECE = 1152  # bytes of payload per datagram, as on the wire
SECONDS = 2.0
BUFFER = 65_536


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


async def _near(path: str, peer: int, port: int) -> None:
    """Carry what one client writes to the peer, and what the peer sends to the client."""
    seal, unseal = AESGCM(KEY).encrypt, AESGCM(KEY).decrypt
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    udp = _udp(port)
    await trio.lowlevel.wait_readable(listener)
    client, _ = listener.accept()
    client.setblocking(False)

    async def out() -> None:
        while True:
            await trio.lowlevel.wait_readable(client)
            for piece in _pieces(client.recv(BUFFER)):
                udp.sendto(seal(NONCE, piece, None), ("127.0.0.1", peer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(out)
        while True:
            await trio.lowlevel.wait_readable(udp)
            client.send(unseal(NONCE, udp.recv(BUFFER), None))


async def _far(peer: int, port: int) -> None:
    """Send everything back."""
    seal, unseal = AESGCM(KEY).encrypt, AESGCM(KEY).decrypt
    udp = _udp(port)
    while True:
        await trio.lowlevel.wait_readable(udp)
        udp.sendto(seal(NONCE, unseal(NONCE, udp.recv(BUFFER), None), None), ("127.0.0.1", peer))


def _udp(port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    udp.setblocking(False)
    return udp


def _free_ports() -> tuple[int, int]:
    with _udp(0) as one, _udp(0) as two:
        return one.getsockname()[1], two.getsockname()[1]


def _ask(client: socket.socket, size: int) -> list[float]:
    message = os.urandom(size)
    latencies = []
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        client.sendall(message)
        got = 0
        while got < size:
            got += len(client.recv(BUFFER))
        latencies.append((time.perf_counter() - start) * 1e6)
    return sorted(latencies)


def main() -> None:
    """Print the latencies of the bare chain."""
    near, far = _free_ports()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        processes = [
            context.Process(target=trio.run, args=(_near, path, far, near), daemon=True),
            context.Process(target=trio.run, args=(_far, near, far), daemon=True),
        ]
        for process in processes:
            process.start()
        client = socket.socket(socket.AF_UNIX)
        while client.connect_ex(path):
            time.sleep(0.01)
        for size in SIZES:
            latencies = _ask(client, size)
            print(f"{size:5} B  p50 {percentile(latencies, 0.5):6.0f} us  p99 {percentile(latencies, 0.99):6.0f} us")
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
