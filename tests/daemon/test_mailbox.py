"""When the registry's mailbox is polled (`spec/services.md` §1.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.grace import GRACE
from pilot_trio.daemon.mailbox import AWAIT_WINDOW, AWAITED_MAX, CLIENT_HOLD, POKE_BURST, POLL_GAP, Mailbox
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import RegistryUnavailable
from pilot_trio.wire.registry import Message

KEEPALIVE = 60.0
PEER = NodeId(7)


class SlowRegistry:
    def __init__(self) -> None:
        self.polled_at: list[float] = []
        self.takes = 0.0
        self.answer: Message = {"requests": [], "responses": []}
        self.down = False

    async def call(self, type_: str, /, *, timeout: float | None = None, **fields: Any) -> Message:
        assert type_ == "poll_handshakes"
        assert fields["node_id"] == 1
        self.polled_at.append(trio.current_time())
        await trio.sleep(self.takes)
        if self.down:
            raise RegistryUnavailable("gone")
        return self.answer


class Box:
    def __init__(self, node_id: int = 1) -> None:
        self.registry = SlowRegistry()
        self.state = NodeState(Identity.from_seed(bytes(32)), 0.0, node_id=NodeId(node_id))
        self.requests: list[tuple[NodeId, str]] = []
        self.responses: list[tuple[NodeId, bool]] = []
        self.mailbox = Mailbox(
            self.state, self.registry, self._on_request, self._on_response, KEEPALIVE, jitter=lambda: 0.5
        )

    async def _on_request(self, node: NodeId, text: str) -> None:
        if text == "crash":
            raise ValueError("a bug")
        self.requests.append((node, text))

    def _on_response(self, node: NodeId, accept: bool, _at: float) -> None:
        self.responses.append((node, accept))


@asynccontextmanager
async def running(box: Box) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.mailbox.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.mark.parametrize("moment", [1.2429419979023228, 6.592148136198245, 1.0300274138357939])
async def test_a_poll_that_is_due_by_rounding_only_is_made(
    box: Box, autojump_clock: trio.testing.MockClock, moment: float
) -> None:
    assert moment + POLL_GAP - moment < POLL_GAP  # so that a loop waits for nothing, and time stands still
    async with running(box):
        await trio.sleep_until(moment)
        box.mailbox.expect(PEER)
        await trio.sleep(2 * POLL_GAP + 1)
    assert len(box.registry.polled_at) == 3


async def test_an_idle_node_polls_with_its_keepalive(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    async with running(box):
        started_at = trio.current_time()
        await trio.sleep(200)
    assert [at - started_at for at in box.registry.polled_at] == pytest.approx([62.5, 122.5, 182.5])


async def test_while_an_answer_is_due_it_polls_often_for_a_while(
    box: Box, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(box):
        started_at = trio.current_time()
        box.mailbox.expect(PEER)
        await trio.sleep(60)
        box.mailbox.expect(PEER)  # does not extend the window
        assert box.mailbox.awaits(PEER)
        await trio.sleep(140)
        assert not box.mailbox.awaits(PEER)
    often = [at - started_at for at in box.registry.polled_at if at - started_at < AWAIT_WINDOW]
    assert often == pytest.approx([POLL_GAP * n for n in range(60)])
    assert len(box.registry.polled_at) - len(often) == 2  # the keepalive's


async def test_an_answer_ends_the_frequent_polls(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    async with running(box):
        box.mailbox.expect(PEER)
        await trio.sleep(5)
        box.mailbox.settle(PEER)
        await trio.sleep(30)
    assert len(box.registry.polled_at) == 3


async def test_a_slow_registry_is_polled_once_at_a_time(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    box.registry.takes = 7
    async with running(box):
        box.mailbox.expect(PEER)
        await trio.sleep(30)
    gaps = [b - a for a, b in zip(box.registry.polled_at, box.registry.polled_at[1:], strict=False)]
    assert gaps == pytest.approx([7, 7, 7, 7])


@pytest.mark.parametrize("count", [AWAITED_MAX, AWAITED_MAX + 1])
async def test_the_peers_waited_for_are_bounded(box: Box, count: int, autojump_clock: trio.testing.MockClock) -> None:
    async with running(box):
        for node in range(1, count + 1):
            box.mailbox.expect(NodeId(node))
        assert sum(box.mailbox.awaits(NodeId(node)) for node in range(1, count + 1)) == AWAITED_MAX
        assert box.mailbox.awaits(NodeId(count))


async def test_clients_share_a_poll_and_do_not_repeat_it(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    box.registry.takes = 1
    async with running(box):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(box.mailbox.poll_for_client)
        before = trio.current_time()
        await box.mailbox.poll_for_client()  # a moment after the last one
        assert trio.current_time() == before
        await trio.sleep(POLL_GAP - 1)
        await box.mailbox.poll_for_client()
    assert len(box.registry.polled_at) == 2


async def test_a_client_is_not_held_up_for_long_and_the_poll_goes_on(
    box: Box, autojump_clock: trio.testing.MockClock
) -> None:
    box.registry.takes = 6
    box.registry.answer = {"requests": [{"from_node_id": 9, "justification": "x"}], "responses": []}
    async with running(box):
        started_at = trio.current_time()
        await box.mailbox.poll_for_client()
        assert trio.current_time() - started_at == pytest.approx(CLIENT_HOLD)
        await box.mailbox.poll_for_client()
        assert trio.current_time() - started_at == pytest.approx(CLIENT_HOLD)  # counted from the poll's start
        await trio.sleep(4)
    assert box.requests == [(9, "x")]
    assert len(box.registry.polled_at) == 1


@pytest.mark.parametrize(("takes", "processed"), [(0.5 + GRACE - 0.1, True), (0.5 + GRACE + 0.1, False)])
async def test_a_poll_under_way_is_finished_at_shutdown(
    box: Box, takes: float, processed: bool, autojump_clock: trio.testing.MockClock
) -> None:
    box.registry.takes = takes
    box.registry.answer = {"requests": [], "responses": [{"from_node_id": 9, "accept": True}]}
    async with running(box):
        with trio.move_on_after(0.5):
            await box.mailbox.poll_for_client()
    assert (box.responses == [(9, True)]) is processed


async def test_pokes_are_limited(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    async with running(box):
        for _ in range(50):
            box.mailbox.poke()
            await trio.sleep(0.5)
    # Three at once, if they are two seconds apart, then one every five seconds.
    assert POKE_BURST <= len(box.registry.polled_at) <= POKE_BURST + 25 / 5 + 1


async def test_failures_are_survived(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    box.registry.down = True
    async with running(box):
        box.mailbox.expect(PEER)
        await trio.sleep(5)
        box.registry.down = False
        await trio.sleep(4.5)
    assert len(box.registry.polled_at) == 5


async def test_malformed_entries_do_not_stop_the_others(box: Box, autojump_clock: trio.testing.MockClock) -> None:
    good = {"from_node_id": 9, "justification": 7}
    box.registry.answer = {
        "requests": [
            None,
            {},
            {"from_node_id": "x"},
            {"from_node_id": True},
            {"from_node_id": 1 << 32},
            {"from_node_id": 0},
            good,
        ],
        "responses": 3,
    }
    async with running(box):
        await box.mailbox.poll_for_client()
    assert box.requests == [(9, "")]
    assert box.responses == []


async def test_a_bug_costs_one_message(
    box: Box, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["crash", "fine"]
    box.registry.answer = {"requests": [{"from_node_id": 9, "justification": text} for text in texts], "responses": []}
    async with running(box):
        await box.mailbox.poll_for_client()
    assert box.requests == [(9, "fine")]
    assert "relayed handshake failed" in caplog.text


async def test_an_unregistered_node_does_not_poll(autojump_clock: trio.testing.MockClock) -> None:
    box = Box(node_id=0)
    async with running(box):
        box.mailbox.expect(PEER)
        await box.mailbox.poll_for_client()
        await trio.sleep(100)
        assert box.registry.polled_at == []
        box.state.node_id = NodeId(1)
        await trio.sleep(100)
    assert box.registry.polled_at
