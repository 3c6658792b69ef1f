"""The batched UDP socket: on loopback, and over sockets that fail as kernels do."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pilot_trio.net.network import DEFAULT_RECEIVE_BUFFER, DatagramSocket, Endpoint, SystemNetwork
from pilot_trio.net.udp import (
    BUFFER_WANTED,
    FEW,
    GREEDY_PROBE,
    RECEIVE_BATCH_MAX,
    SEGMENT_MAX,
    SEGMENT_USUAL,
    SEGMENTS_MAX,
    SEND_QUEUE_MAX,
    Addr,
    UDPSocket,
)

NOWHERE = ("127.0.0.1", 9)


class FaultySocket(socket.socket):
    """A UDP socket whose calls fail as scripted; every call is noted."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.bind(("127.0.0.1", 0))
        self.refuse: Callable[[str, int], int] = lambda call, number: 0  # returns an errno, 0 for none
        self.calls: list[str] = []

    def _maybe_fail(self, call: str) -> None:
        self.calls.append(call)
        number = self.refuse(call, self.calls.count(call))
        if number:
            raise OSError(number, "scripted")

    def sendto(self, *args: Any) -> int:
        self._maybe_fail("sendto")
        return super().sendto(*args)

    def sendmsg(self, *args: Any) -> int:
        self._maybe_fail("sendmsg")
        return super().sendmsg(*args)

    def recvmsg(self, *args: Any) -> Any:
        self._maybe_fail("recvmsg")
        return super().recvmsg(*args)


@contextmanager
def opened(**options: bool) -> Iterator[tuple[FaultySocket, UDPSocket, UDPSocket]]:
    """A socket with faults, the same wrapped, and a plain receiver."""
    faulty = FaultySocket()
    sender = UDPSocket(faulty, **options)
    receiver = UDPSocket(bound())
    try:
        yield faulty, sender, receiver
    finally:
        sender.close()
        receiver.close()


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


async def take(receiver: UDPSocket, number: int) -> list[bytes]:
    taken: list[bytes] = []
    with trio.fail_after(5):
        while len(taken) < number:
            taken += [data for data, _ in await receiver.receive_batch()]
    return taken


def numbered(number: int, size: int = 100) -> list[bytes]:
    return [index.to_bytes(4, "big") * (size // 4) for index in range(number)]


@pytest.mark.parametrize("segmentation", [True, False])
@pytest.mark.parametrize("coalescing", [True, False])
async def test_batch_arrives_whole_and_in_order(segmentation: bool, coalescing: bool) -> None:
    sizes = [1222] * 150 + [10] + [1222] * 3 + [SEGMENT_MAX + 1] * 2 + [0] + [600] * 70 + [601, 599]
    sent = [index.to_bytes(2, "big") * 1000 for index in range(len(sizes))]
    sent = [data[:size] for data, size in zip(sent, sizes, strict=True)]
    sender = UDPSocket(bound(), segmentation=segmentation, coalescing=coalescing)
    receiver = UDPSocket(bound(), segmentation=segmentation, coalescing=coalescing)
    assert sender.send_batch([(data, receiver.endpoint) for data in sent]) == []
    assert await take(receiver, len(sent)) == sent
    statistics = sender.statistics()
    assert statistics.sent == receiver.statistics().received == len(sent)
    if segmentation and statistics.segmentation:
        assert statistics.writes < len(sent) / 10
    else:
        assert statistics.writes == len(sent)
    sender.close()
    receiver.close()


async def test_datagrams_to_several_destinations_keep_their_order() -> None:
    with opened() as (_, sender, one):
        two = UDPSocket(bound())
        sent = numbered(40)
        sender.send_batch([(data, (one, two)[index % 3 == 0].endpoint) for index, data in enumerate(sent)])
        assert await take(one, 26) == [data for index, data in enumerate(sent) if index % 3]
        assert await take(two, 14) == [data for index, data in enumerate(sent) if index % 3 == 0]
        two.close()


async def test_source_of_each_datagram_is_told() -> None:
    with opened() as (_, sender, receiver):
        sender.send_batch([(b"x", receiver.endpoint)] * 3)
        batch = await receiver.receive_batch()
        assert {source for _, source in batch} == {tuple(sender.endpoint)}


# Segmentation


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
async def test_refused_segmentation_is_never_tried_again(number: int) -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: number if call == "sendmsg" and nth == 2 else 0
        sent = numbered(3 * SEGMENTS_MAX)
        sender.send_batch([(data, receiver.endpoint) for data in sent])
        assert await take(receiver, len(sent)) == sent
        assert faulty.calls.count("sendmsg") == 2
        assert not sender.statistics().segmentation
        sender.send_batch([(data, receiver.endpoint) for data in sent])
        assert await take(receiver, len(sent)) == sent
        assert faulty.calls.count("sendmsg") == 2
        assert sender.statistics().dropped == 0


async def test_a_link_too_narrow_for_large_pieces_gets_them_whole_and_the_small_ones_still_in_one_call() -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: errno.EINVAL if call == "sendmsg" and nth == 1 else 0
        large, small = numbered(3, SEGMENT_USUAL + 4), numbered(3)
        sender.send_batch([(data, receiver.endpoint) for data in [*large, *small]])
        assert await take(receiver, 6) == [*large, *small]
        assert faulty.calls == ["sendmsg", "sendto", "sendto", "sendto", "sendmsg"]
        assert sender.statistics().segmentation and not sender.statistics().dropped


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([100] * (SEGMENTS_MAX - 1), ["sendmsg"]),
        ([100] * SEGMENTS_MAX, ["sendmsg"]),
        ([100] * (SEGMENTS_MAX + 1), ["sendmsg", "sendto"]),
        ([100] * (SEGMENTS_MAX + 2), ["sendmsg", "sendmsg"]),
        ([100, 99], ["sendmsg"]),
        ([100, 99, 100], ["sendmsg", "sendto"]),
        ([99, 100], ["sendto", "sendto"]),
        ([100, 0], ["sendto", "sendto"]),
        ([SEGMENT_MAX, SEGMENT_MAX], ["sendmsg"]),
        ([SEGMENT_MAX + 1, SEGMENT_MAX + 1], ["sendto", "sendto"]),
        ([SEGMENT_MAX] * 8, ["sendmsg", "sendto"]),  # 7 fit into one call's bytes
        ([SEGMENT_USUAL] * 46, ["sendmsg", "sendto"]),  # 45 fit
    ],
)
async def test_what_leaves_in_one_call(sizes: list[int], calls: list[str]) -> None:
    with opened() as (faulty, sender, receiver):
        sender.send_batch([(bytes(size), receiver.endpoint) for size in sizes])
        assert faulty.calls == calls
        assert [len(data) for data in await take(receiver, len(sizes))] == sizes


# A full kernel buffer


@pytest.mark.parametrize("segmentation", [True, False])
async def test_what_the_kernel_has_no_room_for_leaves_later_in_order(segmentation: bool) -> None:
    with opened(segmentation=segmentation) as (faulty, sender, receiver):
        full = True
        faulty.refuse = lambda call, nth: errno.EAGAIN if call.startswith("send") and full and nth > 1 else 0
        sent = numbered(200)
        sender.send_batch([(data, receiver.endpoint) for data in sent[:150]])
        sender.send_batch([(data, receiver.endpoint) for data in sent[150:]])
        at_once = SEGMENTS_MAX if segmentation else 1
        assert sender.statistics().queued == len(sent) - at_once
        async with trio.open_nursery() as nursery:
            full = False
            nursery.start_soon(sender.send_queued)
            assert await take(receiver, len(sent)) == sent
            nursery.cancel_scope.cancel()
        assert sender.statistics().queued == sender.statistics().dropped == 0


async def test_next_batch_takes_what_waits_along() -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: errno.EAGAIN
        sender.send_batch([(b"first", receiver.endpoint)])
        faulty.refuse = lambda call, nth: 0
        sender.send_batch([(b"second", receiver.endpoint)])
        assert await take(receiver, 2) == [b"first", b"second"]


@pytest.mark.parametrize("number", [SEND_QUEUE_MAX - 1, SEND_QUEUE_MAX, SEND_QUEUE_MAX + 1])
async def test_what_exceeds_the_queue_is_dropped_and_counted(number: int) -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: errno.EAGAIN
        sender.send_batch([(data, receiver.endpoint) for data in numbered(number)])
        assert sender.statistics().queued == min(number, SEND_QUEUE_MAX)
        assert sender.statistics().dropped == max(0, number - SEND_QUEUE_MAX)


async def test_waiting_datagrams_wake_their_task_whenever_they_come() -> None:
    with opened() as (faulty, sender, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_queued)
            await wait_all_tasks_blocked()
            for word in (b"once", b"again"):
                faulty.refuse = lambda call, nth: errno.EAGAIN if call == "sendto" else 0
                sender.send_batch([(word, receiver.endpoint)])
                faulty.refuse = lambda call, nth: 0
                assert await take(receiver, 1) == [word]
            nursery.cancel_scope.cancel()


# Errors


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED])
async def test_destinations_without_a_way_are_told_and_the_rest_is_sent(number: int) -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: number if (call, nth) == ("sendto", 1) else 0
        assert sender.send_batch([(b"lost", NOWHERE), (b"sent", receiver.endpoint)]) == [NOWHERE]
        assert await take(receiver, 1) == [b"sent"]
        assert sender.statistics().dropped == sender.lost == 1


async def test_impossible_destination_is_not_blamed_on_segmentation() -> None:
    with opened() as (_, sender, receiver):
        sender.send_batch([(b"lost", ("127.0.0.1", 0))] * 5 + [(data, receiver.endpoint) for data in numbered(5)])
        assert await take(receiver, 5) == numbered(5)
        assert sender.statistics().segmentation
        assert sender.statistics().dropped == 5


@pytest.mark.parametrize(
    "to", [("255.255.255.255", 9), ("no such\udcffhost", 9), ("127.0.0.1", 70_000), ("127.0.0.1", -1), ("::1", 9)]
)
async def test_impossible_destinations_lose_their_datagrams_only(to: Addr) -> None:
    with opened() as (_, sender, receiver):
        assert sender.send_batch([(b"lost", to), (b"lost", to), (b"sent", receiver.endpoint)]) == []
        assert await take(receiver, 1) == [b"sent"]


async def test_datagram_larger_than_any_is_lost() -> None:
    with opened() as (_, sender, receiver):
        sender.send_batch(
            [(bytes(65_507), receiver.endpoint), (bytes(65_508), receiver.endpoint), (b"", receiver.endpoint)]
        )
        assert [len(data) for data in await take(receiver, 2)] == [65_507, 0]
        assert sender.statistics().dropped == 1


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EIO])
async def test_reading_goes_on_after_an_error(number: int) -> None:
    with opened() as (faulty, receiver, sender):
        faulty.refuse = lambda call, nth: number if (call, nth) == ("recvmsg", 1) else 0
        sender.send_batch([(b"after", receiver.endpoint)])
        assert await take(receiver, 1) == [b"after"]


# Turns


async def test_one_turn_is_bounded() -> None:
    with opened(coalescing=False) as (_, receiver, sender):
        sent = numbered(2 * RECEIVE_BATCH_MAX)
        sender.send_batch([(data, receiver.endpoint) for data in sent])
        await take(receiver, 1)  # a burst is noticed at the second datagram
        rest = await receiver.receive_batch()
        assert len(rest) <= RECEIVE_BATCH_MAX


async def test_lone_datagrams_are_read_once_and_now_and_then_twice() -> None:
    with opened() as (faulty, receiver, sender):
        rounds = 4 * (GREEDY_PROBE + 1)
        for _ in range(rounds):
            sender.send_batch([(b"x", receiver.endpoint)])
            assert await take(receiver, 1) == [b"x"]
        assert faulty.calls.count("recvmsg") == rounds + 4


async def test_a_few_joined_datagrams_are_read_once_and_more_of_them_until_nothing_is_left() -> None:
    with opened() as (faulty, receiver, sender):
        if not receiver.statistics().coalescing:
            pytest.skip("this kernel joins no datagrams")
        for count, reads in ((FEW, 1), (FEW + 1, 2)):
            faulty.calls.clear()
            sender.send_batch([(b"x", receiver.endpoint)] * count)
            assert await take(receiver, count) == [b"x"] * count
            assert faulty.calls.count("recvmsg") == reads


async def test_burst_is_drained_in_few_turns() -> None:
    with opened(coalescing=False) as (_, receiver, sender):
        turns = 0
        for _ in range(20):
            sender.send_batch([(data, receiver.endpoint) for data in numbered(30)])
            taken = 0
            while taken < 30:
                taken += len(await receiver.receive_batch())
                turns += 1
        assert turns <= 20 + GREEDY_PROBE + 1


async def test_cancelled_receive_loses_nothing() -> None:
    with opened() as (_, receiver, sender):
        with trio.move_on_after(0.01) as scope:
            await receiver.receive_batch()
        assert scope.cancelled_caught
        sender.send_batch([(b"kept", receiver.endpoint)])
        with trio.CancelScope() as scope:
            scope.cancel()
            await receiver.receive_batch()
        assert await take(receiver, 1) == [b"kept"]


@pytest.mark.parametrize("wait", [UDPSocket.receive_batch, UDPSocket.send_queued])
async def test_close_wakes_who_waits(wait: Callable[[UDPSocket], Any]) -> None:
    with opened() as (_, sock, _other):
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wait(sock)

            nursery.start_soon(waits)
            await wait_all_tasks_blocked()
            sock.close()
            sock.close()
        with pytest.raises(trio.ClosedResourceError):
            await wait(sock)
        with pytest.raises(trio.ClosedResourceError):
            sock.send_batch([(b"x", NOWHERE)])


async def test_close_wakes_who_waits_for_room() -> None:
    with opened() as (faulty, sender, receiver):
        faulty.refuse = lambda call, nth: errno.EAGAIN
        sender.send_batch([(b"x", receiver.endpoint)])
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await sender.send_queued()

            faulty.refuse = lambda call, nth: errno.EAGAIN
            nursery.start_soon(waits)
            await trio.sleep(0.01)
            sender.close()


# What the system grants


def test_buffers_are_as_large_as_the_system_allows() -> None:
    class Modest(FaultySocket):
        def setsockopt(self, level: int, option: int, value: Any, *rest: Any) -> None:
            if level == socket.SOL_SOCKET and option in (32, 33):
                raise PermissionError(errno.EPERM, "scripted")
            super().setsockopt(level, option, value, *rest)

    sock = Modest()
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    udp = UDPSocket(sock)
    assert before <= udp.receive_buffer == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * BUFFER_WANTED
    assert udp.statistics().send_buffer == sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    udp.close()


async def test_ipv6_socket_speaks_with_ipv4_hosts_by_their_usual_names() -> None:
    try:
        dual = await SystemNetwork().open_udp(Endpoint("::", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    plain = await SystemNetwork().open_udp(Endpoint("127.0.0.1", 0))
    plain.send_nowait(b"hello", Endpoint("127.0.0.1", dual.endpoint.port))
    assert await dual.receive() == (b"hello", plain.endpoint)
    dual.send_batch([(b"answer", plain.endpoint)] * 3)
    assert (await plain.receive())[0] == b"answer"
    dual.close()
    plain.close()


# The seam


@asynccontextmanager
async def system_pair() -> AsyncIterator[tuple[DatagramSocket, DatagramSocket]]:
    network = SystemNetwork()
    one, two = await network.open_udp(Endpoint("127.0.0.1", 0)), await network.open_udp(Endpoint("127.0.0.1", 0))
    yield one, two
    one.close()
    two.close()


async def test_single_and_batched_reading_mix_without_loss() -> None:
    async with system_pair() as (one, two):
        sent = numbered(10)
        one.send_batch([(data, two.endpoint) for data in sent])
        first, source = await two.receive()
        assert (first, source) == (sent[0], one.endpoint)
        rest: list[bytes] = []
        while len(rest) < 9:
            rest += [data for data, _ in await two.receive_batch()]
        assert rest == sent[1:]
        statistics = two.statistics()
        assert statistics is not None
        assert statistics.received == 10
        assert two.receive_buffer == statistics.receive_buffer


async def test_send_nowait_says_what_was_lost() -> None:
    async with system_pair() as (one, two):
        assert one.send_nowait(b"x", two.endpoint)
        assert not one.send_nowait(bytes(65_508), two.endpoint)


async def test_socket_with_nothing_but_the_abstract_methods_has_the_batched_ones() -> None:
    class Minimal(DatagramSocket):
        sent: list[tuple[bytes, Endpoint]] = []  # noqa: RUF012 - one instance

        @property
        def endpoint(self) -> Endpoint:
            return Endpoint("127.0.0.1", 1)

        async def receive(self) -> tuple[bytes, Endpoint]:
            await trio.lowlevel.checkpoint()
            return b"in", Endpoint("127.0.0.1", 2)

        def send_nowait(self, data: bytes, to: Endpoint) -> bool:
            self.sent.append((data, to))
            return True

        def close(self) -> None:
            raise AssertionError("not in this test")

    sock = Minimal()
    assert await sock.receive_batch() == [(b"in", ("127.0.0.1", 2))]
    assert list(sock.send_batch([(b"a", NOWHERE), (b"b", NOWHERE)])) == []
    assert sock.sent == [(b"a", Endpoint(*NOWHERE)), (b"b", Endpoint(*NOWHERE))]
    assert sock.receive_buffer == DEFAULT_RECEIVE_BUFFER
    assert sock.statistics() is None
    with trio.move_on_after(0.01) as scope:
        await sock.send_queued()
    assert scope.cancelled_caught
