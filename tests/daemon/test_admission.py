"""Whom the registry is asked about, how many at once and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.config import StreamLimits
from pilot_trio.crypto.identity import Identity
from pilot_trio.daemon.admission import Admission
from pilot_trio.daemon.events import Event, EventBus
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamTable
from pilot_trio.wire.packet import STREAM, SYN, Packet

OWN = 1


def syn(node: int, port: int = 80) -> Packet:
    source, destination = (Address(NetworkId(0), NodeId(n)) for n in (node, OWN))
    return Packet(SYN, STREAM, source, destination, 49152, port)


@attrs.define(eq=False)
class Door:
    """A private node that trusts nobody, listens on every port, and whose registry does not answer before `answers` is set."""

    admission: Admission = attrs.field(init=False)
    answers: trio.Event = attrs.field(factory=trio.Event)
    trusted: bool = True
    asked: list[int] = attrs.field(factory=list)
    accepted: list[int] = attrs.field(factory=list)
    rejected: list[Event] = attrs.field(factory=list)

    async def check(self, node: int) -> bool:
        self.asked.append(node)
        await self.answers.wait()
        return self.trusted

    def admits(self, node: int, /) -> bool:
        return False

    def listens(self, port: int) -> bool:
        return True

    def admit(self, port: int) -> PortListener:
        return cast("PortListener", None)

    def knock(self, node: int, port: int = 80) -> None:
        self.admission.on_syn(node, syn(node, port), trio.current_time())


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    made = Door()
    events = EventBus()
    events.subscribe(made.rejected.append, "syn.rejected")

    def accept(node: int, packet: Packet, listener: PortListener) -> None:
        made.accepted.append(node)

    made.admission = Admission(
        state=NodeState(Identity.from_seed(bytes(32)), 0.0, node_id=NodeId(OWN)),
        trust=made,
        check_trust=made.check,
        limits=StreamLimits(),
        whitelist=frozenset(),
        events=events,
        send=cast("Any", None),
        turn=nullcontext(),
        accept=accept,
    )
    made.admission.attach(cast("StreamTable", made))
    async with trio.open_nursery() as nursery:
        made.admission.nursery = nursery
        yield made
        nursery.cancel_scope.cancel()


async def test_sixty_four_questions_at_once_and_whoever_comes_later_is_heard_when_there_is_room() -> None:
    async with door() as private:
        for node in range(10, 110):
            private.knock(node)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(private.asked) == list(range(10, 74))
        private.answers.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(private.accepted) == list(range(10, 74))
        private.knock(109)
        await trio.testing.wait_all_tasks_blocked()
        assert private.accepted[-1] == 109
        assert private.rejected == []


async def test_a_syn_that_repeats_itself_is_one_question() -> None:
    async with door() as private:
        for port in (80, 80, 81, 80):
            private.knock(10, port)
        await trio.testing.wait_all_tasks_blocked()
        private.answers.set()
        await trio.testing.wait_all_tasks_blocked()
        assert private.accepted == [10, 10]


async def test_a_registry_that_does_not_answer_within_eight_seconds_vouches_for_nobody(
    autojump_clock: MockClock,
) -> None:
    async with door() as private:
        private.knock(10)
        await trio.sleep(7.9)
        assert private.rejected == []
        await trio.sleep(0.2)
        assert [event.data for event in private.rejected] == [
            {"dst_port": 80, "reason": "untrusted", "src_addr": str(syn(10).source)}
        ]
        private.answers.set()
        await trio.testing.wait_all_tasks_blocked()
        assert private.accepted == []
        private.knock(10)
        await trio.testing.wait_all_tasks_blocked()
        assert private.accepted == [10]


async def test_a_defect_in_what_a_stranger_sends_costs_the_stranger_and_never_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with door() as private:

        def fail() -> None:
            raise ZeroDivisionError

        private.answers.set()
        private.admission.on_strange_datagram(10, syn(10), fail)
        await trio.testing.wait_all_tasks_blocked()
        private.knock(11)
        await trio.testing.wait_all_tasks_blocked()
        assert private.accepted == [11]
    assert "packet of a stranger dropped" in caplog.messages
