"""The data commands as clients see them: frames, order, flow control, ends."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.daemon.commands import data as data_commands
from pilot_trio.daemon.commands.data import RECV_DATA_MAX, routes
from pilot_trio.daemon.dispatch import Lane, Route
from pilot_trio.daemon.local_stream import LOCAL_BUFFER_MAX
from pilot_trio.errors import IPCClosedError
from pilot_trio.wire.ipc import Code
from tests.daemon.stream_fakes import OTHER, UNKNOWN, FakeClient, FakeNode, SlowCarrier, conn, dial_payload

VECTORS = {
    vector["id"]: vector
    for vector in json.loads((Path(__file__).parents[1] / "vectors" / "ipc.json").read_text())["vectors"]
}


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def client(node: FakeNode, nursery: trio.Nursery) -> FakeClient:
    return FakeClient(node, nursery)


@pytest.fixture
async def server(node: FakeNode, nursery: trio.Nursery) -> FakeClient:
    return FakeClient(node, nursery)


async def connect(client: FakeClient, server: FakeClient, port: int = 5000) -> tuple[int, int]:
    """Bind, dial; return the ids of both ends, everything consumed."""
    await server.bind(port)
    near = await client.dial(port)
    ((code, body),) = server.take()
    assert code == Code.ACCEPT
    local_port, far = struct.unpack_from("!HI", body)
    assert local_port == port
    return near, far


def data_of(frames: list[tuple[int, bytes]], conn_id: int) -> bytes:
    return b"".join(body[4:] for code, body in frames if code == Code.RECV and body[:4] == conn(conn_id))


# Texts


@pytest.mark.parametrize(
    "name",
    [
        "bind-short",
        "unbind-empty",
        "unbind-3-bytes",
        "unbind-foreign",
        "dial-short",
        "close-short",
        "broadcast-short",
        "broadcast-trunc-token",
        "broadcast-no-admin-token",
        "sendto-confirm-short",
        "sendto-confirm-broadcast",
        "sendto-confirm-unknown-node",
        "sendto-silent",
        "send-unknown-conn",
        "cancel-idle",
        "close-unknown",
        "dial-refused",
        "dial-unknown-node",
        "bind",
        "bind-0",
    ],
)
async def test_recorded_exchange(node: FakeNode, client: FakeClient, name: str) -> None:
    vector = VECTORS[name]
    for request in vector["request"]:
        frame = bytes.fromhex(request)
        await client.request(frame[4], frame[5:])
    await wait_all_tasks_blocked()
    expected = [bytes.fromhex(reply) for reply in vector["replies"]]
    assert [(frame[4], frame[5:]) for frame in expected] == [
        frame for frame in client.take() if frame[0] != Code.RECV_FROM
    ]


async def test_recorded_cancelled_dial(node: FakeNode, client: FakeClient) -> None:
    node.resolver.hold = True
    vector = VECTORS["cancel-dial"]
    for request in vector["request"]:
        frame = bytes.fromhex(request)
        await client.request(frame[4], frame[5:])
    await wait_all_tasks_blocked()
    (reply,) = vector["replies"]
    assert client.take() == [(0x0A, bytes.fromhex(reply)[5:])]


async def test_recorded_life_of_a_stream(node: FakeNode, client: FakeClient) -> None:
    """bind, dial, accept, data both ways, close: the frames of the recording, with our own ids."""
    assert await client.answer(Code.BIND, b"\x13\x88") == (Code.BIND_OK, b"\x13\x88")
    assert await client.error(Code.BIND, b"\x13\x88") == "port 5000 already bound"
    await client.request(Code.DIAL, dial_payload(5000))
    await wait_all_tasks_blocked()
    dial_ok, accept = client.take()
    assert dial_ok == (Code.DIAL_OK, conn(1))
    assert accept == (Code.ACCEPT, struct.pack("!HIHIH", 5000, 2, 0, 1, 49153))
    await client.send_data(1, b"hello")
    await client.send_data(2, b"world")
    await wait_all_tasks_blocked()
    assert sorted(client.take()) == [(Code.RECV, conn(1) + b"world"), (Code.RECV, conn(2) + b"hello")]
    await client.request(Code.CLOSE, conn(1))
    await wait_all_tasks_blocked()
    frames = client.take()
    assert frames[0] == (Code.CLOSE_OK, conn(1))  # the reply
    assert sorted(frames) == [(Code.CLOSE_OK, conn(1))] * 2 + [(Code.CLOSE_OK, conn(2))]


def test_routes_have_the_lanes_and_prefixes_of_the_protocol() -> None:
    table = routes(FakeNode())
    fifo = {code for code, route in table.items() if route.lane is Lane.FIFO}
    assert fifo == {Code.SEND, Code.SEND_TO, Code.SEND_TO_CONFIRM, Code.CANCEL}
    assert {code for code, route in table.items() if not route.replies} == {Code.SEND, Code.SEND_TO, Code.CANCEL}
    confirmed = table[Code.SEND_TO_CONFIRM]
    assert isinstance(confirmed, Route)
    assert confirmed.error_prefix == "sendto: "


# Ports


async def test_a_port_is_free_again_once_unbound_and_its_connections_live_on(
    client: FakeClient, server: FakeClient
) -> None:
    near, far = await connect(client, server)
    assert await server.answer(Code.UNBIND, b"\x13\x88") == (Code.UNBIND_OK, b"\x13\x88")
    await client.send_data(near, b"still")
    await wait_all_tasks_blocked()
    assert server.take() == [(Code.RECV, conn(far) + b"still")]
    assert await client.error(Code.DIAL, dial_payload(5000)) == "connection refused"
    await client.bind(5000)
    assert await server.error(Code.UNBIND, b"\x13\x88") == "unbind: port is not owned by this client"


async def test_an_acceptor_waits_for_room_and_delays_nobody_else(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient
) -> None:
    server = FakeClient(node, nursery)
    await server.bind(5000)
    server.slots = 0
    for _ in range(64):
        await client.dial(5000)
    assert await client.error(Code.DIAL, dial_payload(5000)) == "connection refused"
    assert node.streams.statistics().accept_queue_drops == 1
    server.slots = 1000
    server.take()
    await wait_all_tasks_blocked()
    assert [code for code, _ in server.take()] == [Code.ACCEPT] * 64


# Dials


async def test_dialling_another_node_resolves_it_and_then_has_no_tunnel(node: FakeNode, client: FakeClient) -> None:
    assert await client.error(Code.DIAL, dial_payload(7, Address(NetworkId(0), OTHER))) == "no tunnel to node 3"
    assert node.resolver.asked == [3]
    text = await client.error(Code.DIAL, dial_payload(7, Address(NetworkId(0), UNKNOWN)))
    assert text == "resolve node 7777: registry: request failed"


async def test_a_cancel_aborts_all_dials_of_this_client_and_no_others(
    node: FakeNode, client: FakeClient, server: FakeClient
) -> None:
    node.resolver.hold = True
    elsewhere = dial_payload(7, Address(NetworkId(0), OTHER))
    for _ in range(3):
        await client.request(Code.DIAL, elsewhere)
    await server.request(Code.DIAL, elsewhere)
    await wait_all_tasks_blocked()
    await client.request(Code.CANCEL)
    await wait_all_tasks_blocked()
    assert client.take() == [(Code.ERROR, b"\x00\x01context canceled")] * 3
    assert server.take() == []
    # The next dial is not caught by the old Cancel.
    node.resolver.hold = False
    assert await client.error(Code.DIAL, elsewhere) == "no tunnel to node 3"


async def test_a_dial_that_takes_time_is_answered_before_its_first_data(nursery: trio.Nursery) -> None:
    carrier = SlowCarrier()
    node = FakeNode(carrier=carrier)
    client, server = FakeClient(node, nursery), FakeClient(node, nursery)
    await server.bind(5000)
    await client.request(Code.DIAL, dial_payload(5000, Address(NetworkId(0), OTHER)))
    await wait_all_tasks_blocked()
    assert client.take() == []
    carrier.arrived.set()
    await wait_all_tasks_blocked()
    await server.send_data(2, b"hello")
    await server.request(Code.CLOSE, conn(2))
    await wait_all_tasks_blocked()
    assert [code for code, _ in client.take()] == [Code.DIAL_OK, Code.RECV, Code.CLOSE_OK]


@pytest.mark.parametrize("how", ["cancelled", "client left"])
async def test_a_dial_that_arrives_too_late_is_closed_again(nursery: trio.Nursery, how: str) -> None:
    carrier = SlowCarrier()
    node = FakeNode(carrier=carrier)
    client, server = FakeClient(node, nursery), FakeClient(node, nursery)
    await server.bind(5000)
    await client.request(Code.DIAL, dial_payload(5000, Address(NetworkId(0), OTHER)))
    await wait_all_tasks_blocked()
    carrier.arrived.set()  # the dial's task is on its way; before it runs,
    if how == "cancelled":
        await client.request(Code.CANCEL)
    else:
        client.leave()
    await wait_all_tasks_blocked()
    assert client.take() == ([(Code.ERROR, b"\x00\x01context canceled")] if how == "cancelled" else [])
    assert node.streams.statistics().connections == 0
    assert [code for code, _ in server.take()] == [Code.ACCEPT, Code.CLOSE_OK]


async def test_a_client_that_is_released_has_no_dials_in_flight(node: FakeNode, client: FakeClient) -> None:
    node.resolver.hold = True
    await client.request(Code.DIAL, dial_payload(7, Address(NetworkId(0), OTHER)))
    await wait_all_tasks_blocked()
    assert client.tasks == 1
    client.release()  # and nothing else: the dial does not rely on its task being cancelled
    await wait_all_tasks_blocked()
    assert client.tasks == 0


async def test_a_stream_whose_reader_is_gone_is_closed(client: FakeClient, server: FakeClient) -> None:
    near, _ = await connect(client, server)
    server.break_off()
    await client.send_data(near, b"x")
    await wait_all_tasks_blocked()
    assert client.take() == [(Code.CLOSE_OK, conn(near))]


async def test_the_quota_is_checked_at_dial(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient, server: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_commands, "CLIENT_CONNECTIONS_MAX", 3)
    await server.bind(5000)
    ids = [await client.dial(5000) for _ in range(3)]
    text = await client.error(Code.DIAL, dial_payload(5000))
    assert text == "dial: per-client connection quota (3) reached"
    # Accepted ones count too, but are never refused; closed ones do not count.
    await client.bind(6000)
    await FakeClient(node, nursery).dial(6000)
    await client.request(Code.CLOSE, conn(ids[0]))
    assert await client.error(Code.DIAL, dial_payload(5000)) == text
    await client.request(Code.CLOSE, conn(ids[1]))
    await wait_all_tasks_blocked()
    client.take()
    await client.dial(5000)


def test_the_quota_is_the_one_of_the_protocol() -> None:
    assert data_commands.CLIENT_CONNECTIONS_MAX == 4096


async def test_a_dial_before_registration_says_so(node: FakeNode, client: FakeClient) -> None:
    node.state.node_id = NodeId(0)
    text = "this node is not registered yet: its registry has not answered"
    assert await client.error(Code.DIAL, dial_payload(7)) == text
    assert await client.error(Code.SEND_TO_CONFIRM, dial_payload(7) + b"x") == "sendto: " + text


# Streams


async def test_accept_precedes_data_and_end_even_if_all_happens_at_once(client: FakeClient, server: FakeClient) -> None:
    await server.bind(5000)
    await client.request(Code.DIAL, dial_payload(5000))
    await client.send_data(1, b"all of it")
    await client.request(Code.CLOSE, conn(1))
    await wait_all_tasks_blocked()
    codes = [code for code, _ in server.take()]
    assert codes == [Code.ACCEPT, Code.RECV, Code.CLOSE_OK]
    assert [code for code, _ in client.take()] == [Code.DIAL_OK, Code.CLOSE_OK, Code.CLOSE_OK]


async def test_buffered_data_is_pushed_in_frames_of_a_bounded_size(client: FakeClient, server: FakeClient) -> None:
    near, _far = await connect(client, server)
    await client.send_data(near, bytes(100_000))
    await wait_all_tasks_blocked()
    sizes = [len(body) - 4 for code, body in server.take() if code == Code.RECV]
    assert sum(sizes) == 100_000
    assert max(sizes) == RECV_DATA_MAX


async def test_a_receiver_that_does_not_read_stops_the_sender_and_resumes_it(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient
) -> None:
    server = FakeClient(node, nursery)
    near, far = await connect(client, server)
    server.slots = 2
    payload = bytes(range(256)) * 4000  # 1 MB in one Send
    blocked = []

    async def send() -> None:
        await client.send_data(near, payload)
        blocked.append(False)

    nursery.start_soon(send)
    await wait_all_tasks_blocked()
    assert not blocked  # parked in the lane: the sender's reader looks at nothing else
    got = data_of(server.take(), far)
    assert len(got) == 2 * RECV_DATA_MAX
    while len(got) < len(payload):
        await wait_all_tasks_blocked()
        frames = server.take()
        assert frames, f"stuck after {len(got)} bytes"
        got += data_of(frames, far)
    assert got == payload
    assert blocked == [False]


@pytest.mark.parametrize("how", ["peer closes", "owner closes", "third client closes", "peer leaves", "owner leaves"])
async def test_a_blocked_send_returns_as_soon_as_its_stream_ends(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient, how: str
) -> None:
    server, third = FakeClient(node, nursery), FakeClient(node, nursery)
    near, far = await connect(client, server)
    server.slots = 0
    done = trio.Event()

    async def send() -> None:
        await client.send_data(near, bytes(LOCAL_BUFFER_MAX * 4))
        done.set()

    nursery.start_soon(send)
    await wait_all_tasks_blocked()
    assert not done.is_set()
    match how:
        case "peer closes":
            await server.request(Code.CLOSE, conn(far))
        case "owner closes":
            await client.request(Code.CLOSE, conn(near))
        case "third client closes":
            await third.request(Code.CLOSE, conn(near))
        case "peer leaves":
            server.leave()
        case "owner leaves":
            client.leave()
    await wait_all_tasks_blocked()
    assert done.is_set()


async def test_sends_to_an_ended_or_foreign_stream_are_ignored(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient, server: FakeClient
) -> None:
    near, far = await connect(client, server)
    third = FakeClient(node, nursery)
    await third.send_data(near, b"forged")
    await third.send_data(far, b"forged")
    await client.send_data(far, b"forged")  # the peer's end, not ours
    await wait_all_tasks_blocked()
    assert client.take() == server.take() == third.take() == []
    await server.request(Code.CLOSE, conn(far))
    await client.send_data(near, b"too late")
    await wait_all_tasks_blocked()
    assert server.take() == [(Code.CLOSE_OK, conn(far))] * 2
    assert client.take() == [(Code.CLOSE_OK, conn(near))]
    await client.send_data(near, b"too late")
    await client.request(Code.SEND, b"\x00\x01")  # shorter than an id
    assert client.take() == []


async def test_any_client_may_close_any_connection(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient, server: FakeClient
) -> None:
    near, far = await connect(client, server)
    third = FakeClient(node, nursery)
    assert await third.answer(Code.CLOSE, conn(near)) == (Code.CLOSE_OK, conn(near))
    assert client.take() == [(Code.CLOSE_OK, conn(near))]
    assert server.take() == [(Code.CLOSE_OK, conn(far))]


async def test_a_close_delivers_everything_written_before_to_a_slow_reader(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient
) -> None:
    server = FakeClient(node, nursery)
    near, _far = await connect(client, server)
    server.slots = 1
    await client.send_data(near, bytes(LOCAL_BUFFER_MAX))
    await client.request(Code.CLOSE, conn(near))
    got, codes = 0, []
    while Code.CLOSE_OK not in codes:
        code, body = await server.receive()
        codes.append(code)
        got += len(body) - 4 if code == Code.RECV else 0
        await wait_all_tasks_blocked()
    assert got == LOCAL_BUFFER_MAX
    assert server.take() == []


# Leaving


async def test_everything_a_client_held_is_free_when_it_has_left(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient
) -> None:
    before = node.streams.statistics()
    node.resolver.hold = True
    guest = FakeClient(node, nursery)
    await client.bind(5000)
    await guest.bind(6000)
    dialled = await guest.dial(5000)
    accepted_by = await client.dial(6000)
    await guest.request(Code.DIAL, dial_payload(7, Address(NetworkId(0), OTHER)))
    await wait_all_tasks_blocked()
    client.take()
    guest.leave()
    await wait_all_tasks_blocked()
    assert guest.tasks == 0
    statistics = node.streams.statistics()
    assert statistics.connections == 0
    assert statistics.ports == before.ports + 1  # the client's own
    assert dialled != accepted_by
    assert [code for code, _ in client.take()] == [Code.CLOSE_OK] * 2
    await client.bind(6000)


async def test_nothing_is_given_to_a_client_that_is_gone(
    node: FakeNode, nursery: trio.Nursery, client: FakeClient
) -> None:
    guest = FakeClient(node, nursery)
    guest.leave()
    node.clients.append(guest)
    with pytest.raises(IPCClosedError):
        await guest.request(Code.BIND, b"\x13\x88")
    assert node.streams.statistics().ports == 0


async def test_a_hundred_clients_come_and_go_without_a_trace(
    node: FakeNode, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = FakeClient(node, nursery)
    await server.bind(5000)
    holders = count_holders()
    for _ in range(100):
        guest = FakeClient(node, nursery)
        near = await guest.dial(5000)
        await guest.send_data(near, b"x")
        guest.leave()
    await wait_all_tasks_blocked()
    server.take()
    await trio.sleep(11)
    statistics = node.streams.statistics()
    assert (statistics.connections, statistics.rows, statistics.ephemeral_ports) == (0, 0, 0)
    assert server.tasks == 0
    assert count_holders() == holders


def count_holders() -> int:
    gc.collect()
    return sum(isinstance(thing, data_commands._Holder) for thing in gc.get_objects())


# Whatever the pauses, whatever the pieces


@settings(max_examples=40)
@given(
    pieces=st.lists(st.integers(0, 150_000), max_size=12),
    room=st.integers(1, 4),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=6),
)
def test_every_byte_arrives_once_and_in_order(pieces: list[int], room: int, pauses: list[float]) -> None:
    trio.run(transfer, pieces, room, pauses, clock=MockClock(autojump_threshold=0))


async def transfer(pieces: list[int], room: int, pauses: list[float]) -> None:
    node = FakeNode()
    sent = bytearray()
    got = bytearray()
    async with trio.open_nursery() as nursery:
        client, server = FakeClient(node, nursery), FakeClient(node, nursery)
        near, _ = await connect(client, server)
        server.slots = room

        async def send() -> None:
            for number, size in enumerate(pieces):
                piece = bytes([number]) * size
                sent.extend(piece)
                await client.send_data(near, piece)
            await client.request(Code.CLOSE, conn(near))

        nursery.start_soon(send)
        turn = 0
        with trio.fail_after(3600):
            while True:
                await trio.sleep(pauses[turn % len(pauses)])
                turn += 1
                code, body = await server.receive()
                if code == Code.CLOSE_OK:
                    break
                got += body[4:]
        nursery.cancel_scope.cancel()
    assert got == sent
