"""Streams that fall silent, because a peer is gone or because nobody has anything to say (`spec/transport.md` §3.5).

Real time it is, and the real daemon looks every 15 seconds: so everything goes on at once, in one test.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncGenerator

import pytest
import trio

from pilot_trio.driver import Driver, PilotStream
from tests.interop.events import Webhook, open_webhook
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.traffic import receive_exactly

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 5000
OTHER: dict[Kind, Kind] = {"ours": "go", "go": "ours"}
IMPATIENT = {  # {the event that ends the stream: flags}
    "conn.dead_peer": ("-keepalive", "1s"),  # three probes, 15 s apart: 46 to 61 s
    "conn.idle_timeout": ("-keepalive", "1s", "-idle-timeout", "20s"),  # 20 to 35 s
}
ENDS = (*IMPATIENT, "conn.fin", "conn.rst")
NOTICE = 150.0  # seconds for what takes a minute
SILENCE = 55.0  # seconds; more than the idle timeout and the reference's 15 s until it looks
TALK = 30.0  # seconds for a few bytes


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


async def test_silence(overlay: Overlay) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up_silent_peers, overlay)
        nursery.start_soon(keep_silent_streams, overlay)


async def give_up_silent_peers(overlay: Overlay) -> None:
    """Peers that are there and say nothing are found out by probes or by the idle timeout, as is asked for."""
    async with contextlib.AsyncExitStack() as stack:
        victims = {kind: await overlay.start(kind) for kind in OTHER}
        watched: list[tuple[str, OverlayNode, OverlayNode, int, Webhook, PilotStream]] = []
        for kind in OTHER:
            victim = victims[OTHER[kind]]
            for port, (event, flags) in enumerate(IMPATIENT.items(), start=5000):
                hook = await stack.enter_async_context(open_webhook())
                node = await overlay.start(kind, "-webhook", hook.url, *flags)
                stream, _ = await connect(stack, node, victim, port)
                watched.append((event, node, victim, port, hook, stream))
        for victim in victims.values():
            victim.process.send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + NOTICE
            for arguments in watched:
                nursery.start_soon(expect_the_end, *arguments)
        assert not nursery.cancel_scope.cancelled_caught, "a stream to a silent peer is still open"


async def expect_the_end(
    event: str, node: OverlayNode, victim: OverlayNode, port: int, hook: Webhook, stream: PilotStream
) -> None:
    if node.kind == "ours":
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    else:
        assert await stream.receive_some() == b""  # clients of the real daemon cannot tell it from a proper end
    found = await hook.wait_for(*ENDS)
    assert found["event"] == event
    assert found["data"].keys() == {"conn_id", "local_port", "remote_addr", "remote_port"}
    assert (found["data"]["remote_addr"], found["data"]["remote_port"]) == (victim.address, port)
    await trio.sleep(0.25)  # daemons answer with rows up to 200 ms old
    rows = (await node.ctl("connections")).data["connections"]
    assert [row for row in rows or [] if row["state"] == "ESTABLISHED"] == []


async def keep_silent_streams(overlay: Overlay) -> None:
    """Two real daemons close it; each of ours answers the other's probes."""
    flags = ("-keepalive", "5s", "-idle-timeout", "30s")
    async with contextlib.AsyncExitStack() as stack:
        nodes = {kind: await overlay.start(kind, *flags) for kind in OTHER}
        ours_again = await overlay.start("ours", *flags)
        pairs = [
            await connect(stack, nodes["ours"], nodes["go"], PORT),
            await connect(stack, nodes["go"], nodes["ours"], PORT),
            await connect(stack, nodes["ours"], ours_again, PORT),
        ]
        with trio.move_on_after(SILENCE):
            async with trio.open_nursery() as nursery:
                for ends in pairs:
                    for end in ends:
                        nursery.start_soon(expect_nothing, end)
        with trio.fail_after(TALK):
            for one, other in pairs:
                await talk(one, other)
                await talk(other, one)


async def expect_nothing(stream: PilotStream) -> None:
    data = await stream.receive_some()
    raise AssertionError(f"received {data!r} of a peer that has said nothing")


async def connect(
    stack: contextlib.AsyncExitStack, near: OverlayNode, far: OverlayNode, port: int
) -> tuple[PilotStream, PilotStream]:
    """Open a stream on which something has been said, both ways; both ends."""
    driver: Driver = await stack.enter_async_context(near.driver())
    other: Driver = await stack.enter_async_context(far.driver())
    listener = await other.listen(port)
    with trio.fail_after(TALK):
        dialled = await driver.dial(far.address, port)
        accepted = await listener.accept()
        await talk(dialled, accepted)
        await talk(accepted, dialled)
    return dialled, accepted


async def talk(one: PilotStream, other: PilotStream) -> None:
    await one.send_all(b"are you there?")
    assert await receive_exactly(other, 14) == b"are you there?"
