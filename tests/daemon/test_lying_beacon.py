"""A beacon that says anything at all: the node goes on, and says nothing of defects."""

from __future__ import annotations

import contextlib
import logging
import random

import pytest
import trio

from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.errors import PilotError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DatagramSocket
from pilot_trio.testing import MemoryNetwork, open_node, run_simulation
from pilot_trio.wire import tunnel

BEACON = Endpoint("127.0.0.1", 9001)
STRANGER = Identity.from_seed(bytes(32))
X25519 = KeyPair.from_private(bytes([7]) * 32).public


def make_frame(rng: random.Random) -> bytes:
    """Return what may be in a relayed datagram."""
    node = rng.choice([0, 1, 2, 3, 2**32 - 1])
    key = rng.choice([X25519, bytes(32), rng.randbytes(32)])
    signature = STRANGER.sign(tunnel.signed_bytes(node, key))
    frames = [
        tunnel.encode_key_exchange(tunnel.KeyExchange(node, key, STRANGER.public_key, signature)),
        tunnel.encode_key_request(tunnel.KeyRequest(node, key)),
        tunnel.PILS + node.to_bytes(4, "big") + rng.randbytes(rng.randrange(100)),
        tunnel.PILT + rng.randbytes(rng.randrange(60)),
        tunnel.PILP,
        rng.randbytes(rng.randrange(40)),
    ]
    frame = rng.choice(frames)
    return frame[: rng.randrange(len(frame) + 1)] if rng.random() < 0.2 else frame


def make_message(rng: random.Random) -> bytes:
    """Return a message of a beacon, or nearly one."""
    kind = rng.choice([1, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7, 8, 9, 10, 15])
    host = rng.choice([bytes(4), b"\x7f\0\0\1", b"\x08\x08\x08\x08", b"\xff" * 4, bytes(16), rng.randbytes(16)])
    body = rng.choice(
        [
            bytes([rng.choice([len(host), len(host), 0, 5])]) + host + rng.randbytes(2),
            rng.choice([0, 1, 2, 3]).to_bytes(4, "big") + make_frame(rng),
            rng.randbytes(rng.randrange(20)),
        ]
    )
    return bytes([kind]) + body


@pytest.mark.simulation
@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_a_beacon_says_ends_a_node_or_shows_a_defect(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    heard: set[Endpoint] = set()

    async def listen(sock: DatagramSocket) -> None:
        while True:
            _, source = await sock.receive()
            heard.add(source)
            if rng.random() < 0.5:
                sock.send_nowait(make_message(rng), source)

    async def main() -> None:
        network = MemoryNetwork()
        sock = await network.open_udp(BEACON)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, sock)
            async with open_node(network=network, beacon=(BEACON,)) as node:
                for number in range(1500):
                    for source in sorted(heard):
                        sock.send_nowait(make_message(rng), source)
                    if number % 50 == 0:
                        with contextlib.suppress(PilotError), trio.move_on_after(5):
                            await node.driver.prefer_direct(rng.randrange(4))
                    await trio.sleep(rng.expovariate(2))
                assert (await node.driver.health()).status == "ok"
                assert node.handle.statistics().tunnel.defects == 0
            nursery.cancel_scope.cancel()
        sock.close()

    run_simulation(main, seed=seed)
    assert heard
    defects = [record for record in caplog.records if record.exc_info is not None or record.levelno > logging.ERROR]
    assert not defects, "\n".join(caplog.handler.format(record) for record in defects)
