"""The in-memory network, checked against the operating system's where both can do the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pilot_trio.net.network import Endpoint, Network, SystemNetwork
from pilot_trio.testing import MemoryNetwork
from pilot_trio.testing.memory_network import TCP_BACKLOG, UDP_QUEUE

both = pytest.mark.parametrize("make_network", [MemoryNetwork, SystemNetwork])
FREE = Endpoint("127.0.0.1", 0)


@both
async def test_tcp_connects_carries_bytes_both_ways_and_ends(make_network: Callable[[], Network]) -> None:
    network = make_network()
    listener = await network.listen_tcp(FREE)
    assert listener.endpoint.host == "127.0.0.1"
    assert listener.endpoint.port > 0
    client = await network.open_tcp(listener.endpoint)
    server = await listener.accept()
    await client.send_all(b"ping")
    assert await server.receive_some() == b"ping"
    await server.send_all(b"pong")
    assert await client.receive_some() == b"pong"
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()
    await listener.aclose()


@both
async def test_connecting_where_nobody_listens_is_refused(make_network: Callable[[], Network]) -> None:
    network = make_network()
    listener = await network.listen_tcp(FREE)
    await listener.aclose()
    with pytest.raises(OSError, match="connect"):
        await network.open_tcp(listener.endpoint)


@both
async def test_a_taken_tcp_port_is_refused_and_free_again_after_closing(make_network: Callable[[], Network]) -> None:
    network = make_network()
    first = await network.listen_tcp(FREE)
    with pytest.raises(OSError, match="in use"):
        await network.listen_tcp(first.endpoint)
    await first.aclose()
    again = await network.listen_tcp(first.endpoint)
    await again.aclose()


@both
async def test_closing_a_listener_wakes_accept(make_network: Callable[[], Network]) -> None:
    listener = await make_network().listen_tcp(FREE)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        await listener.aclose()


@both
async def test_serve_listeners_works_on_it(make_network: Callable[[], Network]) -> None:
    network = make_network()
    listener = await network.listen_tcp(FREE)

    async def shout(stream: trio.abc.Stream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk.upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [listener])
        async with await network.open_tcp(listener.endpoint) as client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"HELLO"
        nursery.cancel_scope.cancel()


@both
async def test_udp_carries_datagrams_whole_with_their_source(make_network: Callable[[], Network]) -> None:
    network = make_network()
    left, right = await network.open_udp(FREE), await network.open_udp(FREE)
    assert left.send_nowait(b"one", right.endpoint)
    assert left.send_nowait(b"", right.endpoint)
    assert await right.receive() == (b"one", left.endpoint)
    assert await right.receive() == (b"", left.endpoint)
    left.close()
    right.close()


@both
async def test_udp_to_nobody_is_lost_silently(make_network: Callable[[], Network]) -> None:
    network = make_network()
    left, gone = await network.open_udp(FREE), await network.open_udp(FREE)
    gone.close()
    assert left.send_nowait(b"into the void", gone.endpoint)
    left.close()


@both
async def test_udp_refuses_what_no_datagram_can_carry(make_network: Callable[[], Network]) -> None:
    network = make_network()
    left = await network.open_udp(FREE)
    assert left.send_nowait(bytes(65_507), left.endpoint)
    assert not left.send_nowait(bytes(65_508), left.endpoint)
    assert len((await left.receive())[0]) == 65_507
    left.close()


@both
async def test_closing_a_udp_socket_wakes_receive_and_forbids_sending(make_network: Callable[[], Network]) -> None:
    sock = await make_network().open_udp(FREE)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        sock.close()
    with pytest.raises(trio.ClosedResourceError):
        sock.send_nowait(b"x", FREE)


@both
async def test_literals_and_localhost_resolve_to_themselves(make_network: Callable[[], Network]) -> None:
    network = make_network()
    assert await network.resolve(Endpoint("127.0.0.1", 7)) == ("127.0.0.1", 7)
    assert (await network.resolve(Endpoint("localhost", 7))).port == 7


async def test_names_resolve_as_told_and_unknown_ones_fail() -> None:
    network = MemoryNetwork(names={"registry.example": "10.0.0.1"})
    listener = await network.listen_tcp(Endpoint("10.0.0.1", 9000))
    await network.open_tcp(Endpoint("registry.example", 9000))
    await listener.accept()
    with pytest.raises(OSError, match=r"cannot resolve 'nowhere\.example'"):
        await network.open_tcp(Endpoint("nowhere.example", 9000))


async def test_any_address_is_reachable_on_loopback_and_excludes_others() -> None:
    network = MemoryNetwork()
    await network.listen_tcp(Endpoint("", 9000))
    await network.open_tcp(Endpoint("127.0.0.1", 9000))
    with pytest.raises(OSError, match="in use"):
        await network.listen_tcp(Endpoint("127.0.0.1", 9000))
    sock = await network.open_udp(Endpoint("0.0.0.0", 9000))
    sock.send_nowait(b"me", Endpoint("127.0.0.1", 9000))
    assert await sock.receive() == (b"me", ("127.0.0.1", 9000))


async def test_a_refused_endpoint_is_restored() -> None:
    network = MemoryNetwork()
    listener = await network.listen_tcp(FREE)
    network.refuse(listener.endpoint)
    with pytest.raises(ConnectionRefusedError):
        await network.open_tcp(listener.endpoint)
    network.restore(listener.endpoint)
    await network.open_tcp(listener.endpoint)
    assert network.statistics().tcp_refused == 1
    assert network.statistics().tcp_opened == 1


async def test_a_black_hole_hangs_until_restored(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    listener = await network.listen_tcp(FREE)
    network.black_hole(listener.endpoint)
    with trio.move_on_after(3600) as scope:
        await network.open_tcp(listener.endpoint)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.open_tcp, listener.endpoint)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        network.restore(listener.endpoint)


async def test_broken_connections_fail_at_both_ends_and_only_those() -> None:
    network = MemoryNetwork()
    first, second = await network.listen_tcp(FREE), await network.listen_tcp(FREE)
    doomed, other = await network.open_tcp(first.endpoint), await network.open_tcp(second.endpoint)
    server = await first.accept()
    assert network.break_connections(first.endpoint) == 1
    assert network.break_connections(first.endpoint) == 0
    for stream in (doomed, server):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    await other.send_all(b"fine")
    assert await (await second.accept()).receive_some() == b"fine"


async def test_the_tcp_backlog_is_bounded() -> None:
    network = MemoryNetwork()
    listener = await network.listen_tcp(FREE)
    for _ in range(TCP_BACKLOG):
        await network.open_tcp(listener.endpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.open_tcp, listener.endpoint)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await listener.accept()


async def test_udp_beyond_the_queue_is_dropped_and_counted() -> None:
    network = MemoryNetwork()
    sock = await network.open_udp(FREE)
    for _ in range(UDP_QUEUE + 1):
        assert sock.send_nowait(b"x", sock.endpoint)
    assert network.statistics().udp_delivered == UDP_QUEUE
    assert network.statistics().udp_dropped == 1


async def test_the_udp_filter_decides_what_is_lost() -> None:
    network = MemoryNetwork(udp_filter=lambda data, source, to: data != b"bad")
    sock = await network.open_udp(FREE)
    sock.send_nowait(b"bad", sock.endpoint)
    sock.send_nowait(b"good", sock.endpoint)
    assert (await sock.receive())[0] == b"good"
    assert network.statistics().udp_dropped == 1


async def test_a_listener_that_closes_turns_away_who_waits_and_ends_who_was_not_accepted() -> None:
    network = MemoryNetwork()
    listener = await network.listen_tcp(FREE)
    waiting = [await network.open_tcp(listener.endpoint) for _ in range(TCP_BACKLOG)]

    async def expect_refused() -> None:
        with pytest.raises(ConnectionRefusedError):
            await network.open_tcp(listener.endpoint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_refused)
        await wait_all_tasks_blocked()
        await listener.aclose()
    assert await waiting[0].receive_some() == b""


async def test_ports_handed_out_are_free_ones_and_end_some_day() -> None:
    network = MemoryNetwork()
    first = await network.listen_tcp(FREE)
    await network.listen_tcp(Endpoint("127.0.0.1", first.endpoint.port + 1))
    assert (await network.listen_tcp(FREE)).endpoint.port == first.endpoint.port + 2
    network._next_port = 65_535
    assert (await network.listen_tcp(FREE)).endpoint.port == 65_535
    with pytest.raises(OSError, match="no free port left"):
        await network.listen_tcp(FREE)


def test_jitter_comes_from_what_a_test_may_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        random.seed(seed)
        drawn.append(MemoryNetwork().random_source().random())
    assert drawn[0] == drawn[1] != drawn[2]
