"""A registered peer, with a session, that sends whatever packets it likes: nothing of it is a defect, or stays."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Sequence

import pytest
import trio

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.driver import Driver
from pilot_trio.errors import PilotError
from pilot_trio.testing import open_node_pair, run_simulation
from pilot_trio.wire.packet import CONTROL, DATAGRAM, STREAM, Packet, decode
from pilot_trio.wire.service_ports import ECHO_PORT, SERVICE_PORTS


def make_packet(rng: random.Random, own: int, other: int, live: list[int]) -> Packet:
    """Return a packet that may mean something: for a service, or for a stream that there is."""
    source = Address(NetworkId(rng.choice([0, 0, 0, 1, 65_535])), NodeId(own))
    target = Address(NetworkId(rng.choice([0, 0, 0, 1])), NodeId(rng.choice([other, other, other, own, 0, 2**32 - 1])))
    ports = [0, *SERVICE_PORTS, *live, rng.randrange(65_536)]
    return Packet(
        rng.randrange(16),
        rng.choice([STREAM, STREAM, STREAM, DATAGRAM, CONTROL, rng.randrange(256)]),
        source,
        target,
        rng.choice(ports),
        rng.choice(ports),
        seq=rng.choice([0, 1, 2, 1000, 2**31, 2**32 - 1, rng.getrandbits(32)]),
        ack=rng.choice([0, 1, 2, 1000, 2**31, 2**32 - 1, rng.getrandbits(32)]),
        window=rng.choice([0, 1, 128, 512, 65_535]),
        payload=make_payload(rng),
    )


def make_payload(rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return rng.choice([b"SACK", b"TRCE", b"pathprobe.v1"]) + rng.randbytes(rng.randrange(60))
    if kind == 2:
        message = {
            "type": rng.choice(["handshake_request", "handshake_revoke", 5]),
            "node_id": rng.choice([1, 2, -1, "x"]),
        }
        return json.dumps(
            message | {"timestamp": rng.choice([0, 1e300, None]), "public_key": "x", "signature": "x"}
        ).encode()
    if kind == 3:
        return (
            rng.randrange(12).to_bytes(4, "big")
            + rng.randrange(50).to_bytes(4, "big")
            + rng.randbytes(rng.randrange(60))
        )
    if kind == 4:
        return rng.randrange(8).to_bytes(2, "big") + rng.randbytes(rng.randrange(60))
    return rng.randbytes(rng.randrange(1400))


def spoilt(rng: random.Random, raw: bytes) -> list[bytes]:
    """Return what leaves instead of a genuine packet: most often the same, else something close to it, or more of it."""
    if rng.random() > 0.15:
        return [raw]
    packet = decode(raw)
    near = rng.choice([-1152, -1, 1, 1152, 10_000, 2**31, -(2**31) + 1])
    changed = rng.choice(
        [
            packet._replace(flags=packet.flags ^ 1 << rng.randrange(4)),
            packet._replace(seq=packet.seq + near & 0xFFFFFFFF),
            packet._replace(ack=packet.ack + near & 0xFFFFFFFF),
            packet._replace(window=rng.choice([0, 1, 65_535])),
            packet._replace(payload=packet.payload[: rng.randrange(len(packet.payload) + 1)]),
            packet._replace(payload=packet.payload + make_payload(rng)),
            packet._replace(payload=make_payload(rng)),
        ]
    )
    return rng.choice([[changed.encode()], [changed.encode(), raw], [raw, changed.encode()], [raw, raw], []])


async def echoes(driver: Driver, to: Address) -> None:
    """Keep a stream to the echo service busy until cancelled, and another one whenever it breaks."""
    while True:
        with contextlib.suppress(PilotError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with await driver.dial(to, ECHO_PORT) as stream:
                while True:
                    await stream.send_all(bytes(5000))
                    if not await stream.receive_some():
                        break
                    await trio.sleep(0.05)
        await trio.sleep(0.1)


@pytest.mark.simulation
@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_a_peer_sends_ends_a_node_or_shows_a_defect(
    seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with open_node_pair() as (victim, hostile):
            tunnel = hostile.handle._node.tunnel
            outbound = tunnel._machine._outbound
            send = outbound.send

            def send_spoilt(node: int, packets: Sequence[bytes], now: float, **how: bool) -> None:
                send(node, [other for raw in packets for other in spoilt(rng, raw)], now, **how)

            monkeypatch.setattr(outbound, "send", send_spoilt)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echoes, hostile.driver, victim.address)
                nursery.start_soon(echoes, victim.driver, hostile.address)
                await trio.sleep(1)
                for _ in range(300):
                    rows = (await victim.driver.info()).raw["conn_list"]
                    live = [port for row in rows for port in (row["local_port"], row["remote_port"])]
                    packets = [
                        make_packet(rng, hostile.node_id, victim.node_id, live).encode()
                        for _ in range(rng.randrange(12))
                    ]
                    with contextlib.suppress(PilotError):
                        tunnel.send_packets(victim.node_id, packets, trio.current_time())
                    await trio.sleep(rng.expovariate(5))
                nursery.cancel_scope.cancel()
            assert victim.handle.statistics().tunnel.defects == 0
            await trio.sleep(300)  # as long as the longest of what it may have left behind
            assert (await victim.driver.health()).connections == 0
            async with await victim.driver.dial(victim.address, ECHO_PORT) as stream:
                await stream.send_all(b"well")
                assert await stream.receive_some() == b"well"

    run_simulation(main, seed=seed)
    defects = [record for record in caplog.records if record.exc_info is not None or record.levelno > logging.ERROR]
    assert not defects, "\n".join(caplog.handler.format(record) for record in defects)
