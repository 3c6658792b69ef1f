"""Why the deadline stays: the historical half-fix answered Health out of turn and left the writer without a deadline.

Health then looked well, for every client that did nothing else. But whatever waited for the stalled client waited for
ever, and nothing that it held came back. Take the deadline away here, and exactly that happens; this fails should it ever
become possible to take it away and not notice.
"""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from pilot_trio.daemon import outbound
from pilot_trio.errors import IPCClosedError
from pilot_trio.wire.ipc import Code, encode_frame
from tests.daemon.ipc.conftest import HEALTH, HEALTH_OK, Bench

A_LONG_TIME = 3600.0


@pytest.mark.parametrize(("deadline", "incident"), [(outbound.WRITE_DEADLINE, False), (math.inf, True)])
async def test_without_the_deadline_the_incident_happens(
    bench: Bench,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    deadline: float,
    incident: bool,
) -> None:
    monkeypatch.setattr(outbound, "WRITE_DEADLINE", deadline)
    stalled, neighbour = await bench.connect(), await bench.connect()
    released_at = math.inf

    async def produce() -> None:
        nonlocal released_at
        try:
            while True:
                await bench.commands.clients[0].outbound.send(encode_frame(Code.RECV, bytes(1_000)))
        except IPCClosedError:
            released_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalled.flood, encode_frame(Code.DIAL))
        await trio.testing.wait_all_tasks_blocked()
        bench.commands.gate.set()
        nursery.start_soon(produce)
        await trio.sleep(A_LONG_TIME)
        # The half of it that was fixed: the neighbour's Health never suffers.
        assert await neighbour.ask(HEALTH) == HEALTH_OK[4:]
        statistics = bench.server.statistics()
        nursery.cancel_scope.cancel()

    assert (statistics.clients == 2) is incident
    assert (statistics.cut_clients == 0) is incident
    assert (statistics.in_flight > 0) is incident
    assert (statistics.queued_bytes > 0) is incident
    assert (released_at == math.inf) is incident
