"""The simulated network itself, with plain sockets."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.net.network import Endpoint
from pilot_trio.testing import Link, NatType, Passage, SimulatedHost, SimulatedNetwork, run_simulation
from pilot_trio.testing import simulated_network as module

ANY = Endpoint("", 0)


async def receive_within(sock: module.SimulatedSocket, seconds: float) -> tuple[bytes, Endpoint] | None:
    with trio.move_on_after(seconds):
        return await sock.receive()
    return None


async def test_hosts_reach_each_other_by_address_and_name(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(link=Link(delay=0.25), names={"alias": "11.0.0.2"})
    alpha, beta = network.host("alpha"), network.host("beta")
    one, other = await alpha.open_udp(ANY), await beta.open_udp(Endpoint("0.0.0.0", 9000))
    assert other.endpoint == (beta.address, 9000)
    for name in ("beta", "alias", beta.address):
        one.send_nowait(b"hello", await alpha.resolve(Endpoint(name, 9000)))
        sent_at = trio.current_time()
        assert await other.receive() == (b"hello", one.endpoint)
        assert trio.current_time() - sent_at == pytest.approx(0.25)
    with pytest.raises(OSError, match="cannot resolve 'nobody'"):
        await alpha.resolve(Endpoint("nobody", 1))


async def test_a_host_reaches_itself_without_any_link(autojump_clock: MockClock) -> None:
    host = SimulatedNetwork(link=Link(loss=1.0)).host("alpha")
    sock = await host.open_udp(ANY)
    sock.send_nowait(b"me", Endpoint("127.0.0.1", sock.endpoint.port))
    assert await sock.receive() == (b"me", sock.endpoint)


async def test_addresses_and_ports_belong_to_one(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    alpha = network.host("alpha")
    with pytest.raises(ValueError, match="alpha"):
        network.host("alpha")
    sock = await alpha.open_udp(Endpoint("", 9000))
    with pytest.raises(OSError, match="in use"):
        await alpha.open_udp(Endpoint("127.0.0.1", 9000))
    with pytest.raises(OSError, match="has no address but"):
        await alpha.open_udp(Endpoint("11.0.0.99", 9000))
    sock.close()
    (await alpha.open_udp(Endpoint("", 9000))).close()


async def test_an_earlier_arrival_overtakes_the_one_waited_for(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    alpha, beta = network.host("alpha"), network.host("beta")
    one, other = await alpha.open_udp(ANY), await beta.open_udp(ANY)
    network.set_path(alpha, beta, Link(delay=1.0, reordering=1.0, reordering_delay=1.0))
    one.send_nowait(b"slow", other.endpoint)

    async def hurry() -> None:
        await trio.sleep(0.5)
        network.set_path(alpha, beta, Link(delay=0.1, reordering=1.0, reordering_delay=0.0))
        one.send_nowait(b"fast", other.endpoint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hurry)
        assert (await other.receive())[0] == b"fast"
        assert trio.current_time() == pytest.approx(autojump_clock.current_time())
        assert (await other.receive())[0] == b"slow"


async def test_a_batch_is_what_has_arrived(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(link=Link(delay=0.1))
    one, other = await network.host("a").open_udp(ANY), await network.host("b").open_udp(ANY)
    one.send_batch([(bytes([n]), other.endpoint) for n in range(3)])
    await trio.sleep(0.05)
    one.send_nowait(b"later", other.endpoint)
    assert [data for data, _ in await other.receive_batch()] == [b"\0", b"\1", b"\2"]
    assert [data for data, _ in await other.receive_batch()] == [b"later"]


async def test_closing_wakes_receive_and_loses_what_is_in_flight(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(link=Link(delay=1.0))
    one, other = await network.host("a").open_udp(ANY), await network.host("b").open_udp(Endpoint("", 9))
    one.send_nowait(b"x", other.endpoint)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await other.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await other.receive()
        other.close()
    again = await other._host.open_udp(Endpoint("", 9))
    assert await receive_within(again, 10) is None
    with pytest.raises(trio.ClosedResourceError):
        other.send_nowait(b"x", one.endpoint)


async def test_what_nobody_receives_is_bounded_and_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEFAULT_RECEIVE_BUFFER", 1000)
    monkeypatch.setattr(module, "IN_FLIGHT_MAX", 15)
    network = SimulatedNetwork(link=Link(delay=0.1))
    one, other = await network.host("a").open_udp(ANY), await network.host("b").open_udp(ANY)
    for _ in range(16):
        one.send_nowait(bytes(100), other.endpoint)
    assert network.statistics().in_flight == 15
    assert network.statistics().overflowed == 1
    await trio.sleep(1)
    assert len(await other.receive_batch()) == 10
    assert network.statistics().overflowed == 6
    assert network.statistics().in_flight == 0
    assert not one.send_nowait(bytes(65_508), other.endpoint)


async def test_directions_differ(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    alpha, beta = network.host("alpha"), network.host("beta")
    one, other = await alpha.open_udp(ANY), await beta.open_udp(ANY)
    network.set_path(alpha, beta, Link(), back=Link(loss=1.0))
    one.send_nowait(b"there", other.endpoint)
    other.send_nowait(b"back", one.endpoint)
    assert (await other.receive())[0] == b"there"
    assert await receive_within(one, 10) is None
    assert network.direction(beta, alpha).counted.lost == 1
    network.set_link(Link())
    other.send_nowait(b"back", one.endpoint)
    assert (await one.receive())[0] == b"back"
    assert network.statistics().links.sent == 3


async def test_what_a_path_carries_may_be_less_than_its_host_knows_and_change(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(link=Link(delay=0.1))
    alpha, beta = network.host("alpha"), network.host("beta")
    one, other = await alpha.open_udp(ANY), await beta.open_udp(ANY)
    network.set_mtu(alpha, beta, 1400)
    assert alpha.route_mtu(other.endpoint) == 1500
    alpha.mtu = 9000
    assert alpha.route_mtu(other.endpoint) == 9000
    assert alpha.route_mtu(one.endpoint) == alpha.route_mtu(Endpoint("localhost", 1)) == 65_535
    for mtu, received in ((1400, [1372, 20]), (9000, [1373, 1372, 20]), (1280, [20])):
        network.set_mtu(alpha, beta, mtu)
        for size in (1373, 1372, 20):
            one.send_nowait(bytes(size), other.endpoint)
        for size in received:
            assert await receive_within(other, 0.2) == (bytes(size), one.endpoint)
            assert network.direction(alpha, beta).link.delay == 0.1
    assert await receive_within(other, 1) is None
    assert network.statistics().links.too_long == 3


async def test_partitions_concern_their_groups_only_and_heal(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    hosts = [network.host(name) for name in ("a", "b", "c", "d")]
    socks = [await host.open_udp(ANY) for host in hosts]

    async def reached() -> set[str]:
        for sock in socks:
            for number, other in enumerate(socks):
                if other is not sock:
                    sock.send_nowait(bytes([number]), other.endpoint)
        pairs = set()
        for host, sock in zip(hosts, socks, strict=True):
            while (got := await receive_within(sock, 0.1)) is not None:
                pairs.add(next(h.name for h in hosts if h.address == got[1].host) + host.name)
        return pairs

    everything = {one.name + other.name for one in hosts for other in hosts if one is not other}
    assert await reached() == everything
    network.partition(hosts[:1], hosts[1:2], hosts[2:3])
    assert await reached() == everything - {"ab", "ba", "ac", "ca", "bc", "cb"}
    network.heal()
    network.block([hosts[0]], hosts)
    assert await reached() == everything - {"ab", "ac", "ad"}
    network.heal()
    network.isolate(hosts[3])
    assert await reached() == everything - {"ad", "bd", "cd", "da", "db", "dc"}
    network.heal()
    assert await reached() == everything
    assert network.statistics().blocked == 6 + 3 + 6


async def test_tcp_connects_hangs_in_a_partition_and_goes_on(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(link=Link(loss=1.0))  # which concerns UDP only
    alpha, beta = network.host("alpha"), network.host("beta")
    listener = await beta.listen_tcp(Endpoint("", 9000))
    client = await alpha.open_tcp(Endpoint("beta", 9000))
    server = await listener.accept()
    assert server.remote_endpoint.host == alpha.address  # type: ignore[attr-defined]
    network.partition([alpha], [beta])
    await client.send_all(b"patience")
    with trio.move_on_after(3600) as scope:
        await server.receive_some()
    assert scope.cancelled_caught
    with trio.move_on_after(3600) as scope:
        await alpha.open_tcp(Endpoint("beta", 9000))
    assert scope.cancelled_caught
    await client.aclose()
    await server.send_all(b"nobody told me yet")
    network.heal()
    assert await server.receive_some() == b"patience"
    assert await server.receive_some() == b""
    await alpha.open_tcp(Endpoint("beta", 9000))
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError):
        await alpha.open_tcp(Endpoint("beta", 9000))


async def pair_behind(kind: NatType) -> tuple[SimulatedNetwork, SimulatedHost, SimulatedHost]:
    network = SimulatedNetwork()
    return network, network.host("inside", nat=kind), network.host("outside")


@pytest.mark.parametrize("kind", NatType)
async def test_a_host_behind_a_nat_is_answered_but_not_called(kind: NatType, autojump_clock: MockClock) -> None:
    network, inside, outside = await pair_behind(kind)
    hidden, public = await inside.open_udp(ANY), await outside.open_udp(ANY)
    public.send_nowait(b"anybody?", hidden.endpoint)  # a private address means nothing out here
    hidden.send_nowait(b"hello", public.endpoint)
    data, source = await public.receive()
    assert data == b"hello"
    assert inside.nat is not None
    assert source.host == inside.nat.address
    public.send_nowait(b"hello yourself", source)
    assert await hidden.receive() == (b"hello yourself", public.endpoint)
    inside.rebind()
    public.send_nowait(b"still there?", source)
    assert await receive_within(hidden, 10) is None
    hidden.send_nowait(b"here", public.endpoint)
    assert (await public.receive())[1] != source
    assert network.statistics().filtered == 1
    assert network.statistics().nobody == 1
    with pytest.raises(ValueError, match="not behind a NAT"):
        outside.rebind()


async def test_neighbours_behind_one_router_reach_each_other_inside_only(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    home = network.router(NatType.FULL_CONE)
    one, other, far = network.host("one", nat=home), network.host("other", nat=home), network.host("far")
    a, b, c = [await host.open_udp(ANY) for host in (one, other, far)]
    a.send_nowait(b"lan", b.endpoint)
    assert await b.receive() == (b"lan", a.endpoint)
    b.send_nowait(b"wan", c.endpoint)
    _, seen_as = await c.receive()
    a.send_nowait(b"hairpin", seen_as)
    assert await receive_within(b, 10) is None
    listener = await other.listen_tcp(Endpoint("", 80))
    await one.open_tcp(listener.endpoint)
    with pytest.raises(ConnectionRefusedError):
        await far.open_tcp(listener.endpoint)
    with pytest.raises(ConnectionRefusedError):
        await far.open_tcp(Endpoint(home.address, 80))


async def test_the_observer_sees_every_datagram(autojump_clock: MockClock) -> None:
    seen: list[Passage] = []
    network = SimulatedNetwork(link=Link(delay=0.5), observer=seen.append)
    one, other = await network.host("a").open_udp(ANY), await network.host("b").open_udp(ANY)
    now = trio.current_time()
    one.send_nowait(b"12345", other.endpoint)
    one.send_nowait(b"", Endpoint("11.0.0.77", 5))
    one.send_nowait(b"", Endpoint(other.endpoint.host, 5))
    assert seen == [
        Passage(now, "a", "b", 5, "carried", (now + 0.5,)),
        Passage(now, "a", "11.0.0.77:5", 0, "nobody", ()),
        Passage(now, "a", "b", 0, "nobody", (now + 0.5,)),
    ]


async def chatter(seed: int) -> str:
    """Three hosts that answer each other over a bad network; return what the network saw."""
    link = Link(delay=0.01, jitter=0.02, loss=0.1, duplication=0.1, reordering=0.1, corruption=0.1)
    network = SimulatedNetwork(seed=seed, link=link)
    socks = [await network.host(str(n)).open_udp(ANY) for n in range(3)]

    async def answer(sock: module.SimulatedSocket) -> None:
        for _ in range(60):
            data, _ = await sock.receive()
            for other in socks:
                if other is not sock:
                    sock.send_nowait(data + b".", other.endpoint)

    socks[0].send_batch([(bytes(n), socks[1].endpoint) for n in range(5)])
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(answer, sock)
    return network.fingerprint()


def test_equal_seeds_repeat_to_the_last_datagram() -> None:
    first = [run_simulation(chatter, seed, seed=seed) for seed in range(5)]
    assert first == [run_simulation(chatter, seed, seed=seed) for seed in range(5)]
    assert len(set(first)) == 5


def test_the_fingerprint_covers_what_was_sent_and_not_only_when() -> None:
    async def say(words: bytes) -> str:
        network = SimulatedNetwork()
        one, other = await network.host("a").open_udp(ANY), await network.host("b").open_udp(ANY)
        one.send_nowait(words, other.endpoint)
        return network.fingerprint()

    assert run_simulation(say, b"yes") == run_simulation(say, b"yes") != run_simulation(say, b"not")


def test_the_module_random_and_a_hosts_entropy_come_from_the_seed_inside_only() -> None:
    async def draw(seed: int) -> tuple[float, bytes, bytes]:
        network = SimulatedNetwork(seed=seed)
        return random.random(), network.host("a").random_bytes(16), network.host("b").random_bytes(16)

    outside = random.getstate()
    first = run_simulation(draw, 1, seed=1)
    assert random.getstate() == outside
    assert run_simulation(draw, 1, seed=1) == first
    assert len({*first, *run_simulation(draw, 2, seed=2)}) == 6


def test_waiting_for_all_tasks_comes_before_a_jump_of_the_clock() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def sleeper() -> None:
            await trio.sleep(1)
            seen.append("slept")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await wait_all_tasks_blocked()
            seen.append(f"all wait at {trio.current_time():g}")
        return seen

    assert run_simulation(main) == ["all wait at 0", "slept"]


async def test_a_host_has_a_calendar_and_may_have_slept(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork()
    one, other = network.host("a"), network.host("b")
    assert one.wall_time() == other.wall_time() > 1_700_000_000
    await trio.sleep(60)
    one.clock_error = -3600.0
    one.slept = 7200.0
    assert other.wall_time() - one.wall_time() == pytest.approx(3600)
    assert one.clock() - other.clock() == 7200
    assert one.wall_time_ns() == pytest.approx(one.wall_time() * 1e9)
