"""Two nodes make friends, over streams or through the registry's relay (`spec/services.md` §1)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from pilot_trio.address import NetworkId, NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon import trust as trust_module
from pilot_trio.daemon.courier import BACKGROUND_MAX, RELAY_AGAIN
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.saved_file import SAVE_RETRY
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.trust import REAP_INTERVAL, WAIT_MAX, TrustService
from pilot_trio.errors import CommandError, DialRefused, RegistryError, RegistryUnavailable
from pilot_trio.proto.trust import PENDING_MAX, REQUEST_LIFETIME, REVOKED_COOL_DOWN, PendingRequest
from pilot_trio.services.handshake import LINGER, serve_handshakes
from pilot_trio.wire.handshake import HandshakeMessage, Kind, make_message
from pilot_trio.wire.registry import Message

ANN, BOB = NodeId(1), NodeId(2)
EPOCH = 1_795_458_600.0


def wall_time() -> float:
    return EPOCH + trio.current_time()


class Relay:
    """The part of a registry that trust uses: mailboxes, records, and what was reported."""

    def __init__(self) -> None:
        self.records: dict[int, Message] = {}
        self.requests: dict[int, list[Message]] = {}
        self.responses: dict[int, list[Message]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.down = False
        self.held: set[str] = set()

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        self.calls.append((type_, fields))
        await trio.sleep(0.01)
        if self.down:
            raise RegistryUnavailable("connection refused", type_)
        if type_ in self.held:
            await trio.sleep_forever()
        if type_ == "lookup":
            return self._record(fields["node_id"])
        if type_ == "request_handshake":
            self._record(fields["to_node_id"])
            entry = {"from_node_id": fields["from_node_id"], "justification": fields["justification"]}
            self.requests.setdefault(fields["to_node_id"], []).append(entry)
        elif type_ == "respond_handshake":
            entry = {"from_node_id": fields["node_id"], "accept": fields["accept"], "timestamp": int(wall_time())}
            self.responses.setdefault(fields["peer_id"], []).append(entry)
        elif type_ == "poll_handshakes":
            own = fields["node_id"]
            return {"requests": self.requests.pop(own, []), "responses": self.responses.pop(own, [])}
        return {}

    async def lookup(self, node_id: int) -> Message:
        return await self.call("lookup", node_id=node_id)

    def count(self, type_: str, **fields: Any) -> int:
        return sum(name == type_ and fields.items() <= given.items() for name, given in self.calls)

    def _record(self, node: int) -> Message:
        if node not in self.records:
            raise RegistryError(f"node {node}: node not found")
        return self.records[node]


@attrs.define(eq=False)
class Party:
    node: NodeId
    state: NodeState
    trust: TrustService
    events: list[Event] = attrs.field(factory=list)
    port_444: trio.MemorySendChannel[trio.abc.Stream] | None = None
    sources: dict[trio.abc.Stream, NodeId] = attrs.field(factory=dict)

    def topics(self) -> list[str]:
        return [f"{event.topic}:{(event.data or {}).get('reason', '')}".rstrip(":") for event in self.events]


class ChannelListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, channel: trio.MemoryReceiveChannel[trio.abc.Stream]) -> None:
        self._channel = channel

    async def accept(self) -> trio.abc.Stream:
        return await self._channel.receive()

    async def aclose(self) -> None:
        await self._channel.aclose()


class World:
    """Nodes that share a relay, and streams between those that listen (`direct`)."""

    def __init__(self) -> None:
        self.relay = Relay()
        self.parties: dict[NodeId, Party] = {}
        self.direct = True
        self.dials = 0

    def make(self, node: NodeId, **options: Any) -> Party:
        state = NodeState(Identity.from_seed(bytes([node]) * 32), 0.0, node_id=node)
        self.relay.records[node] = {"public_key": state.identity.public_key_b64, "networks": [0]}
        bus = EventBus()

        async def dial(to: NodeId, port: int) -> trio.abc.Stream:
            self.dials += 1
            assert port == 444
            await trio.sleep(0.01)
            target = self.parties.get(to)
            if not self.direct or target is None or target.port_444 is None:
                raise DialRefused
            here, there = trio.testing.memory_stream_pair()
            target.sources[there] = node
            await target.port_444.send(there)
            return here

        trust = TrustService(
            state=state,
            registry=self.relay,
            resolver=self.relay,
            events=bus,
            dial=dial,
            wall_time=wall_time,
            **options,
        )
        party = self.parties[node] = Party(node, state, trust)
        bus.subscribe(party.events.append)
        return party

    async def run(self, party: Party, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        send, receive = trio.open_memory_channel[trio.abc.Stream](64)
        party.port_444 = send

        async def deliver(message: HandshakeMessage, stream: trio.abc.Stream) -> None:
            await party.trust.receive(message, party.sources[stream])

        async with trio.open_nursery() as nursery:
            await nursery.start(party.trust.run)
            await nursery.start(serve_handshakes, ChannelListener(receive), deliver)
            task_status.started()


@asynccontextmanager
async def two_nodes(*, direct: bool = True, **options: Any) -> AsyncIterator[tuple[World, Party, Party]]:
    """Run Ann and Bob; options are Bob's."""
    world = World()
    world.direct = direct
    ann, bob = world.make(ANN), world.make(BOB, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.run, ann)
        await nursery.start(world.run, bob)
        yield world, ann, bob
        nursery.cancel_scope.cancel()


async def settle() -> None:
    """Let everything that is under way happen, lingering streams included."""
    await trio.sleep(LINGER + 0.5)


async def test_a_request_over_a_stream_waits_for_the_operator_and_is_approved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_nodes() as (world, ann, bob):
        assert await ann.trust.request(BOB, "hi <b>")
        await settle()
        (pending,) = bob.trust.pending_rows()
        assert pending["justification"] == "hi <b>"
        assert pending["public_key"] == ann.state.identity.public_key_b64
        assert bob.trust.pending_count == 1
        assert bob.topics() == ["handshake.received", "handshake.pending"]

        bob.trust.approve(ANN)
        await settle()
        (anns,), (bobs,) = ann.trust.trusted_rows(), bob.trust.trusted_rows()
        assert (anns["mutual"], bobs["mutual"]) == (True, False)
        assert anns["public_key"] == bob.state.identity.public_key_b64
        assert bobs["public_key"] == ann.state.identity.public_key_b64
        assert bob.topics()[2:] == ["handshake.approved", "trust.changed:approved"]
        for reporter, peer in ((BOB, ANN), (ANN, BOB)):
            assert world.relay.count("report_trust", node_id=reporter, peer_id=peer) == 1


async def test_a_request_that_cannot_be_delivered_is_relayed(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (world, ann, bob):
        assert await ann.trust.request(BOB, "hi")
        assert world.relay.count("request_handshake") == 1
        await bob.trust.poll()
        (pending,) = bob.trust.pending_rows()
        assert (pending["justification"], pending["public_key"]) == ("hi", "")

        bob.trust.approve(ANN)
        approved_at = trio.current_time()
        assert await ann.trust.wait(BOB, 10)
        assert trio.current_time() - approved_at <= 2.1  # Ann polls every two seconds while she waits
        await settle()
        (anns,), (bobs,) = ann.trust.trusted_rows(), bob.trust.trusted_rows()
        assert anns["public_key"] == bob.state.identity.public_key_b64  # both filled in from the registry
        assert bobs["public_key"] == ann.state.identity.public_key_b64


async def test_asking_each_other_is_mutual(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, bob):
        await ann.trust.request(BOB, "")
        await settle()
        await bob.trust.request(ANN, "")
        await settle()
        assert ann.trust.is_trusted(BOB)
        assert bob.trust.is_trusted(ANN)
        assert ann.topics()[-2:] == ["handshake.auto_approved:mutual", "trust.changed:mutual"]


async def test_auto_approval_answers_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(auto_approve=True) as (_, ann, bob):
        await ann.trust.request(BOB, "")
        assert await ann.trust.wait(BOB, 1)
        await settle()
        assert "trust.changed:auto_approve" in bob.topics()
        assert bob.trust.pending_rows() == []


@pytest.mark.parametrize("direct", [True, False])
async def test_members_of_a_network_trust_each_other(direct: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=direct) as (world, ann, bob):
        bob.state.networks = [NetworkId(7)]
        world.relay.records[ANN]["networks"] = [0, 7]
        await ann.trust.request(BOB, "")
        await bob.trust.poll()
        assert await ann.trust.wait(BOB, 5)
        (bobs,) = bob.trust.trusted_rows()
        assert bobs["network"] == 7


async def test_an_answer_that_cannot_be_delivered_is_relayed(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False, auto_approve=True) as (world, ann, bob):
        await bob.trust.receive(make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time()), ANN)
        await settle()
        assert world.relay.count("respond_handshake", accept=True) == 1


@pytest.mark.parametrize("auto_approve", [False, True])
async def test_an_approval_is_reported_and_then_relayed_as_well(
    auto_approve: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A reference node that was approved before takes the direct one for a replay."""
    async with two_nodes(auto_approve=auto_approve) as (world, ann, bob):
        request = make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time())
        await bob.trust.receive(request, ANN)
        if not auto_approve:
            bob.trust.approve(ANN)
        await settle()
        told = [type_ for type_, _ in world.relay.calls if type_ in ("report_trust", "respond_handshake")]
        assert told == ["report_trust", "respond_handshake"]
        # Asked again, as by a peer to which our answer was a replay: the same once more.
        await trio.sleep(2)
        await bob.trust.receive(make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time()), ANN)
        await settle()
        assert world.relay.count("respond_handshake", node_id=BOB, accept=True) == 2


async def test_a_relayed_request_may_be_approved_automatically(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False, auto_approve=True) as (world, ann, bob):
        await ann.trust.request(BOB, "")
        await bob.trust.poll()
        assert await ann.trust.wait(BOB, 5)
        assert bob.topics()[-2:] == [
            "handshake.auto_approved:auto_approve_relayed",
            "trust.changed:auto_approve_relayed",
        ]
        await settle()
        assert bob.trust.known_key(ANN) == ann.state.identity.public_key_b64
        assert world.relay.count("report_trust", node_id=BOB) == 1
        # The same request again, as after a lost answer: it is answered again, and nothing else happens.
        bob.events.clear()
        world.relay.requests[BOB] = [{"from_node_id": ANN, "justification": ""}]
        await trio.sleep(3)
        await bob.trust.poll()
        await settle()
        assert bob.topics() == ["handshake.received"]
        assert world.relay.count("respond_handshake", accept=True) == 2


async def test_a_trusted_peer_is_not_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(auto_approve=True) as (world, ann, _bob):
        await ann.trust.request(BOB, "")
        await settle()
        dials = world.dials
        assert await ann.trust.request(BOB, "")
        assert world.dials == dials


async def test_without_the_registry_a_peer_is_heard_but_not_proven(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (world, ann, bob):
        bob.trust._table.start_request(ANN, EPOCH)
        world.relay.down = True
        await bob.trust.receive(make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time()), ANN)
        assert not bob.trust.is_trusted(ANN)  # else it would be mutual
        assert bob.trust.pending_count == 1


async def test_requests_beyond_the_bound_are_dropped(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pilot_trio.trust")
    async with two_nodes() as (world, _ann, bob):
        world.relay.requests[BOB] = [{"from_node_id": node} for node in range(100, 100 + PENDING_MAX + 1)]
        await bob.trust.poll()
        assert bob.trust.pending_count == PENDING_MAX
        assert "handshake request dropped" in caplog.text


async def test_the_beacon_may_ask_for_a_poll(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (world, _ann, bob):
        world.relay.requests[BOB] = [{"from_node_id": 9}]
        bob.trust.poke()
        await trio.sleep(0.5)
        assert bob.trust.pending_count == 1


async def test_a_stream_that_breaks_while_sending_is_closed_and_the_request_relayed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_nodes() as (world, ann, bob):
        broken, far = trio.testing.memory_stream_pair()
        await trio.aclose_forcefully(far)

        async def dial(_node: NodeId, _port: int) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return broken

        ann.trust._courier._dial = dial
        await ann.trust.request(BOB, "")
        assert world.relay.count("request_handshake") == 1
        with pytest.raises(trio.ClosedResourceError):
            await broken.send_all(b"x")
        assert bob.events == []


async def test_a_node_may_trust_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, _bob):
        assert ann.trust.admits(ANN)
        assert not ann.trust.is_trusted(ANN)
        await ann.trust.request(ANN, "")
        await settle()
        (row,) = ann.trust.trusted_rows()
        assert (row["node_id"], row["mutual"]) == (ANN, True)


async def test_rejection_and_revocation_reach_the_peer(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (world, ann, bob):
        await ann.trust.request(BOB, "")
        await settle()
        bob.trust.reject(ANN, "no thanks")
        await settle()
        assert bob.trust.pending_rows() == []
        assert not ann.trust.may_be_answered(BOB)
        assert world.relay.count("respond_handshake", accept=False) == 1

        await ann.trust.request(BOB, "please")  # a replay to other receivers, not to ours
        await settle()
        bob.trust.approve(ANN)
        await settle()
        assert ann.trust.is_trusted(BOB)
        bob.trust.revoke(ANN)
        await settle()
        assert not ann.trust.is_trusted(BOB)
        assert "trust.revoked_by_peer" in ann.topics()
        assert world.relay.count("revoke_trust") == 2
        with pytest.raises(CommandError, match=r"^node 1 was not trusted$"):
            bob.trust.revoke(ANN)


async def test_a_peer_is_told_of_its_revocation_before_registry_and_tunnel_forget_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_nodes() as (world, ann, bob):
        await ann.trust.request(BOB, "")
        await settle()
        bob.trust.approve(ANN)
        await settle()
        parted: list[int] = []
        bob.trust.on_parted = lambda node: parted.append(node) if not ann.trust.is_trusted(BOB) else None
        before = world.relay.count("revoke_trust")
        bob.trust.revoke(ANN)
        assert (parted, world.relay.count("revoke_trust")) == ([], before)
        await trio.sleep(trust_module.PARTING_TIMEOUT + trust_module.PARTING_LINGER + 0.1)
        assert parted == [ANN]


async def test_who_is_asked_through_the_registry_is_expected_to_dial(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (_, ann, _bob):
        asked: list[int] = []
        ann.trust.on_asked = asked.append
        await ann.trust.request(BOB, "")
        assert asked == [BOB]


async def test_a_relayed_rejection_ends_the_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (_, ann, bob):
        await ann.trust.request(BOB, "")
        await bob.trust.poll()
        bob.trust.reject(ANN, "")
        await trio.sleep(2.5)
        assert not ann.trust.may_be_answered(BOB)


async def test_a_request_that_nobody_takes_fails_and_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (_, ann, _bob):
        with pytest.raises(CommandError, match=r"^handshake relay: registry: node 9: node not found$"):
            await ann.trust.request(9, "")
        assert not ann.trust.may_be_answered(9)


async def test_a_second_request_joins_the_first(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (world, ann, _bob), trio.open_nursery() as nursery:
        world.relay.held.add("request_handshake")
        nursery.start_soon(ann.trust.request, BOB, "")
        await trio.testing.wait_all_tasks_blocked()
        assert not await ann.trust.request(BOB, "")
        nursery.cancel_scope.cancel()


async def test_cancelling_a_request_leaves_room_for_the_next(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (world, ann, _bob):
        world.relay.held.add("request_handshake")
        with trio.move_on_after(1):
            await ann.trust.request(BOB, "")
        world.relay.held.clear()
        assert await ann.trust.request(BOB, "")


async def test_asking_again_soon_goes_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (world, ann, _bob):
        for expected, pause in ((0, RELAY_AGAIN - 3), (1, RELAY_AGAIN + 1), (1, 1)):
            await ann.trust.request(BOB, "")
            await settle()
            assert world.relay.count("request_handshake") == expected
            await trio.sleep(pause)


async def test_an_unregistered_node_cannot_ask(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (world, ann, _bob):
        ann.state.node_id = NodeId(0)
        with pytest.raises(CommandError, match="not registered"):
            await ann.trust.request(BOB, "")
        assert not ann.trust.admits(0)
        assert world.dials == 0


async def test_waiting_ends_at_its_time_and_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, _bob):
        started_at = trio.current_time()
        assert not await ann.trust.wait(BOB, 3)
        assert trio.current_time() - started_at == pytest.approx(3)
        assert not await ann.trust.wait(BOB, 1e9)
        assert trio.current_time() - started_at == pytest.approx(3 + WAIT_MAX)
        with trio.move_on_after(1) as scope:
            await ann.trust.wait(BOB, 20)
        assert scope.cancelled_caught
        assert ann.trust._waiters == {}
        assert await ann.trust.wait(ANN, 0)  # ourselves


async def test_everybody_who_waits_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, bob):
        woken: list[bool] = []

        async def wait() -> None:
            woken.append(await bob.trust.wait(ANN, 20))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(wait)
            await ann.trust.request(BOB, "")
            await settle()
            bob.trust.approve(ANN)
        assert woken == [True] * 100
        assert bob.trust._waiters == {}


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"timestamp": int(EPOCH) - 301}, ANN),
        ({"timestamp": int(EPOCH) + 60}, ANN),
        ({"signature": ""}, ANN),
        ({"signature": "AAAA"}, ANN),
        ({"public_key": ""}, ANN),
        ({"public_key": Identity.from_seed(bytes(32)).public_key_b64}, ANN),
        ({"type": "zzz"}, ANN),
        ({"type": "handshake_accept"}, ANN),
        ({"type": "handshake_accept", "node_id": 3}, ANN),
    ],
)
async def test_what_is_dropped_without_a_word(
    change: dict[str, Any], source: NodeId, autojump_clock: trio.testing.MockClock
) -> None:
    async with two_nodes() as (world, ann, bob):
        good = make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time())
        await bob.trust.receive(attrs.evolve(good, **change), source)
        assert bob.events == []
        assert world.dials == 0
        await bob.trust.receive(good, source)
        await bob.trust.receive(good, source)  # a replay
        assert bob.topics() == ["handshake.received", "handshake.pending"]


async def test_two_copies_at_once_count_once(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, bob), trio.open_nursery() as nursery:
        message = make_message(Kind.REQUEST, ann.state.identity, ANN, BOB, wall_time())
        for _ in range(2):
            nursery.start_soon(bob.trust.receive, message, ANN)
        await settle()
        assert bob.topics() == ["handshake.received", "handshake.pending"]


async def test_a_bare_rejection_over_the_right_stream_is_honoured(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (_, ann, _bob):
        await ann.trust.request(BOB, "")
        bare = HandshakeMessage("handshake_reject", BOB, timestamp=int(wall_time()))
        await ann.trust.receive(bare, ANN)
        assert ann.trust.may_be_answered(BOB)
        await ann.trust.receive(bare, BOB)
        assert not ann.trust.may_be_answered(BOB)


async def test_a_changed_key_ends_the_trust(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(auto_approve=True) as (world, ann, bob):
        await ann.trust.request(BOB, "")
        await settle()
        fresh = Identity.from_seed(bytes([9]) * 32)
        world.relay.records[ANN]["public_key"] = fresh.public_key_b64
        bob.trust._messages._auto_approve = False
        await bob.trust.receive(make_message(Kind.REQUEST, fresh, ANN, BOB, wall_time()), ANN)
        assert not bob.trust.is_trusted(ANN)
        assert "trust.changed:key_changed" in bob.topics()
        assert bob.trust.pending_count == 1


async def test_a_late_approval_after_a_revocation_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes(direct=False) as (world, ann, _bob):
        await ann.trust.request(BOB, "")
        with pytest.raises(CommandError):
            ann.trust.revoke(BOB)
        world.relay.responses[ANN] = [{"from_node_id": BOB, "accept": True}]
        await trio.sleep(3)
        await ann.trust.poll()
        assert not ann.trust.is_trusted(BOB)


async def test_background_work_is_bounded(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(direct=False) as (world, ann, _bob):
        world.relay.held.add("respond_handshake")
        for node in range(BACKGROUND_MAX + 5):
            ann.trust.reject(node, "")
        assert ann.trust._courier.under_way == BACKGROUND_MAX
        assert "handshake step given up" in caplog.text


async def test_every_stream_that_was_written_to_is_closed_however_many_there_are(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_nodes() as (_world, ann, _bob):
        courier = ann.trust._courier
        dial, streams = courier._dial, []

        async def remembering(to: NodeId, port: int) -> trio.abc.Stream:
            streams.append(await dial(to, port))
            return streams[-1]

        courier._dial = remembering
        for _ in range(BACKGROUND_MAX):
            courier.soon(courier.tell, BOB, Kind.REJECT)
        await trio.sleep(30)
        assert len(streams) == BACKGROUND_MAX
        for stream in streams:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"more")
        assert courier.under_way == 0


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what a thread does; no clock of ours knows when that is."""
    while not happened():  # noqa: ASYNC110  (there is no event for it)
        await trio.sleep(0.001)


async def test_a_bug_in_the_background_does_not_stop_the_node(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes() as (_, ann, _bob):

        async def crash() -> None:
            raise ValueError("a bug")

        ann.trust._courier.soon(crash)
        await settle()
        assert "handshake step failed" in caplog.text


class TestFile:
    """What is stored, and when."""

    @asynccontextmanager
    async def node(self, path: Path) -> AsyncIterator[tuple[World, Party]]:
        world = World()
        world.direct = False
        world.make(BOB)
        ann = world.make(ANN, path=path)
        async with trio.open_nursery() as nursery:
            await nursery.start(world.run, ann)
            yield world, ann
            nursery.cancel_scope.cancel()

    async def test_trust_survives_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.json"
        async with self.node(path) as (world, ann):
            world.relay.requests[ANN] = [{"from_node_id": BOB, "justification": "x"}]
            await ann.trust.poll()
            ann.trust.approve(BOB)
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(path.read_bytes())["trusted"][0]["node_id"] == BOB
        async with self.node(path) as (_, ann):
            assert ann.trust.is_trusted(BOB)
            assert ann.trust.trusted_ids() == [BOB]

    async def test_changes_are_written_while_running(self, tmp_path: Path) -> None:
        path = tmp_path / "trust.json"
        async with self.node(path) as (_, ann):
            with pytest.raises(CommandError):
                ann.trust.revoke(77)
            with trio.fail_after(5):
                await until(path.exists)
            assert "revoked" in json.loads(path.read_bytes())

    async def test_an_unusable_record_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "trust.json"
        path.write_bytes(b'{"trusted":[{"node_id":9,"approved_at":"yesterday"}]}')
        async with self.node(path) as (_, ann):
            assert ann.trust.trusted_rows() == []
        assert "trust record skipped" in caplog.text

    async def test_an_unreadable_file_is_an_empty_one(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "trust.json"
        path.write_bytes(b"{")
        async with self.node(path) as (_, ann):
            assert ann.trust.trusted_rows() == []
        assert "trust state unreadable" in caplog.text
        assert path.read_bytes() == b"{"  # nothing changed, so nothing was written

    async def test_a_failed_save_is_tried_again(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "trust.json"
        path.mkdir()
        async with self.node(path) as (_, ann):
            with pytest.raises(CommandError):
                ann.trust.revoke(77)
            await until(lambda: "trust state not saved" in caplog.text)
            path.rmdir()
            await trio.sleep(SAVE_RETRY + 1)
            await until(path.is_file)
        assert "revoked" in json.loads(path.read_bytes())


async def test_the_reaper_runs(autojump_clock: trio.testing.MockClock) -> None:
    async with two_nodes() as (_, ann, _bob):
        with pytest.raises(CommandError):
            ann.trust.revoke(BOB)
        old = wall_time() - REQUEST_LIFETIME
        ann.trust._table.pending[BOB] = PendingRequest(BOB, old)
        await trio.sleep(max(REAP_INTERVAL, REVOKED_COOL_DOWN) * 2 + 1)
        assert ann.trust._table.revoked == {}
        assert ann.trust.pending_count == 0
