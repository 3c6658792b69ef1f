from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.self_watch import ADDRESS_INTERVAL, MOVED_GAP, RENEW_ATTEMPTS, SECOND_ANNOUNCEMENT, SelfWatch
from pilot_trio.daemon.state import TunnelStatistics
from pilot_trio.net.network import Endpoint, SystemNetwork
from pilot_trio.proto.rx_watch import DIALS_MIN, LOOK_INTERVAL, PATIENCE, RESUMED_AFTER, SENT_MIN, SILENCE
from tests.daemon.fakes import make_state, record_events

BEACON = Endpoint("192.0.2.9", 9001)
A, B = "192.0.2.1", "192.0.2.2"
PEERS = 2


class Tunnels:
    def __init__(self) -> None:
        self.told: list[float] = []

    def moved(self) -> int:
        self.told.append(trio.current_time())
        return PEERS


class Beacon:
    def __init__(self) -> None:
        self.address: Endpoint | None = None
        self.announced: list[float] = []
        self.on_observed: Callable[[Endpoint], None] = lambda _endpoint: None
        self.on_switched: Callable[[], None] = lambda: None

    def announce(self) -> None:
        self.announced.append(trio.current_time())


class Setup:
    def __init__(self, *, registered: bool = True) -> None:
        self.state = make_state(7 if registered else 0)
        self.tunnels, self.beacon = Tunnels(), Beacon()
        self.bus = EventBus()
        self.events = record_events(self.bus)
        self.host: str | None = A
        self.renewals = 0
        self.rebound: list[float] = []
        self.failures = 0
        self.asleep = 0.0
        self.watch = SelfWatch(
            state=self.state,
            tunnels=self.tunnels,
            beacon=self.beacon,
            renew=self.renew,
            rebind=self.rebind,
            events=self.bus,
            source_host=lambda _beacon: self.host,
            clock=lambda: trio.current_time() + self.asleep,
        )

    async def renew(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.renewals += 1
        if self.failures:
            self.failures -= 1
            return False
        return True

    async def rebind(self) -> None:
        await trio.lowlevel.checkpoint()
        self.rebound.append(trio.current_time())

    def data(self, topic: str) -> list[Any]:
        return [event.data for event in self.events if event.topic == topic]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.watch_address)
            nursery.start_soon(self.watch.watch_receiving)
            await trio.sleep(ADDRESS_INTERVAL / 2)
            yield
            nursery.cancel_scope.cancel()


async def test_a_new_address_is_told_to_beacon_peers_and_registry(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.watching():
        await trio.sleep(10)  # without a beacon nothing is looked up
        setup.beacon.address = BEACON
        await trio.sleep(10)
        setup.host = B
        await trio.sleep(40)
        start = setup.beacon.announced[0]
        assert setup.beacon.announced == [start, start + SECOND_ANNOUNCEMENT]
        assert setup.tunnels.told == [start]
        assert setup.renewals == 1
        assert setup.data("tunnel.addr_changed") == [
            {"reason": "local_address", "previous": A, "current": B, "peers_notified": PEERS, "registry_ok": True}
        ]


@pytest.mark.parametrize("failures", [RENEW_ATTEMPTS - 1, RENEW_ATTEMPTS])
async def test_the_registry_is_asked_three_times(autojump_clock: MockClock, failures: int) -> None:
    setup = Setup()
    setup.beacon.address = BEACON
    setup.failures = failures
    async with setup.watching():
        await trio.sleep(2)
        setup.host = B
        await trio.sleep(10)
        assert setup.renewals == RENEW_ATTEMPTS
        assert setup.data("tunnel.addr_changed")[0]["registry_ok"] == (failures < RENEW_ATTEMPTS)


async def test_before_the_registration_there_is_nothing_to_tell(autojump_clock: MockClock) -> None:
    setup = Setup(registered=False)
    setup.beacon.address = BEACON
    async with setup.watching():
        await trio.sleep(2)
        setup.host = B
        await trio.sleep(300)
        assert not setup.events
        assert setup.beacon.announced == []


async def test_a_network_that_cannot_say_is_not_asked_again(autojump_clock: MockClock) -> None:
    setup = Setup()
    setup.beacon.address = BEACON
    setup.host = None
    async with setup.watching():
        await trio.sleep(2)
        setup.host = A
        await trio.sleep(2)
        setup.host = B
        await trio.sleep(10)
        assert setup.beacon.announced == []


async def test_what_the_beacon_sees_is_confirmed_before_it_counts(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.watching():
        setup.beacon.on_observed(Endpoint("198.51.100.1", 5))
        setup.beacon.on_observed(Endpoint("198.51.100.2", 5))
        assert len(setup.beacon.announced) == 1  # the question
        await trio.sleep(1)
        assert setup.renewals == 0
        setup.beacon.on_observed(Endpoint("198.51.100.2", 5))
        await trio.sleep(1)
        (data,) = setup.data("tunnel.addr_changed")
        assert (data["reason"], data["current"]) == ("observed_endpoint", "198.51.100.2:5")
        setup.beacon.on_switched()
        setup.beacon.on_observed(Endpoint("198.51.100.1", 5))
        setup.beacon.on_observed(Endpoint("198.51.100.1", 5))
        await trio.sleep(100)
        assert len(setup.data("tunnel.addr_changed")) == 1


async def test_peers_are_told_of_another_port_at_once_and_the_registry_when_it_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    setup = Setup()
    async with setup.watching():
        setup.beacon.on_observed(Endpoint("198.51.100.1", 5))
        setup.beacon.on_observed(Endpoint("198.51.100.1", 6))
        assert len(setup.tunnels.told) == 1
        await trio.sleep(1)
        assert setup.renewals == 0
        setup.beacon.on_observed(Endpoint("198.51.100.1", 6))
        await trio.sleep(1)
        assert setup.renewals == 1
        # A beacon that names another port each time cannot keep us busy.
        told = len(setup.tunnels.told)
        for port in range(100):
            setup.beacon.on_observed(Endpoint("198.51.100.1", 10 + port))
            await trio.sleep(0.1)
        assert len(setup.tunnels.told) - told <= 10 / MOVED_GAP
        assert setup.renewals == 1


async def test_silence_is_answered_by_registering_anew_and_its_end_is_told(autojump_clock: MockClock) -> None:
    setup = Setup()
    traffic = TunnelStatistics(packets_sent=0)
    setup.state.tunnel_source = lambda: traffic
    async with setup.watching():
        traffic.packets_sent = SENT_MIN
        await trio.sleep(SILENCE)
        assert setup.data("tunnel.rx_silence") == [
            {
                "reason": "inbound-silent",
                "silent_for_seconds": int(SILENCE),
                "pkts_sent_during_silence": SENT_MIN,
                "dial_timeouts": 0,
                "attempt": 1,
            }
        ]
        assert setup.rebound == []
        assert len(setup.tunnels.told) == 1
        assert (setup.renewals, len(setup.beacon.announced)) == (1, 1)
        traffic.packets_received = 1
        await trio.sleep(LOOK_INTERVAL)
        assert setup.data("tunnel.rx_recovered") == [
            {"silent_for_seconds": int(SILENCE + LOOK_INTERVAL), "soft_attempts": 1}
        ]
        assert setup.renewals == 1


async def test_if_that_does_not_help_the_socket_is_exchanged_and_never_the_process_ended(
    autojump_clock: MockClock,
) -> None:
    setup = Setup()
    traffic = TunnelStatistics(packets_sent=SENT_MIN)
    setup.state.tunnel_source = lambda: traffic
    async with setup.watching():
        await trio.sleep(SILENCE + 2 * LOOK_INTERVAL)
        assert len(setup.rebound) == 2
        await trio.sleep(PATIENCE + LOOK_INTERVAL)
        assert len(setup.rebound) == 3
        assert [data["attempt"] for data in setup.data("tunnel.rx_silence")] == [1, 2, 3, 4]


async def test_dials_that_nobody_answers_are_a_reason_to_register_anew_but_not_for_another_socket(
    autojump_clock: MockClock,
) -> None:
    setup = Setup()
    traffic = TunnelStatistics()
    setup.state.tunnel_source = lambda: traffic
    async with setup.watching():
        setup.state.dials_unanswered = DIALS_MIN
        for _ in range(3):
            traffic.packets_received += 1
            await trio.sleep(LOOK_INTERVAL)
        assert {data["reason"] for data in setup.data("tunnel.rx_silence")} == {"outbound-dial-wedged"}
        assert (setup.renewals, setup.rebound) == (3, [])
        setup.state.dials_unanswered = 0
        await trio.sleep(LOOK_INTERVAL)
        assert len(setup.data("tunnel.rx_recovered")) == 1


async def test_a_suspended_machine_announces_itself_when_it_wakes(autojump_clock: MockClock) -> None:
    setup = Setup()
    async with setup.watching():
        await trio.sleep(LOOK_INTERVAL)
        setup.asleep = RESUMED_AFTER
        await trio.sleep(LOOK_INTERVAL)
        assert setup.data("tunnel.host_resumed") == [{"gap_seconds": int(RESUMED_AFTER + LOOK_INTERVAL)}]
        assert (setup.renewals, len(setup.beacon.announced), len(setup.tunnels.told)) == (1, 1, 1)


async def test_the_systems_answers() -> None:
    network = SystemNetwork()
    assert network.source_host(Endpoint("127.0.0.1", 9)) == "127.0.0.1"
    assert network.source_host(Endpoint("no literal", 9)) == ""
    assert network.clock() <= network.clock()
