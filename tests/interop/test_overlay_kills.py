"""A daemon of either kind is killed while bytes flow to it and from it, and restarted under its identity."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import pytest
import trio

from pilot_trio.errors import PilotError
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import MIB, dial_until_answered, echo, open_flow

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

THERE, BACK = 5000, 5001  # ports
START = 30.0  # seconds until a transfer runs; it takes a moment
LOST = 10.0  # seconds until a client knows that its daemon is gone; it takes a moment
RECOVERY = 45.0  # seconds until a restarted peer is reachable again, both ways; it takes three
# Seconds until a client of the surviving daemon knows; ours takes three. The real one gives up after eight transmissions
# of a segment, half a minute or more, and notices by its idle timeout that nothing arrives: it looks every 15 seconds.
NOTICE: dict[Kind, float] = {"ours": 30.0, "go": 120.0}
IMPATIENT = ("-keepalive", "1s", "-idle-timeout", "20s")

Ends = dict[str, "trio.BrokenResourceError | None"]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("survivor_kind", "killed_kind"), [("ours", "go"), ("go", "ours"), ("ours", "ours")])
async def test_a_daemon_killed_in_mid_transfer(overlay: Overlay, survivor_kind: Kind, killed_kind: Kind) -> None:
    survivor, killed = await overlay.start(survivor_kind, *IMPATIENT), await overlay.start(killed_kind)
    node_id = killed.node_id
    ends: Ends = {}
    async with survivor.driver() as driver, trio.open_nursery() as nursery:
        async with killed.driver() as doomed:
            there = await open_flow(driver, doomed, killed, THERE)
            back = await open_flow(doomed, driver, survivor, BACK)
            follow = partial(note_the_end, ends)
            nursery.start_soon(follow, "survivor sends", there.send)
            nursery.start_soon(follow, "survivor receives", back.receive)
            async with trio.open_nursery() as clients:
                clients.start_soon(follow, "killed sends", back.send)
                clients.start_soon(follow, "killed receives", there.receive)
                with trio.fail_after(START):
                    await there.wait_for(MIB)
                    await back.wait_for_more(MIB)
                    await there.wait_for_more(MIB)
                await killed.stop(signal.SIGKILL)
                clients.cancel_scope.deadline = trio.current_time() + LOST
            assert ends.keys() == {"killed sends", "killed receives"}, "the survivor's clients cannot know yet"
            assert ends["killed sends"] is not None
            assert ends["killed receives"] is not None
            with pytest.raises(PilotError):
                await doomed.info()
        assert (await killed.ctl("info")).returncode != 0
        assert await unacknowledged(survivor, THERE) > 0, "the kill met bytes that were under way"

        await killed.start()
        nursery.cancel_scope.deadline = trio.current_time() + NOTICE[survivor_kind]
        assert killed.node_id == node_id, "it has kept its identity"
        async with killed.driver() as revived:
            with trio.fail_after(RECOVERY):
                await dial_until_answered(driver, killed)
                await dial_until_answered(revived, survivor)
                await echo(driver, killed, 2 * MIB)
                await echo(revived, survivor, 2 * MIB)
    assert ends.keys() >= {"survivor sends", "survivor receives"}, "a client still waits for a stream that is no more"
    assert ends["survivor sends"] is not None
    if survivor_kind == "ours":  # the real daemon tells its clients of an end, whatever it was
        assert ends["survivor receives"] is not None, "a reader took a truncated stream for a whole one"


async def note_the_end(ends: Ends, name: str, run: Callable[[], Awaitable[None]]) -> None:
    try:
        await run()
    except trio.BrokenResourceError as exc:
        ends[name] = exc
    else:
        ends[name] = None


async def unacknowledged(node: OverlayNode, port: int) -> int:
    """How many segments a daemon has out to a port of another."""
    await trio.sleep(0.25)  # it answers with rows up to 200 ms old
    rows = (await node.ctl("connections")).data["connections"]
    (row,) = (row for row in rows if row["remote_port"] == port)
    return int(row["unacked"])
