"""Floods of datagrams, and the nodes that have to keep up with them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pilot_trio.daemon.pacing import (
    ANSWER_TIME,
    BURST,
    BURST_TIME,
    BURSTS_MAX,
    DATAGRAM_COST,
    LEFT_ALONE,
    NODES_MAX,
    Pacing,
)
from pilot_trio.errors import NoRoute

NODE = 2


class Nodes:
    """Nodes that answer a ping when they are told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers: list[trio.Event] = []
        self.refuse = False
        self.pacing = Pacing(self.ping)

    async def ping(self, node: int) -> None:
        self.asked.append(node)
        if self.refuse:
            raise NoRoute("nobody knows the way")
        self.answers.append(trio.Event())
        await self.answers[-1].wait()

    async def send_bursts(self, nursery: trio.Nursery, number: int, node: int = NODE) -> bool:
        """Send so many bursts; say whether that is too much."""
        for _ in range(number):
            self.pacing.count(node, 1, BURST, nursery)
        await wait_all_tasks_blocked()
        return self.pacing.crowded(node)


async def test_little_asks_nobody(nursery: trio.Nursery) -> None:
    nodes = Nodes()
    nodes.pacing.count(NODE, 1, BURST - DATAGRAM_COST - 1, nursery)
    await wait_all_tasks_blocked()
    assert nodes.asked == []
    nodes.pacing.count(NODE, 0, 1, nursery)
    await wait_all_tasks_blocked()
    assert nodes.asked == [NODE]


async def test_many_small_datagrams_weigh_more_than_their_bytes(nursery: trio.Nursery) -> None:
    nodes = Nodes()
    nodes.pacing.count(NODE, BURST // DATAGRAM_COST, 0, nursery)
    await wait_all_tasks_blocked()
    assert nodes.asked == [NODE]


async def test_a_sender_waits_for_one_of_eight_answers(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    nodes = Nodes()
    assert not await nodes.send_bursts(nursery, BURSTS_MAX - 1)
    await nodes.pacing.wait(NODE)
    assert await nodes.send_bursts(nursery, 1)
    assert nodes.asked == [NODE] * BURSTS_MAX
    gone_on = []

    async def wait(number: int) -> None:
        await nodes.pacing.wait(NODE)
        gone_on.append(number)

    nursery.start_soon(wait, 1)
    nursery.start_soon(wait, 2)
    await wait_all_tasks_blocked()
    assert gone_on == []
    nodes.answers[3].set()
    await wait_all_tasks_blocked()
    assert sorted(gone_on) == [1, 2]
    assert not nodes.pacing.crowded(NODE)
    assert await nodes.send_bursts(nursery, 1)


async def test_other_nodes_are_paced_on_their_own(nursery: trio.Nursery) -> None:
    nodes = Nodes()
    assert await nodes.send_bursts(nursery, BURSTS_MAX)
    assert not await nodes.send_bursts(nursery, 1, node=3)
    await nodes.pacing.wait(3)
    await nodes.pacing.wait(4)


async def test_who_does_not_answer_in_time_is_left_alone_for_a_while(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nodes = Nodes()
    began = trio.current_time()
    assert await nodes.send_bursts(nursery, BURSTS_MAX)
    await nodes.pacing.wait(NODE)
    assert trio.current_time() - began == pytest.approx(ANSWER_TIME)
    await wait_all_tasks_blocked()
    assert not await nodes.send_bursts(nursery, 3 * BURSTS_MAX)
    assert len(nodes.asked) == BURSTS_MAX
    await trio.sleep(LEFT_ALONE - 0.001)
    assert not await nodes.send_bursts(nursery, BURSTS_MAX)
    assert len(nodes.asked) == BURSTS_MAX
    await trio.sleep(0.002)
    assert await nodes.send_bursts(nursery, BURSTS_MAX)
    assert len(nodes.asked) == 2 * BURSTS_MAX


async def test_who_cannot_be_asked_holds_up_nobody(nursery: trio.Nursery) -> None:
    nodes = Nodes()
    nodes.refuse = True
    await nodes.send_bursts(nursery, BURSTS_MAX)
    await nodes.pacing.wait(NODE)
    assert not nodes.pacing.crowded(NODE)


async def test_who_takes_his_time_is_no_flood(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    nodes = Nodes()
    for _ in range(20):
        nodes.pacing.count(NODE, 1, BURST // 2, nursery)
        await trio.sleep(BURST_TIME + 0.001)
    assert nodes.asked == []


async def test_what_is_remembered_of_nodes_is_bounded(nursery: trio.Nursery) -> None:
    nodes = Nodes()
    for node in range(NODES_MAX + 10):
        nodes.pacing.count(node, 1, 1, nursery)
    assert len(nodes.pacing._floods) <= NODES_MAX
