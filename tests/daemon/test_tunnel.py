"""The shell around the tunnel machine: what it sends when, whom it tells what, and what cannot stop it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.resolver import Route
from pilot_trio.daemon.tunnel_log import PUNCH_BURST
from pilot_trio.daemon.tunnel_lookups import LOOKUPS_MAX, STRANGERS_MAX
from pilot_trio.errors import NoRoute
from pilot_trio.net.network import Addr, DatagramSocket, Endpoint, SystemNetwork
from pilot_trio.proto.tunnel.errors import NoTunnel, QueueFull
from pilot_trio.proto.tunnel.machine import TunnelMachine
from pilot_trio.proto.tunnel.settings import QUEUE_PACKETS, TunnelSettings
from pilot_trio.testing import MemoryNetwork
from pilot_trio.wire import tunnel as wire
from pilot_trio.wire.beacon import Discover, RelayDelivery
from pilot_trio.wire.packet import ACK, CONTROL, DATAGRAM, Packet
from tests.daemon.tunnel_fakes import HOST, Directory, HandPeer, TunnelNode, World, datagram, identity, open_world

ESTABLISHED = "encrypted tunnel established"
SAME = "auth key exchange: same-session keepalive"


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == text]


def kv(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = record.kv  # type: ignore[attr-defined]
    return found


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pilot_trio.tunnel")


# Contact


async def test_two_tunnels_find_each_other_and_answer_pings(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.start(1), await world.start(2)
        assert await one.tunnel.ping(2) == 0
        assert await two.tunnel.ping(1) == 0
        assert one.tunnel.has_session(2)
        assert two.tunnel.has_session(1)
        assert one.delivered == two.delivered == []
        assert world.directory.asked.count(("route", 2)) == 1


async def test_packets_reach_the_other_side_once_per_batch(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        with one.tunnel.turn:
            for number in range(5):
                one.send(2, b"%d" % number)
        await wait_all_tasks_blocked()
        (batch,) = two.delivered
        assert [(node, packet.payload) for node, packet in batch] == [(1, b"%d" % number) for number in range(5)]


async def test_packets_wait_for_the_key_and_no_longer(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.start(1), await world.start(2)
        world.directory.delay = 2.0
        with pytest.raises(NoTunnel, match="no tunnel to node 2"):
            one.send(2)
        started = trio.current_time()
        await one.tunnel.ensure(2)
        assert trio.current_time() - started == 2.0  # the route; the key is still being looked up
        assert not one.tunnel.has_session(2)
        for number in range(QUEUE_PACKETS):
            one.send(2, b"%d" % number)
        with pytest.raises(QueueFull, match=r"pending queue full.*\(peer_node_id=2\)"):
            one.send(2)
        await one.tunnel.wait_for_session(2)
        await trio.sleep(5)
        assert two.payloads == [b"%d" % number for number in range(QUEUE_PACKETS)]


async def test_node_that_cannot_be_resolved_is_an_error_for_everybody_who_waits(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        world.directory.delay = 1.0
        errors: list[str] = []

        async def contact() -> None:
            with pytest.raises(NoRoute) as caught:
                await one.tunnel.ensure(9)
            errors.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(contact)
        assert errors == ["resolve node 9: registry: request failed"] * 10
        assert world.directory.asked == [("route", 9)]  # one question for all
        one.tunnel.ensure_soon(9)
        await trio.sleep(2)
        assert world.directory.asked == [("route", 9)] * 2
        assert not one.tunnel.knows(9)


async def test_giving_up_the_wait_leaves_the_lookup_to_others(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, _ = await world.start(1), await world.start(2)
        world.directory.delay = 1.0
        with trio.move_on_after(0.5) as scope:
            await one.tunnel.ensure(2)
        assert scope.cancelled_caught
        await one.tunnel.ensure(2)
        assert trio.current_time() == 1.0
        with trio.move_on_after(0.25) as scope:
            await one.tunnel.wait_for_session(2)
        assert scope.cancelled_caught
        await one.tunnel.wait_for_session(2)
        assert world.directory.asked.count(("route", 2)) == 1


async def test_endpoint_registered_by_name_is_resolved_before_it_is_used(autojump_clock: MockClock) -> None:
    async with open_world(MemoryNetwork(names={"peer.test": HOST})) as world:
        one, two = await world.start(1), await world.start(2)
        world.directory.routes[2] = Route(Endpoint("peer.test", two.sock.endpoint.port))
        await one.tunnel.ping(2)
        assert one.tunnel.peer_rows()[0]["endpoint"] == str(two.sock.endpoint)
        world.directory.routes[3] = Route(Endpoint("unknown.test", 1))
        with pytest.raises(NoRoute, match=r"^resolve node 3: cannot resolve"):
            await one.tunnel.ensure(3)


@pytest.mark.parametrize("host", ["a..b", "\ud800", "☃☃.☃"])
async def test_endpoint_with_a_host_that_can_be_none_is_no_route_and_ends_nothing(host: str) -> None:
    """Any node may register such an endpoint."""
    async with open_world(SystemNetwork()) as world:
        one = await world.start(1)
        world.directory.routes[2] = Route(Endpoint(host, 4000))
        for _ in range(2):
            with pytest.raises(NoRoute, match="resolve node 2: "):
                await one.tunnel.ensure(2)


async def test_defect_in_a_lookup_is_no_route_and_ends_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object, node: int) -> None:
        raise KeyError("defect")

    async with open_world() as world:
        one, _ = await world.start(1), await world.start(2)
        with monkeypatch.context() as broken:
            for what in ("resolve", "public_key"):
                broken.setattr(Directory, what, fail)
            with pytest.raises(NoRoute, match="resolve node 2: 'defect'"):
                await one.tunnel.ensure(2)
            peer = await HandPeer.open(world, 3)
            peer.say(peer.key_frame(), one)
            await trio.sleep(10)
        assert {"resolving failed", "key lookup failed"} <= {record.message for record in caplog.records}
        await one.tunnel.ensure(2)
        await one.tunnel.wait_for_session(2)


async def test_relay_only_node_is_never_told_where_we_are(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.start(1), await world.start(2)
        beacon = await world.network.open_udp(Endpoint(HOST, 9001))
        one.tunnel.set_beacon(beacon.endpoint)
        world.directory.routes[2] = Route(beacon.endpoint, relay_only=True)
        await one.tunnel.ensure(2)
        data, _ = await beacon.receive()
        assert data[:9] == b"\x05" + (1).to_bytes(4, "big") + (2).to_bytes(4, "big")
        assert data[9:13] == wire.PILA
        assert one.tunnel.is_relayed(2)
        await trio.sleep(10)
        assert not two.hooked


# Lookups


async def test_lookups_never_hold_up_the_receive_loop(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        world.directory.delay = 8.0
        peer = await HandPeer.open(world, 3)
        peer.say(peer.key_frame(), one)
        await wait_all_tasks_blocked()
        two.send(1)
        await wait_all_tasks_blocked()
        assert trio.current_time() == 0
        assert one.payloads == [b"hello"]
        assert not one.tunnel.has_session(3)
        await trio.sleep(8)
        await wait_all_tasks_blocked()
        assert one.tunnel.has_session(3)


async def test_many_lookups_are_bounded_and_all_answered(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        world.directory.delay = 1.0
        number = 3 * LOOKUPS_MAX
        for node in range(10, 10 + number):
            world.directory.routes[node] = Route(Endpoint(HOST, node))
            one.tunnel.ensure_soon(node)
            one.tunnel.ensure_soon(node)
        await trio.sleep(3)
        await wait_all_tasks_blocked()
        assert world.directory.busiest == LOOKUPS_MAX
        assert len(world.directory.asked) == number
        assert all(one.tunnel.knows(node) for node in range(10, 10 + number))


async def test_lookups_beyond_the_queue_are_refused_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot_trio.daemon.tunnel_lookups.WAITING_MAX", 2)
    async with open_world() as world:
        one = await world.start(1)
        world.directory.delay = 1.0
        for node in range(10, 10 + LOOKUPS_MAX + 2):
            one.tunnel.ensure_soon(node)
        await wait_all_tasks_blocked()
        with pytest.raises(NoRoute, match="resolve node 9: too many lookups"):
            await one.tunnel.ensure(9)
        peer = await HandPeer.open(world, 3)
        peer.say(peer.key_frame(), one)
        await wait_all_tasks_blocked()
        assert one.tunnel.statistics().drops == {"unknown node": 1}
        await trio.sleep(5)
        peer.say(peer.key_frame(), one)  # the refusal is forgotten after a while
        await trio.sleep(2)
        assert one.tunnel.has_session(3)


async def test_a_flood_of_invented_nodes_does_not_keep_this_one_from_its_own_lookups(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, _ = await world.start(1), await world.start(2)
        world.directory.delay = 1.0
        liar = await HandPeer.open(world, 3)
        for node in range(1000, 1100):
            liar.node = node
            source = await world.network.open_udp(Endpoint(f"127.0.{node - 999}.1", 0))  # each address has a limit
            world.sockets.append(source)
            source.send_nowait(liar.key_frame(), one.sock.endpoint)
        await wait_all_tasks_blocked()
        assert world.directory.busy == STRANGERS_MAX
        with trio.fail_after(3.5):  # its route, and then the key of each by the other
            await one.tunnel.ensure(2)
            await one.tunnel.wait_for_session(2)
        await trio.sleep(100)
        assert len(world.directory.asked) == 100 + 3


async def test_one_key_lookup_per_node_however_often_it_knocks(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        world.directory.delay = 1.0
        peer = await HandPeer.open(world, 3)
        for _ in range(4):
            peer.say(peer.key_frame(), one)
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert world.directory.asked == [("key", 3)]
        assert one.hooked == [3]


# What is said (issue of record: one line per session, whatever the peer repeats)


async def test_first_key_frame_is_one_line_one_event_one_hook(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        (line,) = lines(caplog, ESTABLISHED)
        assert line.levelno == logging.INFO
        assert kv(line) == {"auth": True, "peer_node_id": 3, "endpoint": str(peer.sock.endpoint), "relay": False}
        assert one.hooked == [3]
        assert one.topics() == ["tunnel.established"]
        assert one.events[0].data == {"authenticated": True, "relay": False, "rekeyed": False}

        # Inside the debounce: nothing at all.
        await trio.sleep(0.2)
        peer.say(peer.key_frame(), one)
        await trio.sleep(0.04)
        assert (len(lines(caplog, ESTABLISHED)), len(lines(caplog, SAME)), len(one.hooked)) == (1, 0, 1)
        assert len(one.events) == 1

        # Later: hook and event again, no further Info line, one Debug line.
        await trio.sleep(0.1)
        peer.say(peer.key_frame(), one)
        await wait_all_tasks_blocked()
        assert (len(lines(caplog, ESTABLISHED)), len(lines(caplog, SAME)), len(one.hooked)) == (1, 1, 2)
        assert one.topics() == ["tunnel.established"] * 2
        assert lines(caplog, SAME)[0].levelno == logging.DEBUG
        assert {"peer_node_id", "age", "endpoint", "relay"} <= set(kv(lines(caplog, SAME)[0]))


async def test_same_key_frames_change_nothing_about_the_session(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        await one.tunnel.ensure(3)
        for _ in range(3):
            await trio.sleep(1)
            peer.say(peer.key_frame(), one)
            await wait_all_tasks_blocked()
            one.send(3)
        sealed = [frame for frame in await peer.hear_all(1) if frame[:4] == wire.PILS]
        assert [int.from_bytes(frame[12:20], "big") for frame in sealed] == list(range(1, len(sealed) + 1))
        opened = [peer.open_frame(frame) for frame in sealed]
        assert [packet.payload for packet in opened if packet.protocol == DATAGRAM] == [b"hello"] * 3


async def test_peer_that_repeats_itself_for_an_hour_costs_few_lines(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        frame = peer.key_frame()
        answers = 0
        for _ in range(450):
            await trio.sleep(8)
            peer.say(frame, one)
            answers += len(await peer.hear_all(0.001))
        # It answers no probe either, so its path is reset once, before it counts as idle.
        assert len(lines(caplog, ESTABLISHED)) <= 2
        assert len(caplog.records) <= 15
        assert len(one.hooked) == 451
        assert answers > 400  # it may have lost our frame: it is answered all the same


async def test_rekey_is_said_as_such(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        peer.keypair = KeyPair.from_private(bytes([77]) * 32)
        await trio.sleep(0.001)
        await peer.connect(one)
        assert len(lines(caplog, "peer rekeyed (auth), re-establishing tunnel")) == 1
        assert len(lines(caplog, ESTABLISHED)) == 1
        assert one.events[1].data == {"authenticated": True, "relay": False, "rekeyed": True}
        assert one.hooked == [3, 3]


async def test_a_restart_is_told_once_and_before_what_the_new_process_says(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.start(1), await world.start(2)
        told: list[object] = []
        two.tunnel.on_restart = told.append
        two.tunnel.deliver = told.append
        await one.tunnel.ensure(2)
        await one.tunnel.wait_for_session(2)
        await one.tunnel.ping(2)
        again = await world.start(1)
        await again.tunnel.ensure(2)
        await again.tunnel.wait_for_session(2)
        await again.tunnel.ping(2)
        assert told == [1]


async def test_only_a_trusted_peer_is_named_in_the_event(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1, TunnelSettings(is_trusted=lambda node: node == 3))
        for node in (3, 4):
            await (await HandPeer.open(world, node)).connect(one)
        assert [event.data and event.data.get("peer_node_id") for event in one.events] == [3, None]


@pytest.mark.parametrize(
    ("what", "level", "text"),
    [
        ("unknown", logging.WARNING, "auth key exchange rejected: cannot verify peer identity from registry"),
        ("other key", logging.ERROR, "auth key exchange: Ed25519 pubkey mismatch with registry"),
        ("bad signature", logging.ERROR, "auth key exchange signature verification failed"),
        ("low order", logging.ERROR, "auth key exchange failed"),
    ],
)
async def test_refused_key_frames_are_said_in_moderation(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, what: str, level: int, text: str
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        if what == "unknown":
            del world.directory.keys[3]
        elif what == "other key":
            world.directory.keys[3] = identity(4).public_key
        frame = peer.key_frame()
        if what == "bad signature":
            frame = frame[:-1] + bytes([frame[-1] ^ 1])
        elif what == "low order":
            x25519 = bytes(32)
            signature = peer.identity.sign(wire.signed_bytes(3, x25519))
            frame = wire.encode_key_exchange(wire.KeyExchange(3, x25519, peer.identity.public_key, signature))
        peer.say(frame, one)
        await wait_all_tasks_blocked()
        (line,) = lines(caplog, text)
        assert line.levelno == level
        assert kv(line)["peer_node_id"] == 3
        for _ in range(200):
            await trio.sleep(5)
            peer.say(frame, one)
        await wait_all_tasks_blocked()
        assert len(lines(caplog, text)) <= 6
        assert not one.tunnel.has_session(3)
        assert not one.hooked


async def test_sealed_packets_that_are_refused_are_said_and_published(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        sealed = peer.seal(datagram(3, 1))
        assert peer.session is not None
        for frame in (
            sealed,
            sealed,
            sealed[:-1] + bytes([sealed[-1] ^ 1]),
            peer.seal(datagram(9, 1)),
            peer.session.seal(b"no packet"),
        ):
            peer.say(frame, one)
            await wait_all_tasks_blocked()
        texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert texts == [
            "tunnel nonce replay detected",
            "tunnel decrypt error",
            "tunnel: dropping frame with spoofed source node",
            "tunnel unmarshal error after decrypt",
        ]
        assert one.topics() == ["tunnel.established", "security.nonce_replay", "security.src_spoofed"]
        replay, spoofed = one.events[1].data, one.events[2].data
        assert replay is not None
        assert spoofed is not None
        assert replay["counter"] == 1
        assert spoofed["authenticated_peer_hash"] == replay["peer_hash"] != spoofed["claimed_src_hash"]
        assert one.payloads == [b"hello"]
        drops = one.tunnel.statistics().drops
        assert {
            reason: drops[reason] for reason in ("replay", "undecryptable", "spoofed source", "malformed packet")
        } == {
            "replay": 1,
            "undecryptable": 1,
            "spoofed source": 1,
            "malformed packet": 1,
        }


async def test_sealed_packet_of_a_stranger_asks_for_its_key(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        peer.say(wire.PILS + (3).to_bytes(4, "big") + bytes(60), one)
        assert [(await peer.hear())[:4] for _ in range(2)] == [wire.PILA, wire.PILK]
        (line,) = lines(caplog, "encrypted packet from node but no key")
        assert kv(line) == {"peer_node_id": 3, "rekey_sent": True}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (RelayDelivery(NodeId(2), b"PILP").encode(), "dropping relay-deliver from non-beacon source"),
        (b"\x04\x04\x7f\0\0\x01\x10\x00", "dropping punch command from non-beacon source"),
    ],
)
async def test_who_poses_as_the_beacon_is_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, message: bytes, text: str
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        stranger = await world.network.open_udp(Endpoint(HOST, 0))
        stranger.send_nowait(message, one.sock.endpoint)
        await wait_all_tasks_blocked()
        assert len(lines(caplog, text)) == 1


async def test_punches_are_said_at_debug_level_in_moderation_and_change_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        stranger = await world.network.open_udp(Endpoint(HOST, 0))
        for _ in range(100):
            stranger.send_nowait(wire.PILP, one.sock.endpoint)
        await wait_all_tasks_blocked()
        said = lines(caplog, "NAT punch received")
        assert len(said) == PUNCH_BURST
        assert said[0].levelno == logging.DEBUG
        assert kv(said[0]) == {"from": str(stranger.endpoint)}
        assert one.tunnel.peer_rows() == []
        assert one.topics() == []


async def test_silent_peer_is_given_up_and_its_path_reset(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        world.directory.routes[3] = Route(Endpoint(HOST, 9))  # nobody there
        await one.tunnel.ensure(3)
        await trio.sleep(40)
        assert lines(caplog, "rekey retransmit gave up after maxRekeyAttempts")
        assert lines(caplog, "rekey gave up (session desync) — reset peer path")
        assert one.topics()[:2] == ["tunnel.rekey_gave_up", "tunnel.path_suspect"]
        assert one.events[1].data == {"peer_node_id": 3, "reason": "rekey_gave_up"}
        assert 3 in world.directory.forgotten  # the path is resolved anew, not from a cache


# Control packets


async def test_answer_to_a_ping_mirrors_the_question(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        asked = Packet(
            0, CONTROL, Address(NetworkId(7), NodeId(3)), Address(NetworkId(7), NodeId(1)), 77, 0, 5, payload=b"?"
        )
        peer.say(peer.seal(asked), one)
        answer = peer.open_frame(await peer.hear())
        assert answer == Packet(ACK, CONTROL, asked.destination, asked.source, 0, 77, 5, 6, 0, b"?")
        nobody = asked._replace(destination=Address(NetworkId(0), NodeId(0)), seq=0xFFFFFFFF)
        peer.say(peer.seal(nobody), one)
        answer = peer.open_frame(await peer.hear())
        assert (answer.source.node, answer.ack) == (1, 0)


@pytest.mark.parametrize("change", [{"flags": ACK}, {"destination_port": 1}, {"payload": b""}])
async def test_other_control_packets_are_not_answered_and_not_delivered(
    autojump_clock: MockClock, change: dict[str, object]
) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        asked = Packet(
            0, CONTROL, Address(NetworkId(0), NodeId(3)), Address(NetworkId(0), NodeId(1)), 77, 0, payload=b"?"
        )
        peer.say(peer.seal(asked._replace(**change)), one)  # type: ignore[arg-type]
        assert await peer.hear_all(1) == []
        assert one.delivered == []


async def test_ping_that_is_not_answered_can_be_given_up(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        with trio.move_on_after(1) as scope:
            await one.tunnel.ping(3)
        assert scope.cancelled_caught
        late = peer.open_frame(await peer.hear())
        peer.say(peer.seal(Packet(ACK, CONTROL, late.destination, late.source, 0, 0, late.seq, payload=b"ping")), one)
        await wait_all_tasks_blocked()  # an answer that nobody waits for is nothing


async def test_a_thousand_pings_may_be_under_way_and_one_that_ends_makes_room(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        peer = await HandPeer.open(world, 3)
        await peer.connect(one)
        async with trio.open_nursery() as nursery:
            for _ in range(1024):
                nursery.start_soon(one.tunnel.ping, 3)
            await wait_all_tasks_blocked()
            with pytest.raises(NoRoute, match="too many pings under way"):
                await one.tunnel.ping(3)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(1) as scope:
            await one.tunnel.ping(3)
        assert scope.cancelled_caught


async def test_a_name_that_nobody_resolves_holds_up_a_route_for_five_seconds(autojump_clock: MockClock) -> None:
    class Nameless(MemoryNetwork):
        async def resolve(self, name: Endpoint, at: Endpoint | None = None) -> Endpoint:
            await trio.sleep_forever()
            raise AssertionError

    async with open_world(Nameless()) as world:
        one = await world.start(1)
        world.directory.routes[3] = Route(Endpoint("slow.example", 4000))
        started = trio.current_time()
        with pytest.raises(NoRoute):
            await one.tunnel.ensure(3)
        assert trio.current_time() - started == pytest.approx(5)


# Turns and the socket


class Recorder(DatagramSocket):
    """Passes everything on and notes the batches."""

    def __init__(self, inner: DatagramSocket) -> None:
        self.inner = inner
        self.batches: list[list[bytes]] = []
        self.failures = 0
        self.unreachable: list[Addr] = []

    @property
    def endpoint(self) -> Endpoint:
        return self.inner.endpoint

    async def receive(self) -> tuple[bytes, Endpoint]:
        raise AssertionError("tunnels read in batches")

    async def receive_batch(self) -> Sequence[tuple[bytes, Addr]]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENETDOWN, "Network is down")
        return await self.inner.receive_batch()

    def send_nowait(self, data: bytes, to: Endpoint) -> bool:
        return self.inner.send_nowait(data, to)

    def send_batch(self, batch: Sequence[tuple[bytes, Addr]]) -> Sequence[Addr]:
        self.batches.append([data for data, _ in batch])
        self.inner.send_batch(batch)
        return [to for _, to in batch if to in self.unreachable]

    def close(self) -> None:
        self.inner.close()


async def recorded_pair(world: World) -> tuple[TunnelNode, Recorder, TunnelNode]:
    recorder = Recorder(await world.network.open_udp(Endpoint(HOST, 0)))
    one, two = await world.start(1, sock=recorder), await world.start(2)
    await one.tunnel.ensure(2)
    await one.tunnel.wait_for_session(2)
    await wait_all_tasks_blocked()
    recorder.batches.clear()
    return one, recorder, two


async def test_what_is_sent_in_one_turn_leaves_in_one_batch(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, recorder, _ = await recorded_pair(world)
        one.send(2)
        assert [len(batch) for batch in recorder.batches] == [1]
        with one.tunnel.turn:
            one.send(2)
            with one.tunnel.turn:
                one.send(2)
            one.send(2)
            assert len(recorder.batches) == 1
        assert [len(batch) for batch in recorder.batches] == [1, 3]
        with one.tunnel.turn:
            one.send(2)
            one.tunnel.flush()
            assert [len(batch) for batch in recorder.batches] == [1, 3, 1]
        assert len(recorder.batches) == 3


async def test_run_of_encoded_packets_leaves_in_one_batch_and_inside_a_turn_at_its_end(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        one, recorder, two = await recorded_pair(world)
        run = [datagram(1, 2, b"%d" % index).encode() for index in range(5)]
        one.tunnel.send_packets(2, run, trio.current_time(), salvage=True)
        assert [len(batch) for batch in recorder.batches] == [5]
        with one.tunnel.turn:
            one.tunnel.send_packets(2, run, trio.current_time())
            assert len(recorder.batches) == 1
        await wait_all_tasks_blocked()
        assert two.payloads == [b"0", b"1", b"2", b"3", b"4"] * 2


async def test_turn_that_fails_still_sends_what_has_its_nonce(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, recorder, _ = await recorded_pair(world)

        def fail() -> None:
            with one.tunnel.turn:
                one.send(2)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert [len(batch) for batch in recorder.batches] == [1]
        one.send(2)
        assert len(recorder.batches) == 2


async def test_what_deliver_sends_leaves_with_the_batch(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, recorder, two = await recorded_pair(world)
        one.tunnel.deliver = lambda batch: [one.send(node) for node, _ in batch]  # type: ignore[assignment,func-returns-value]
        with two.tunnel.turn:
            for _ in range(4):
                two.send(1)
        await wait_all_tasks_blocked()
        assert [len(batch) for batch in recorder.batches] == [4]
        assert len(two.payloads) == 4


async def test_defect_in_a_handler_costs_a_batch_and_never_the_loop(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        deliver = one.tunnel.deliver

        def fail(_: object) -> None:
            raise ValueError("defect")

        one.tunnel.deliver = fail
        two.send(1)
        await wait_all_tasks_blocked()
        assert one.tunnel.statistics().defects == 1
        assert lines(caplog, "datagrams dropped")
        one.tunnel.deliver = deliver
        two.send(1)
        await wait_all_tasks_blocked()
        assert one.payloads == [b"hello"]


async def test_defect_in_upkeep_never_ends_the_node(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        failures = 2
        handle_timeout = TunnelMachine.handle_timeout

        def fail(machine: TunnelMachine, now: float) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise ValueError("defect")
            handle_timeout(machine, now)

        monkeypatch.setattr(TunnelMachine, "handle_timeout", fail)
        await trio.sleep(30)
        assert one.tunnel.statistics().defects + two.tunnel.statistics().defects == 2
        assert len(lines(caplog, "upkeep failed")) == 2
        assert one.state.tunnel.packets_received > 0  # keepalives go on


@pytest.mark.parametrize("answer", ["on_key", "on_route"])
async def test_defect_in_what_an_answer_of_the_registry_brings_never_ends_the_node(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("defect")

    async with open_world() as world:
        one, two = await world.start(1), await world.start(2)
        with monkeypatch.context() as broken:
            broken.setattr(TunnelMachine, answer, fail)
            await one.tunnel.ensure(2)
            await trio.sleep(1)
        assert one.tunnel.statistics().defects + two.tunnel.statistics().defects > 0
        assert lines(caplog, "answer about a node dropped")
        await trio.sleep(10)
        await one.tunnel.ensure(2)
        with trio.fail_after(10):
            await one.tunnel.wait_for_session(2)


async def test_socket_that_fails_for_a_while_is_read_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        recorder = Recorder(await world.network.open_udp(Endpoint(HOST, 0)))
        recorder.failures = 3
        one, _ = await world.start(1, sock=recorder), await world.start(2)
        await one.tunnel.ping(2)
        assert recorder.failures == 0


async def test_destination_without_a_way_turns_its_peer_to_the_relay(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, recorder, two = await recorded_pair(world)
        beacon = await world.network.open_udp(Endpoint(HOST, 9001))
        one.tunnel.set_beacon(beacon.endpoint)
        recorder.unreachable = [tuple(two.sock.endpoint)]  # type: ignore[list-item]
        for _ in range(3):
            assert not one.tunnel.is_relayed(2)
            one.send(2)
        assert one.tunnel.is_relayed(2)
        assert one.tunnel.peer_rows()[0]["relay_reason"] == "direct path unreachable"
        assert "tunnel.relay_activated" in one.topics()


async def test_relay_for_a_dial_can_be_taken_back(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, _ = await world.pair()
        assert not one.tunnel.use_relay(2)  # there is no beacon
        one.tunnel.set_beacon(Endpoint(HOST, 9001))
        assert one.tunnel.use_relay(2)
        assert not one.tunnel.use_relay(2)
        assert one.tunnel.is_relayed(2)
        assert one.tunnel.count().relay_peers == 1
        one.tunnel.undo_relay(2)
        assert not one.tunnel.is_relayed(2)
        assert one.tunnel.count().relay_peers == 0


async def test_beacons_messages_are_passed_on_and_ours_use_the_same_socket(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        heard: list[tuple[bytes, Endpoint]] = []
        one.tunnel.on_beacon = lambda data, source: heard.append((data, source))
        beacon = await world.network.open_udp(Endpoint(HOST, 9001))
        assert one.tunnel.send_beacon(Discover(NodeId(1)).encode(), beacon.endpoint)
        assert await beacon.receive() == (Discover(NodeId(1)).encode(), one.sock.endpoint)
        beacon.send_nowait(b"\x0a\x01", one.sock.endpoint)
        await wait_all_tasks_blocked()
        assert heard == [(b"\x0a\x01", beacon.endpoint)]


# Who we are


async def test_registration_and_key_rotation_are_followed(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        one.state.node_id = NodeId(0)
        peer = await HandPeer.open(world, 3)
        await one.tunnel.ensure(3)
        assert await peer.hear_all(0.5) == []  # who has no id yet has nothing to say
        one.state.node_id = NodeId(1)
        await one.tunnel.ensure(3)
        assert wire.decode_key_exchange(await peer.hear()).node == 1
        one.state.identity = Identity.from_seed(b"r" * 32)
        await peer.hear_all(0.1)
        await one.tunnel.reset_path(3)
        assert wire.decode_key_exchange(await peer.hear()).ed25519 == one.state.identity.public_key


async def test_another_node_id_ends_every_tunnel(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, _ = await world.pair()
        one.state.node_id = NodeId(8)
        world.directory.keys[8] = one.state.identity.public_key
        one.tunnel.ensure_soon(2)
        await wait_all_tasks_blocked()
        one.send(2)
        await trio.sleep(5)
        assert one.tunnel.has_session(2)
        assert one.tunnel.peer_rows()[0]["node_id"] == 2


async def test_revoked_trust_ends_the_tunnel(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, _ = await world.pair()
        one.bus.publish("trust.changed", {"peer_node_id": 2, "state": "granted", "reason": "approved"})
        assert one.tunnel.knows(2)
        one.bus.publish("trust.changed", {"peer_node_id": 2, "state": "revoked", "reason": "local"})
        assert one.tunnel.knows(2), "the peer is yet to be told"
        one.bus.publish("trust.changed", {"peer_node_id": 2, "state": "revoked", "reason": "by_peer"})
        assert not one.tunnel.knows(2)


# Prefer direct


async def test_path_is_found_anew_and_the_peer_shows_its_key_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        report = await one.tunnel.reset_path(2)
        assert report == {
            "had_tunnel": True,
            "was_relay_active": False,
            "was_relay_pinned": False,
            "pila_pushed": True,
            "resolve_error": "",
        }
        await wait_all_tasks_blocked()
        assert one.tunnel.has_session(2)  # at once: the key request made the peer answer
        one.send(2, b"after")
        await wait_all_tasks_blocked()
        assert two.payloads == [b"after"]


async def test_path_to_an_unknown_node_is_an_answer_not_an_error(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one = await world.start(1)
        report = await one.tunnel.reset_path(9)
        assert report["resolve_error"] == "resolve node 9: registry: request failed"
        assert not report["pila_pushed"]
        assert not report["had_tunnel"]


# Figures


async def test_counters_follow_what_passes(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = await world.pair()
        before = one.state.tunnel
        assert (before.peers, before.encrypted_peers, before.authenticated_peers, before.relay_peers) == (1, 1, 1, 0)
        assert one.state.tunnel is before  # nothing passed, nothing is counted anew
        one.send(2, b"12345")
        after = one.state.tunnel
        assert after.packets_sent == before.packets_sent + 1
        assert after.bytes_sent == before.bytes_sent + 70 + 5
        assert after.encryption_successes == before.encryption_successes + 1
        await wait_all_tasks_blocked()
        assert two.state.tunnel.packets_received == 1
        assert two.state.tunnel.bytes_received == 75
        (row,) = one.state.tunnel.list_peers()
        assert {"authenticated", "encrypted", "endpoint", "node_id", "relay"} <= set(row)
        assert row["endpoint"] == str(two.sock.endpoint)


async def test_without_encryption_packets_travel_plain(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        plain = TunnelSettings(encrypt=False)
        one, two = await world.start(1, plain), await world.start(2, plain)
        await one.tunnel.ensure(2)
        await one.tunnel.wait_for_session(2)
        one.send(2)
        await wait_all_tasks_blocked()
        assert two.payloads == [b"hello"]
        assert two.topics() == ["tunnel.peer_added"]
        assert two.state.tunnel.encrypted_peers == 0


# The real network


async def test_two_tunnels_over_loopback() -> None:
    async with open_world(SystemNetwork()) as world:
        one, two = await world.start(1), await world.start(2)
        with trio.fail_after(5):
            await one.tunnel.ping(2)
            sent = [b"%d" % number + bytes(1000) for number in range(500)]
            with one.tunnel.turn:
                for payload in sent:
                    one.send(2, payload)
            while len(two.payloads) < len(sent):
                await trio.lowlevel.checkpoint()
        assert two.payloads == sent
        assert one.tunnel.receive_buffer > 0
        statistics = one.tunnel.statistics().socket
        assert statistics is not None
        assert statistics.sent > 500
