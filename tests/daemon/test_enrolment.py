from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.address import NodeId
from pilot_trio.config import Config, RegistryConfig
from pilot_trio.crypto.identity import verify
from pilot_trio.daemon.beacon_client import BeaconClient
from pilot_trio.daemon.beacon_list import BeaconList
from pilot_trio.daemon.enrolment import ANNOUNCE_INTERVAL, FAIL_FAST_ATTEMPTS, Enrolment
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.networks import Networks
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.errors import StartupError
from pilot_trio.net.network import Endpoint
from pilot_trio.testing import MemoryNetwork
from tests.daemon.fakes import Answer, FakeClient, Link, ShortestWaits, make_state, record_events, refused, unavailable

BEAT = 60.0


def registered(node_id: int = 7, **fields: Any) -> dict[str, Any]:
    return {"type": "register_ok", "node_id": node_id, "address": "0:0000.0000.0007", **fields}


class Setup:
    def __init__(self, **settings: Any) -> None:
        fail_fast = settings.pop("fail_fast", False)
        self.config = Config(
            registry=RegistryConfig(endpoint="127.0.0.1:9000", fail_fast=fail_fast), identity=None, **settings
        )
        self.state = make_state(0)
        self.state.public = self.config.public
        self.client = FakeClient({"register": registered()})
        self.bus = EventBus()
        self.events = record_events(self.bus)
        self.trusted: list[NodeId] = []
        self.settled: list[Exception | None] = [None]
        self.enrolment: Enrolment
        self.own_hosts: list[str] = []

    async def settle_key(self) -> None:
        if (failure := self.settled.pop(0) if len(self.settled) > 1 else self.settled[0]) is not None:
            raise failure

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        network = MemoryNetwork()
        sock = await network.open_udp(Endpoint("", 4000))
        beacon = BeaconClient(
            network=network,
            link=Link(sock),
            state=self.state,
            configured=(Endpoint("127.0.0.1", 9001),),
            listed=BeaconList(FakeClient(), None, time.time),
            on_notify=lambda: None,
            keepalive=BEAT,
        )
        networks = Networks(
            state=self.state,
            registry=self.client,
            resolver=Resolver(self.client, self.state),
            events=self.bus,
            admin_token=self.config.admin_token,
            rng=ShortestWaits(),
        )
        self.enrolment = Enrolment(
            config=self.config,
            state=self.state,
            registry=self.client,
            networks=networks,
            beacon=beacon,
            bound=lambda: sock.endpoint,
            own_hosts=lambda _to: self.own_hosts,
            settle_key=self.settle_key,
            events=self.bus,
            trusted=lambda: self.trusted,
            rng=ShortestWaits(),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(beacon.run)
            nursery.start_soon(self.enrolment.run)
            yield
            nursery.cancel_scope.cancel()


def check_signature(setup: Setup, signature: str, text: str) -> None:
    assert verify(setup.state.identity.public_key, base64.b64decode(signature), text.encode())


async def test_start_registers_and_tells_everybody(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        (call,) = setup.client.of("register")
        key = setup.state.identity.public_key_b64
        check_signature(setup, call.fields.pop("signature"), f"register:127.0.0.1:4000:{key}")
        assert call.fields == {"listen_addr": "127.0.0.1:4000", "public_key": key, "owner": "a@b", "version": "1.18.0"}
        assert setup.state.node_id == 7
        assert setup.state.endpoint == "127.0.0.1:4000"
        assert [(event.topic, event.data) for event in setup.events] == [
            ("node.registered", {"address": "0:0000.0000.0007", "endpoint": "127.0.0.1:4000"}),
            ("agent.registered", {"address": "0:0000.0000.0007", "endpoint": "127.0.0.1:4000", "node_id": 7}),
        ]
        (record,) = [record for record in caplog.records if record.message == "daemon registered"]
        assert record.kv == {"node_id": 7, "addr": "0:0000.0000.0007", "endpoint": "127.0.0.1:4000"}  # type: ignore[attr-defined]


async def test_start_announces_what_is_configured_in_order(autojump_clock: MockClock) -> None:
    setup = Setup(public=True, hostname="node-x", relay_only=True, networks=[3], admin_token="t")
    async with setup.running():
        await setup.enrolment.announced.wait()
        order = ["register", "set_visibility", "set_hostname", "lookup", "join_network"]
        assert setup.client.types[: len(order)] == order
        assert setup.client.calls[0].fields["relay_only"] is True
        check_signature(setup, setup.client.calls[1].fields["signature"], "set_visibility:7")
        check_signature(setup, setup.client.calls[2].fields["signature"], "set_hostname:7")
        assert setup.client.calls[1].fields["public"] is True
        assert setup.client.calls[2].fields["hostname"] == "node-x"
        assert setup.state.hostname == "node-x"


async def test_private_nameless_node_registers_with_one_request(autojump_clock: MockClock) -> None:
    setup = Setup(networks=[3])  # without an admin token nothing is joined
    async with setup.running():
        await trio.sleep(1)
        assert set(setup.client.types) == {"register", "lookup", "get_network_policy", "list_networks"}


async def test_name_from_an_earlier_life_is_taken_over(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.client.answers["register"] = registered(hostname="old-name")
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.state.hostname == "old-name"


async def test_refused_name_does_not_stop_the_start(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(hostname="taken", public=True)
    setup.client.answers["set_hostname"] = refused('hostname "taken" already in use by node 1')
    setup.client.answers["set_visibility"] = refused()
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.state.hostname == ""
        assert "failed to set hostname" in caplog.text
        assert "failed to set visibility" in caplog.text


@pytest.mark.parametrize("hidden", [False, True])
async def test_neighbours_are_told_where_to_find_this_node_unless_it_hides(
    autojump_clock: MockClock, hidden: bool
) -> None:
    setup = Setup(relay_only=hidden)
    setup.own_hosts = ["192.168.1.5", "8.8.8.8"]
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.client.calls[0].fields.get("lan_addrs") == (None if hidden else ["192.168.1.5:4000"])
        assert setup.state.lan_endpoints == (() if hidden else (Endpoint("192.168.1.5", 4000),))


@pytest.mark.parametrize(
    ("settings", "listen_addr"),
    [
        ({"endpoint": "8.8.8.8:5"}, "8.8.8.8:5"),
        ({"advertise_endpoint": "example.org:6"}, "example.org:6"),
        ({"endpoint": "8.8.8.8:5", "advertise_endpoint": "example.org:6"}, "8.8.8.8:5"),
    ],
)
async def test_configured_endpoint_is_registered(
    autojump_clock: MockClock, settings: dict[str, Any], listen_addr: str
) -> None:
    setup = Setup(**settings)
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.client.calls[0].fields["listen_addr"] == listen_addr
        assert setup.state.endpoint == listen_addr


@pytest.mark.parametrize(
    ("advertised", "listen_addr"), [(None, "203.0.113.77:4001"), ("example.org:6", "example.org:6")]
)
async def test_endpoint_that_the_beacon_sees_is_registered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, advertised: str | None, listen_addr: str
) -> None:
    async def discover(_: BeaconClient) -> Endpoint:
        return Endpoint("203.0.113.77", 4001)

    monkeypatch.setattr(BeaconClient, "discover", discover)
    setup = Setup(advertise_endpoint=advertised)
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.client.calls[0].fields["listen_addr"] == listen_addr


async def test_a_beacon_that_answers_only_after_the_registration_is_believed_then(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Endpoint] = []

    async def discover(_: BeaconClient) -> Endpoint | None:
        await trio.lowlevel.checkpoint()
        return seen[0] if seen else None

    monkeypatch.setattr(BeaconClient, "discover", discover)
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        await trio.sleep(2 * BEAT)
        assert [call.fields["listen_addr"] for call in setup.client.of("register")] == ["127.0.0.1:4000"]
        seen.append(Endpoint("8.8.8.8", 4001))
        setup.enrolment._beacon.observed = seen[0]
        await trio.sleep(3 * BEAT)
        assert [call.fields["listen_addr"] for call in setup.client.of("register")][1:] == ["8.8.8.8:4001"]
        assert setup.state.endpoint == "8.8.8.8:4001"


@pytest.mark.parametrize(
    ("observed", "settings", "endpoint"),
    [
        ("8.8.8.8:77", {}, "8.8.8.8:4000"),
        ("10.0.0.1:77", {}, "127.0.0.1:4000"),
        ("8.8.8.8:77", {"endpoint": "9.9.9.9:5"}, "9.9.9.9:5"),
        ("8.8.8.8:77", {"endpoint": "name.example:5"}, "name.example:5"),
        ("junk", {}, "127.0.0.1:4000"),
        (5, {}, "127.0.0.1:4000"),
    ],
)
async def test_public_address_seen_by_the_registry_replaces_a_private_one(
    autojump_clock: MockClock, observed: Any, settings: dict[str, Any], endpoint: str
) -> None:
    setup = Setup(**settings)
    setup.client.answers["register"] = registered(observed_addr=observed)
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.state.endpoint == endpoint


async def test_key_is_settled_before_it_is_registered(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup()
    setup.settled = [unavailable(), refused("node 7: node not found"), None]
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert setup.client.of("register")[0].at == pytest.approx(0.25)
        assert "cannot tell which key is registered" in caplog.text


# A registry that is not there


async def test_start_keeps_trying_with_growing_delays(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup()
    setup.client.answers["register"] = unavailable("dial tcp 127.0.0.1:9000: connection refused")
    async with setup.running():
        await trio.sleep(3600)
        times = [call.at for call in setup.client.calls]
        assert len(times) > 100
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert gaps[:3] == pytest.approx([0.25, 0.5, 1])
        assert max(gaps) == pytest.approx(15)
        assert not setup.enrolment.announced.is_set()
        assert "registry dial failed, retrying" in caplog.text
        setup.client.answers["register"] = registered()
        with trio.fail_after(31):
            await setup.enrolment.announced.wait()


@pytest.mark.parametrize("node_id", [None, 0, -1, "7", True, 1 << 32, 7.5])
async def test_registration_without_a_usable_id_is_no_registration(autojump_clock: MockClock, node_id: Any) -> None:
    setup = Setup()
    setup.client.answers["register"] = {"type": "register_ok", "node_id": node_id}
    async with setup.running():
        await trio.sleep(60)
        assert not setup.state.registered
        assert len(setup.client.calls) > 3


async def failure_of(setup: Setup) -> str:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with setup.running():
            await trio.sleep_forever()
    group = caught.value.subgroup(StartupError)
    assert group is not None
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf)


async def test_fail_fast_ends_after_ten_attempts(autojump_clock: MockClock) -> None:
    setup = Setup(fail_fast=True)
    setup.client.answers["register"] = unavailable("dial tcp: connection refused")
    started = trio.current_time()
    text = await failure_of(setup)
    assert text == "registry dial (after 10 attempts): registry: dial tcp: connection refused"
    assert len(setup.client.calls) == FAIL_FAST_ATTEMPTS
    assert trio.current_time() - started == pytest.approx(47.5 / 2)


async def test_fail_fast_ends_at_once_when_refused(autojump_clock: MockClock) -> None:
    setup = Setup(fail_fast=True)
    setup.client.answers["register"] = refused('owner "x" is already bound')
    assert await failure_of(setup) == 'register: registry: owner "x" is already bound'
    assert len(setup.client.calls) == 1


# Staying registered


async def test_heartbeats_follow_the_period(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.running():
        await trio.sleep(3 * BEAT + 1)
        beats = setup.client.of("heartbeat")
        assert [call.at for call in beats] == pytest.approx([BEAT, 2 * BEAT, 3 * BEAT])
        assert beats[0].timeout == 8
        check_signature(setup, beats[0].fields["signature"], "heartbeat:7")
        beat_events = [event.data for event in setup.events if event.topic == "agent.heartbeat"]
        assert beat_events == [{"address": "0:0000.0000.0007", "node_id": 7}] * 3
        assert setup.enrolment.statistics().heartbeats == 3


async def test_hostname_is_announced_every_minute_whoever_set_it(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.running():
        await trio.sleep(2 * ANNOUNCE_INTERVAL - 1)
        assert setup.client.of("set_hostname") == []
        setup.state.hostname = "by-pilotctl"
        await trio.sleep(2)
        setup.client.answers["set_hostname"] = unavailable()
        await trio.sleep(2 * ANNOUNCE_INTERVAL)
        assert [call.fields["hostname"] for call in setup.client.of("set_hostname")] == ["by-pilotctl"] * 3


@pytest.mark.parametrize("text", ["node 7: node not found", "signature verification failed"])
async def test_forgotten_node_registers_again_at_once(
    autojump_clock: MockClock, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(hostname="node-x", public=True, keepalive=50.0)
    setup.trusted = [NodeId(9), NodeId(7), NodeId(11)]
    async with setup.running():
        await setup.enrolment.announced.wait()
        await trio.sleep(1)
        setup.client.calls.clear()
        setup.events.clear()
        setup.client.answers["heartbeat"] = refused(text)
        await trio.sleep(50)
        after = setup.client.calls
        assert [call.type for call in after] == [
            "heartbeat",
            "register",
            "set_visibility",
            "set_hostname",
            "report_trust",
            "report_trust",
        ]
        assert 0.07 < after[1].at - after[0].at < 0.2
        assert [call.fields["peer_id"] for call in setup.client.of("report_trust")] == [9, 11]
        check_signature(setup, after[-1].fields["signature"], "report_trust:7:11")
        assert [(event.topic, event.data) for event in setup.events] == [
            ("node.reregistered", {"address": "0:0000.0000.0007"}),
            ("agent.registered", {"address": "0:0000.0000.0007", "node_id": 7, "reregistered": True}),
        ]
        (record,) = [record for record in caplog.records if record.message == "heartbeat failed"]
        assert record.kv["consecutive_failures"] == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("refusals", "again"), [(2, False), (3, True)])
async def test_other_refusals_count_to_three(autojump_clock: MockClock, refusals: int, again: bool) -> None:
    setup = Setup()
    async with setup.running():
        setup.client.answers["heartbeat"] = refused("request failed")
        await trio.sleep(refusals * BEAT + 1)
        assert (len(setup.client.of("register")) > 1) is again


async def test_a_good_heartbeat_forgives_earlier_refusals(autojump_clock: MockClock) -> None:
    setup = Setup()
    answers: Iterator[Answer] = iter(
        [refused(), refused(), {"type": "heartbeat_ok"}, refused(), refused(), {"type": "heartbeat_ok"}]
    )
    async with setup.running():
        setup.client.answers["heartbeat"] = lambda _: next(answers)
        await trio.sleep(6 * BEAT + 1)
        assert len(setup.client.of("register")) == 1


async def test_unanswered_heartbeat_is_repeated_soon_and_never_registers_again(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        setup.client.answers["heartbeat"] = unavailable("call timed out, connection likely half-open")
        await trio.sleep(BEAT + 150)
        gaps = [b.at - a.at for a, b in pairwise(setup.client.of("heartbeat"))]
        assert gaps[:5] == pytest.approx([0.5, 1, 2, 4, 8])
        assert max(gaps) == pytest.approx(15)
        assert len(setup.client.of("register")) == 1
        setup.client.answers["heartbeat"] = {"type": "heartbeat_ok"}
        await trio.sleep(31)
        assert setup.enrolment.statistics().heartbeats == 1


async def test_changed_id_is_adopted_and_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        setup.client.answers["heartbeat"] = refused("node 7: node not found")
        setup.client.answers["register"] = registered(12)
        await trio.sleep(BEAT + 1)
        assert setup.state.node_id == 12
        (record,) = [record for record in caplog.records if record.message == "re-registered with new node ID"]
        assert record.kv == {"old_node_id": 7, "new_node_id": 12}  # type: ignore[attr-defined]


async def test_failed_re_registration_is_tried_again_soon(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        setup.client.answers["heartbeat"] = refused("node 7: node not found")
        setup.client.answers["register"] = unavailable()
        await trio.sleep(BEAT + 20)
        assert 4 <= len(setup.client.of("register")) <= 8
        assert "re-registration failed" in caplog.text
        setup.client.answers["register"] = registered()
        await trio.sleep(40)
        assert setup.events[-1].topic == "agent.registered"


async def test_registering_again_is_tried_every_half_minute_at_least(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()
        setup.client.answers["heartbeat"] = refused("node 7: node not found")
        setup.client.answers["register"] = unavailable()
        await trio.sleep(1000)
        times = [call.at for call in setup.client.of("register")][-10:]
        assert max(later - earlier for earlier, later in pairwise(times)) <= 30.0


async def test_peer_that_the_registry_refuses_does_not_keep_others_from_being_reported(
    autojump_clock: MockClock,
) -> None:
    setup = Setup()
    setup.trusted = [NodeId(9), NodeId(11)]
    async with setup.running():
        await setup.enrolment.announced.wait()
        setup.client.answers["heartbeat"] = refused("node 7: node not found")
        setup.client.answers["report_trust"] = refused()
        await trio.sleep(BEAT + 1)
        assert [call.fields["peer_id"] for call in setup.client.of("report_trust")] == [9, 11]
        assert setup.events[-1].topic == "agent.registered"


async def test_node_can_be_cancelled_wherever_it_waits(autojump_clock: MockClock) -> None:
    for moment in (0.5, 1.5, 2.5, 3.5, 61, 62.5, 63.5):
        setup = Setup(hostname="x", public=True)
        setup.client.delay = 1
        started = trio.current_time()
        async with setup.running():
            await trio.sleep(moment)
        assert trio.current_time() - started == pytest.approx(moment)


@pytest.mark.parametrize(
    ("seen", "listen_addr"), [(Endpoint("198.51.100.7", 5), "198.51.100.7:5"), (None, "127.0.0.1:4000")]
)
async def test_a_node_that_has_moved_registers_where_it_is_now(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seen: Endpoint | None, listen_addr: str
) -> None:
    setup = Setup()
    async with setup.running():
        await setup.enrolment.announced.wait()

        async def discover(_client: BeaconClient) -> Endpoint | None:
            await trio.lowlevel.checkpoint()
            return seen

        monkeypatch.setattr(BeaconClient, "discover", discover)
        assert await setup.enrolment.renew()
        assert setup.client.of("register")[-1].fields["listen_addr"] == listen_addr
        assert setup.state.endpoint == listen_addr
        setup.client.answers["register"] = unavailable()
        assert not await setup.enrolment.renew()


async def test_a_given_endpoint_stays_what_it_is(autojump_clock: MockClock) -> None:
    setup = Setup(endpoint="203.0.113.1:7")
    async with setup.running():
        await setup.enrolment.announced.wait()
        assert await setup.enrolment.renew()
        assert setup.client.of("register")[-1].fields["listen_addr"] == "203.0.113.1:7"
