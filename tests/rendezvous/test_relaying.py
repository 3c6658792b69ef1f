from __future__ import annotations

from collections import Counter

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.address import NodeId
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DatagramSocket, Network, SystemNetwork
from pilot_trio.rendezvous.beacon_server import Drop
from pilot_trio.rendezvous.endpoint_table import ENTRY_TTL, EndpointTable
from pilot_trio.rendezvous.relaying import RELAY_RATE, Relaying
from pilot_trio.testing.memory_network import MemoryNetwork
from pilot_trio.wire.beacon import Discover, Relay, RelayDelivery, decode
from tests.rendezvous.test_beacon_server import ANY_PORT, discover, open_beacon

ONE, TWO = NodeId(1), NodeId(2)
HERE, THERE = Endpoint("192.0.2.1", 4001), Endpoint("192.0.2.2", 4002)
FRAMES = 300  # more than one turn of the beacon takes


def make(*, unlimited: bool = True) -> Relaying:
    table = EndpointTable()
    table.note(TWO, THERE, 0.0)
    return Relaying(table, lambda _host: unlimited, Counter())


@given(sender=st.integers(0, 0xFFFFFFFF), frame=st.binary(max_size=2000), multi=st.booleans())
def test_a_frame_arrives_as_it_was_with_the_claimed_sender(sender: int, frame: bytes, multi: bool) -> None:
    relaying = make()
    relaying.table.note(TWO, THERE, 0.0, multi=multi)
    delivery = relaying.forward(Relay(NodeId(sender), TWO, frame).encode(), HERE, 1.0)
    expected = RelayDelivery(NodeId(sender), frame, TWO if multi else None)
    assert delivery == (expected.encode(), THERE)
    assert (relaying.frames, relaying.size) == (1, len(expected.encode()))


@pytest.mark.parametrize("size", range(1, 9))
def test_a_truncated_head_is_dropped(size: int) -> None:
    relaying = make()
    assert relaying.forward(Relay(ONE, TWO, b"").encode()[:size], HERE, 1.0) is None
    assert relaying.drops == {Drop.MALFORMED: 1}


def test_a_target_that_nobody_has_heard_of_lately_is_dropped() -> None:
    relaying = make()
    frame = Relay(ONE, TWO, b"x").encode()
    assert relaying.forward(frame, HERE, ENTRY_TTL - 1) is not None
    assert relaying.forward(frame, HERE, ENTRY_TTL) is None
    assert relaying.forward(Relay(TWO, ONE, b"x").encode(), THERE, 1.0) is None
    assert relaying.drops == {Drop.UNKNOWN_TARGET: 2}


def test_a_flood_is_cut_at_the_rate_and_hurts_nobody_else() -> None:
    relaying = make(unlimited=False)
    frame = Relay(ONE, TWO, b"x").encode()
    passed = sum(relaying.forward(frame, HERE, second / 10) is not None for second in range(10) for _ in range(2000))
    assert passed == pytest.approx(RELAY_RATE * 1.9, abs=1)  # a burst, and what nine tenths of a second bring
    assert relaying.drops == {Drop.RATE_LIMITED: 20_000 - passed}
    assert relaying.forward(frame, (HERE.host, HERE.port + 1), 1.0) is not None


@pytest.mark.parametrize("network", [MemoryNetwork(), SystemNetwork()], ids=["memory", "system"])
async def test_frames_of_one_sender_keep_their_order(network: Network) -> None:
    with trio.fail_after(10):
        async with open_beacon(network) as (beacon, at):
            one, two = await network.open_udp(ANY_PORT), await network.open_udp(ANY_PORT)
            await discover(two, at, Discover(TWO))
            for number in range(FRAMES):
                one.send_nowait(Relay(ONE, TWO, number.to_bytes(2, "big") * (1 + number % 7)).encode(), at)
            arrived = [decode((await receive(two))[0]) for _ in range(FRAMES)]
            assert [int.from_bytes(m.frame[:2], "big") for m in arrived if isinstance(m, RelayDelivery)] == list(
                range(FRAMES)
            )
            assert beacon.statistics().relayed == FRAMES
            assert beacon.statistics().relayed_bytes == sum(5 + 2 * (1 + n % 7) for n in range(FRAMES))
            one.close()
            two.close()


async def receive(sock: DatagramSocket) -> tuple[bytes, Endpoint]:
    return await sock.receive()


async def test_one_endpoint_of_several_nodes_is_told_which_one_is_meant(autojump_clock: object) -> None:
    network = MemoryNetwork()
    async with open_beacon(network) as (_, at):
        both = await network.open_udp(ANY_PORT)
        for node in (ONE, TWO):
            await discover(both, at, Discover(node, multi=True))
            both.send_nowait(Relay(ONE, node, b"frame").encode(), at)
            assert decode((await both.receive())[0]) == RelayDelivery(ONE, b"frame", node)
