"""Datagrams: to oneself, refusals, broadcasts; and the commands around them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from pilot_trio.address import BROADCAST_NODE, Address, NetworkId, NodeId, Port
from pilot_trio.daemon.commands.data import routes
from pilot_trio.daemon.datagrams import Datagrams
from pilot_trio.daemon.turn import Turn
from pilot_trio.errors import CommandError, NoRoute, PortNotAllowed, PortsExhausted, RegistryError
from pilot_trio.proto.ports import EPHEMERAL_COUNT
from pilot_trio.wire.ipc import Broadcast, Code, Target, decode_recv_from
from pilot_trio.wire.packet import DATAGRAM, Packet, decode
from tests.daemon.stream_fakes import OTHER, OWN, SELF, UNKNOWN, FakeClient, FakeNode, dial_payload


def received(client: FakeClient) -> list[tuple[Address, int, int, bytes]]:
    return [tuple(decode_recv_from(body)) for code, body in client.take() if code == Code.RECV_FROM]  # type: ignore[misc]


def arrived(data: bytes, *, network: int = 0, port: int = 80, source: NodeId = OTHER) -> Packet:
    there, here = (Address(NetworkId(network), node) for node in (source, OWN))
    return Packet(0, DATAGRAM, there, here, 50_000, port, payload=data)


async def test_a_datagram_to_oneself_reaches_every_client(nursery: trio.Nursery) -> None:
    node = FakeNode(random_start=0)
    sender, idle = FakeClient(node, nursery), FakeClient(node, nursery)
    await sender.request(Code.SEND_TO_CONFIRM, dial_payload(5555) + b"hi")
    codes = [code for code, _ in sender.take()]
    assert sorted(codes) == [Code.RECV_FROM, Code.SEND_TO_OK]
    assert received(idle) == [(SELF, 49152, 5555, b"hi")]


async def test_datagrams_of_one_turn_are_offered_at_its_end_in_order_and_together(nursery: trio.Nursery) -> None:
    offers: list[list[bytes]] = []
    turn = Turn(lambda: None)
    node = FakeNode()
    datagrams = Datagrams(
        node.state,
        node.ports,
        node.resolver,
        lambda frames: offers.append(list(frames)),
        members=node._members,
        turn=turn,
    )
    with turn:
        for number in range(3):
            datagrams.receive([arrived(b"%d" % number)])
        assert offers == []
    datagrams.receive([arrived(b"alone"), arrived(b"")])
    datagrams.receive([arrived(b"")])
    payloads = [[decode_recv_from(frame[5:])[3] for frame in frames] for frames in offers]
    assert payloads == [[b"0", b"1", b"2"], [b"alone"]]


async def test_each_datagram_has_another_source_port_and_keeps_none(nursery: trio.Nursery) -> None:
    node = FakeNode(random_start=EPHEMERAL_COUNT - 1)
    client = FakeClient(node, nursery)
    for _ in range(3):
        await client.request(Code.SEND_TO, dial_payload(5555) + b"x")
    assert [source_port for _, source_port, _, _ in received(client)] == [65_535, 49152, 49153]
    assert node.streams.statistics().ephemeral_ports == 0


@pytest.mark.parametrize("size", [1, 65_534, 65_535, 65_536])
async def test_the_size_of_a_datagram_is_limited(nursery: trio.Nursery, size: int) -> None:
    node = FakeNode()
    client = FakeClient(node, nursery)
    payload = dial_payload(5555) + bytes(size)
    await client.request(Code.SEND_TO, payload)
    assert len(received(client)) == (size <= 65_535)
    if size > 65_535:
        text = f"sendto: marshal: payload too large: {size} bytes (max 65535)"
        assert await client.error(Code.SEND_TO_CONFIRM, payload) == text


async def test_an_empty_datagram_is_sent_and_not_delivered(nursery: trio.Nursery) -> None:
    node = FakeNode()
    client = FakeClient(node, nursery)
    assert await client.answer(Code.SEND_TO_CONFIRM, dial_payload(5555)) == (Code.SEND_TO_OK, b"")
    statistics = node.datagrams.statistics()
    assert (statistics.sent, statistics.received) == (1, 0)


async def test_a_client_whose_queue_is_full_loses_the_datagram_and_delays_nobody(nursery: trio.Nursery) -> None:
    node = FakeNode()
    sender, stalled, other = (FakeClient(node, nursery) for _ in range(3))
    stalled.slots = 1
    for number in range(3):
        await sender.request(Code.SEND_TO, dial_payload(5555) + bytes([number]))
    assert len(received(stalled)) == 1
    assert [data for *_, data in received(other)] == [b"\0", b"\1", b"\2"]


async def test_datagrams_to_others_say_what_is_missing() -> None:
    node = FakeNode()
    for target, text in (
        (OTHER, r"^no tunnel to node 3$"),
        (UNKNOWN, r"^resolve node 7777: registry: request failed$"),
    ):
        with pytest.raises(NoRoute, match=text):
            await node.datagrams.send(Target(Address(NetworkId(0), target), Port(1), b"x"))


async def test_an_unconfirmed_datagram_to_others_never_waits_and_is_counted(nursery: trio.Nursery) -> None:
    node = FakeNode()
    node.resolver.hold = True
    client = FakeClient(node, nursery)
    with trio.fail_after(1):
        await client.request(Code.SEND_TO, dial_payload(5555, Address(NetworkId(0), OTHER)) + b"x")
        await client.request(Code.SEND_TO, dial_payload(5555, Address(NetworkId(0), BROADCAST_NODE)) + b"x")
        await client.request(Code.SEND_TO, b"short")
    assert client.take() == []
    assert node.datagrams.statistics().dropped == 2


async def test_a_confirmed_datagram_waits_in_its_lane(nursery: trio.Nursery) -> None:
    node = FakeNode()
    client = FakeClient(node, nursery)
    await client.request(Code.SEND_TO_CONFIRM, dial_payload(5555, Address(NetworkId(0), OTHER)) + b"x")
    await client.request(Code.SEND_TO_CONFIRM, dial_payload(5555) + b"x")
    codes = [code for code, _ in client.take()]
    assert codes[0] == Code.ERROR
    assert Code.SEND_TO_OK in codes[1:]


async def test_refusals_come_before_the_route() -> None:
    node = FakeNode()
    send = node.datagrams.send
    node.state.allowed_ports[NetworkId(7)] = frozenset({80})
    with pytest.raises(CommandError, match=r"^broadcast address requires admin token: use BroadcastDatagram$"):
        await send(Target(Address(NetworkId(7), BROADCAST_NODE), Port(80), b"x"))
    with pytest.raises(PortNotAllowed, match=r"^port 81 not allowed by network 7 policy$"):
        await send(Target(Address(NetworkId(7), OTHER), Port(81), b"x"))
    with pytest.raises(NoRoute, match=r"^node 1 is not a member of network 7$"):
        await send(Target(Address(NetworkId(7), OWN), Port(80), b"x"))
    assert node.resolver.asked == []
    node.state.networks.append(NetworkId(7))
    await send(Target(Address(NetworkId(7), OWN), Port(80), b"x"))
    assert node.datagrams.statistics().received == 1


async def test_no_source_port_is_left(nursery: trio.Nursery) -> None:
    node = FakeNode()
    for _ in range(EPHEMERAL_COUNT):
        node.ports.allocate()
    with pytest.raises(PortsExhausted):
        await node.datagrams.send(Target(SELF, Port(1), b"x"))
    client = FakeClient(node, nursery)
    assert await client.error(Code.SEND_TO_CONFIRM, dial_payload(1) + b"x") == "sendto: ephemeral ports exhausted"


async def test_incoming_datagrams_are_published_and_held_to_the_port_policy() -> None:
    node = FakeNode()
    node.state.allowed_ports[NetworkId(7)] = frozenset({80})
    arrivals = [(80, b"abc"), (81, b"abc"), (80, b"d"), (80, b""), (81, b"")]
    node.datagrams.receive([arrived(data, network=7, port=port) for port, data in arrivals])
    where = {"src_addr": "7:0007.0000.0003", "src_port": 50_000}
    assert node.published == [
        ("data.datagram", {"dst_port": 80, "size": 3, **where}),
        ("datagram.port_rejected", {"dst_port": 81, **where}),
        ("data.datagram", {"dst_port": 80, "size": 1, **where}),
    ]


# Broadcast


def request(network: int = 7, token: bytes = b"sesame") -> Broadcast:
    return Broadcast(NetworkId(network), Port(1000), token, b"hello")


@pytest.mark.parametrize(
    ("admin_token", "sent", "text"),
    [
        ("", request(), "broadcast denied: daemon has no admin token configured"),
        ("", request(token=b""), "broadcast denied: daemon has no admin token configured"),
        ("sesame", request(token=b"nope"), "broadcast denied: invalid admin token"),
        ("sesame", request(token=b""), "broadcast denied: invalid admin token"),
        ("sesame", request(network=0, token=b"nope"), "broadcast denied: invalid admin token"),
        ("sesame", request(network=0), "broadcast not permitted on backbone network"),
        ("sesame", request(network=8), "broadcast denied: node 1 is not a member of network 8"),
        ("sesame", request(network=9), "list nodes for broadcast: registry: network not found"),
    ],
)
async def test_broadcast_checks_come_in_the_order_of_the_protocol(admin_token: str, sent: Broadcast, text: str) -> None:
    node = FakeNode(admin_token=admin_token)
    node.members[8] = [OTHER]
    with pytest.raises(CommandError) as caught:
        await node.datagrams.broadcast(sent)
    assert str(caught.value) == text


async def test_a_broadcast_skips_oneself_and_whom_it_cannot_reach(nursery: trio.Nursery) -> None:
    node = FakeNode(admin_token="sesame")
    node.members[7] = [OWN, OTHER, UNKNOWN]
    client = FakeClient(node, nursery)
    payload = struct.pack("!HHH", 7, 1000, 6) + b"sesamehello"
    assert await client.answer(Code.BROADCAST, payload) == (Code.BROADCAST_OK, b"")
    assert node.datagrams.statistics().dropped == 2
    text = await client.error(Code.BROADCAST, struct.pack("!HHH", 7, 1000, 4) + b"nopehello")
    assert text == "broadcast: broadcast denied: invalid admin token"
    assert await client.error(Code.BROADCAST, b"") == "broadcast: missing header"


async def test_a_broadcast_waits_for_the_registry_in_a_task_of_its_own(nursery: trio.Nursery) -> None:
    node = FakeNode(admin_token="sesame")
    node.members[7] = RegistryError("permission denied")
    client = FakeClient(node, nursery)
    await client.request(Code.BROADCAST, struct.pack("!HHH", 7, 1000, 6) + b"sesamehello")
    assert client.take() == []
    await wait_all_tasks_blocked()
    ((code, body),) = client.take()
    assert code == Code.ERROR
    assert body[2:] == b"broadcast: list nodes for broadcast: registry: permission denied"


async def test_a_datagram_that_had_to_wait_is_confirmed_when_it_is_sent(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = FakeNode()
    client = FakeClient(node, nursery)
    route_found = trio.Event()

    async def send(target: Target) -> None:
        assert target.data == b"x"
        await route_found.wait()

    monkeypatch.setattr(node.datagrams, "send_nowait", lambda target: False)
    monkeypatch.setattr(node.datagrams, "send", send)
    nursery.start_soon(client.request, Code.SEND_TO_CONFIRM, dial_payload(5555, Address(NetworkId(0), OTHER)) + b"x")
    await wait_all_tasks_blocked()
    assert client.take() == []
    route_found.set()
    assert await client.receive() == (Code.SEND_TO_OK, b"")


# Many at once


class FakeCarrier:
    """Takes datagrams to `OTHER` at once, to everybody else later."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Packet]] = []
        self.waiting: list[tuple[int, Packet]] = []
        self.crowded = False

    def send_datagrams(self, node: int, datagrams: Sequence[bytes], /) -> bool:
        if node == OTHER:
            self.sent += [(node, decode(each)) for each in datagrams]
        return node == OTHER

    def is_crowded(self, node: int, /) -> bool:
        return self.crowded and node == OTHER

    async def let_catch_up(self, node: int, /) -> None:
        self.crowded = False

    async def send_datagrams_later(self, node: int, datagrams: Sequence[bytes], /) -> None:
        self.waiting += [(node, decode(each)) for each in datagrams]

    def send_datagrams_soon(self, node: int, datagrams: Sequence[bytes], /) -> int:
        self.waiting += [(node, decode(each)) for each in datagrams[:2]]
        return len(datagrams[:2])


class Sender:
    """The datagrams of a node that is a member of network 7, where a policy admits port 80 alone."""

    def __init__(self, registered: bool = True) -> None:
        self.node = FakeNode(random_start=EPHEMERAL_COUNT - 5)
        self.carrier = FakeCarrier()
        self.offers: list[bytes] = []
        self.node.state.networks.append(NetworkId(7))
        self.node.state.allowed_ports[NetworkId(7)] = frozenset({80})
        self.datagrams = Datagrams(
            self.node.state,
            self.node.ports,
            self.node.resolver,
            self.offers.extend,
            members=self.node._members,
            carrier=self.carrier,
        )

    def everything(self) -> tuple[object, ...]:
        return (
            self.carrier.sent,
            self.carrier.waiting,
            self.offers,
            self.datagrams.statistics(),
            self.node.ports.allocate(),
        )


destinations = st.builds(
    Address, st.sampled_from([0, 7, 8]).map(NetworkId), st.sampled_from([OWN, OTHER, BROADCAST_NODE])
)
sizes = st.sampled_from([0, 1, 1000, 65_428, 65_429, 65_535, 65_536])


@given(
    st.lists(st.tuples(destinations, st.sampled_from([80, 81]), st.lists(sizes, min_size=1, max_size=5)), max_size=4)
)
@settings(deadline=None)
def test_datagrams_sent_together_do_what_they_do_one_by_one(sent: list[tuple[Address, int, list[int]]]) -> None:
    together, single = Sender(), Sender()
    for address, port, lengths in sent:
        data = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
        together.datagrams.send_or_drop(address, Port(port), data)
        for each in data:
            single.datagrams.send_or_drop(address, Port(port), (each,))
    assert together.everything() == single.everything()


def test_datagrams_that_cannot_wait_for_contact_count_as_dropped() -> None:
    sender = Sender()
    sender.datagrams.send_or_drop(Address(NetworkId(0), UNKNOWN), Port(80), [b"a", b"b", b"c", bytes(65_429)])
    assert [packet.payload for _, packet in sender.carrier.waiting] == [b"a", b"b"]
    statistics = sender.datagrams.statistics()
    assert (statistics.sent, statistics.dropped) == (0, 2)


arrivals = st.lists(
    st.tuples(
        st.sampled_from([0, 7]),
        st.sampled_from([OTHER, UNKNOWN]),
        st.sampled_from([80, 81]),
        st.sampled_from([b"", b"x", b"yy"]),
    ),
    max_size=12,
)


@given(arrivals)
def test_datagrams_that_arrive_together_are_offered_as_one_by_one(sent: list[tuple[int, NodeId, int, bytes]]) -> None:
    packets = [arrived(data, network=network, port=port, source=node) for network, node, port, data in sent]
    nodes = [FakeNode(), FakeNode()]
    offers: list[list[bytes]] = [[], []]
    for node, offer in zip(nodes, offers, strict=True):
        node.state.allowed_ports[NetworkId(7)] = frozenset({80})
        node.datagrams._deliver = offer.extend
    nodes[0].datagrams.receive(packets)
    for packet in packets:
        nodes[1].datagrams.receive((packet,))
    assert offers[0] == offers[1]
    assert nodes[0].published == nodes[1].published
    assert nodes[0].datagrams.statistics() == nodes[1].datagrams.statistics()


async def test_a_sender_is_told_when_a_node_has_to_catch_up() -> None:
    sender = Sender()
    to = Address(NetworkId(0), OTHER)
    assert not sender.datagrams.send_or_drop(to, Port(80), [b"abc", b"de"])
    sender.carrier.crowded = True
    assert sender.datagrams.send_or_drop(to, Port(80), [b"fgh", bytes(65_429)])
    assert not sender.datagrams.send_or_drop(Address(NetworkId(0), OWN), Port(80), [b"to myself"])
    await sender.datagrams.let_catch_up(OTHER)
    assert not sender.datagrams.send_or_drop(to, Port(80), [b"i"])


async def test_a_client_that_floods_a_node_is_not_read_meanwhile(nursery: trio.Nursery) -> None:
    sender = Sender()
    let_go = trio.Event()
    sender.carrier.let_catch_up = lambda node: let_go.wait()  # type: ignore[method-assign]
    node = sender.node
    node.datagrams = sender.datagrams
    node.commands = routes(node)
    client = FakeClient(node, nursery)
    payload = dial_payload(80, Address(NetworkId(0), OTHER)) + b"x"
    await client.request(Code.SEND_TO, payload)
    sender.carrier.crowded = True
    nursery.start_soon(client.request, Code.SEND_TO, payload)
    await wait_all_tasks_blocked()
    assert client.waiting == 1
    let_go.set()
    await wait_all_tasks_blocked()
    assert client.waiting == 0
    assert len(sender.carrier.sent) == 2
    assert client.take() == []
