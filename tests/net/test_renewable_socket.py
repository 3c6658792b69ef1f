from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.net.network import DatagramSocket, Endpoint, Network, SystemNetwork
from pilot_trio.net.renewable_socket import REOPEN_PAUSE, RenewableSocket
from pilot_trio.testing import MemoryNetwork

ANY = Endpoint("127.0.0.1", 0)
networks = pytest.mark.parametrize("make_network", [MemoryNetwork, SystemNetwork])


async def opened(network: Network, at: Endpoint = ANY) -> RenewableSocket:
    reopen = partial(network.open_udp, at)
    return RenewableSocket(await reopen(), reopen, keeps_port=at.port != 0)


@networks
async def test_who_waits_for_datagrams_does_not_notice(make_network: Callable[[], Network]) -> None:
    network = make_network()
    sock, other = await opened(network), await network.open_udp(ANY)
    received: list[bytes] = []

    async def read(*, batched: bool) -> None:
        if batched:
            received.extend(data for data, _ in await sock.receive_batch())
        else:
            received.append((await sock.receive())[0])

    for batched in (True, False):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(read, batched=batched))
            await wait_all_tasks_blocked()
            before = sock.endpoint
            await sock.renew()
            assert sock.endpoint != before
            assert other.send_nowait(b"hello", sock.endpoint)
    assert received == [b"hello"] * 2
    sock.send_batch([(b"from the new port", other.endpoint)])
    assert await other.receive() == (b"from the new port", sock.endpoint)
    sock.close()
    other.close()


@networks
async def test_a_port_that_was_named_is_kept(make_network: Callable[[], Network]) -> None:
    network = make_network()
    first = await network.open_udp(ANY)
    named = first.endpoint
    first.close()
    sock = await opened(network, named)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sock.send_queued)
        nursery.start_soon(sock.receive_batch)
        await wait_all_tasks_blocked()
        await sock.renew()
        assert sock.endpoint == named
        other = await network.open_udp(ANY)
        assert other.send_nowait(b"hello", named)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    sock.close()
    other.close()


async def test_a_port_that_is_still_taken_is_tried_again(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    failures = 3

    async def reopen() -> DatagramSocket:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EADDRINUSE, "taken")
        return await network.open_udp(ANY)

    sock = RenewableSocket(await network.open_udp(Endpoint("127.0.0.1", 4000)), reopen, keeps_port=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sock.renew)
        nursery.start_soon(sock.renew)  # waits for the first
        await wait_all_tasks_blocked()
        assert not sock.send_nowait(b"lost", Endpoint("127.0.0.1", 5000))
    assert trio.current_time() == 3 * REOPEN_PAUSE
    assert failures == 0
    sock.close()


@pytest.mark.parametrize("receive", ["receive", "receive_batch"])
async def test_closing_ends_it_for_good(receive: str) -> None:
    sock = await opened(MemoryNetwork())

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(sock, receive)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        sock.close()
    with pytest.raises(trio.ClosedResourceError):
        sock.send_nowait(b"", ANY)


async def test_giving_up_leaves_a_socket_that_can_be_renewed_later(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    taken = True

    async def reopen() -> DatagramSocket:
        if taken:
            raise OSError(errno.EADDRINUSE, "taken")
        return await network.open_udp(ANY)

    sock, other = RenewableSocket(await network.open_udp(ANY), reopen, keeps_port=True), await network.open_udp(ANY)
    received: list[bytes] = []

    async def read() -> None:
        try:
            while True:
                received.append((await sock.receive())[0])
        except trio.ClosedResourceError:
            received.append(b"closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.move_on_after(10):
            await sock.renew()
        await wait_all_tasks_blocked()  # a node that ends gives up first, and its receivers only then
        assert not sock.send_nowait(b"lost", other.endpoint)
        taken = False
        await sock.renew()
        other.send_nowait(b"hello", sock.endpoint)
        await trio.sleep(1)
        assert received == [b"hello"]
        taken = True
        with trio.move_on_after(10):
            await sock.renew()
        sock.close()
    assert received == [b"hello", b"closed"]
    other.close()
