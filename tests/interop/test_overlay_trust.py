"""Trust between our node and the real daemon: the handshake on port 444, and what a private node lets in.

Both are private here: until they trust each other the registry tells neither where the other is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import pytest
import trio

from pilot_trio.driver import Driver, PilotStream
from pilot_trio.errors import DaemonError, DialError
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay
from tests.interop.rendezvous import ADMIN_TOKEN

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ECHO, DATA_EXCHANGE = 7, 1001  # ports
PATIENCE = 60.0  # seconds for what takes one or two
PAIRS: list[tuple[Kind, Kind]] = [("ours", "go"), ("go", "ours"), ("ours", "ours")]


@pytest.fixture
async def overlay(make_go_home: MakeHome) -> AsyncGenerator[Overlay]:
    async with open_overlay(make_go_home) as opened:
        yield opened


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_request_pending_approve_trust_untrust(overlay: Overlay, asks: Kind, answers: Kind) -> None:
    near, far = await overlay.start(asks, public=False), await overlay.start(answers, public=False)
    async with near.driver() as one, far.driver() as two:
        with pytest.raises(DialError):
            await one.dial(far.address, ECHO)
        await one.trust.request(far.node_id, "let me in")
        (request,) = await until_some_pending(two)
        assert request["node_id"] == near.node_id
        assert request["justification"] == "let me in"
        await two.trust.approve(near.node_id)
        with trio.fail_after(PATIENCE):
            await one.trust.wait(far.node_id)
            await two.trust.wait(near.node_id)
            await echo(one, far)
            await echo(two, near)

        await two.trust.revoke(near.node_id)
        with trio.fail_after(PATIENCE):
            while await one.trust.is_trusted(far.node_id):  # noqa: ASYNC110 - another process sets no event of ours
                await trio.sleep(0.1)
        with pytest.raises((DialError, trio.TooSlowError)), trio.fail_after(3):
            await echo(one, far)


@pytest.mark.parametrize("takes_back", ["asker", "approver"])
async def test_trust_that_was_taken_back_can_be_given_again(overlay: Overlay, takes_back: str) -> None:
    """The original takes our second approval for a replay of the first, and learns of it through the registry."""
    near, far = await overlay.start("go", public=False), await overlay.start("ours", public=False)
    async with near.driver() as one, far.driver() as two:
        with trio.fail_after(PATIENCE):
            await one.trust.request(far.node_id)
            await until_some_pending(two)
            await two.trust.approve(near.node_id)
            await one.trust.wait(far.node_id)
            await two.trust.wait(near.node_id)
            await echo(one, far)  # so that the next request can go directly

            if takes_back == "asker":
                await one.trust.revoke(far.node_id)
            else:
                await two.trust.revoke(near.node_id)
            for driver, peer in ((one, far), (two, near)):
                while await driver.trust.is_trusted(peer.node_id):  # noqa: ASYNC110 - as above
                    await trio.sleep(0.1)
            await one.trust.request(far.node_id)
            await until_some_pending(two)
            await two.trust.approve(near.node_id)
            await one.trust.wait(far.node_id)
            await echo(one, far)


@pytest.mark.parametrize(("asks", "answers"), [("ours", "go"), ("go", "ours")])
async def test_a_request_that_is_refused_leaves_no_trust(overlay: Overlay, asks: Kind, answers: Kind) -> None:
    near, far = await overlay.start(asks, public=False), await overlay.start(answers, public=False)
    async with near.driver() as one, far.driver() as two:
        await one.trust.request(far.node_id)
        await until_some_pending(two)
        await two.trust.reject(near.node_id, "no")
        assert await two.trust.pending() == []
        assert not await one.trust.is_trusted(far.node_id)
        assert not await two.trust.is_trusted(near.node_id)


@pytest.mark.parametrize(("asks", "answers"), [("ours", "go"), ("go", "ours")])
async def test_a_private_node_is_silent_on_open_ports_and_says_no_on_closed_ones(
    overlay: Overlay, asks: Kind, answers: Kind
) -> None:
    stranger = await overlay.start(asks)  # public: the private node may find it, and so make contact
    private = await overlay.start(answers, public=False)
    async with stranger.driver() as outside, private.driver() as inside:
        await echo(inside, stranger)  # now each knows where the other is, and there is a session
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await outside.dial(private.address, ECHO)
        with pytest.raises(DialError, match="refused"), trio.fail_after(8):  # half of what silence takes
            await outside.dial(private.address, 4999)
        async with await outside.dial(private.address, 1001):
            pass  # the private node has dialled us: we may answer on 1001 for five minutes


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_the_echo_service_of_a_private_node_serves_only_whom_it_trusts(
    overlay: Overlay, asks: Kind, answers: Kind
) -> None:
    """Members of one network may open streams to each other. The echo service wants trust besides."""
    near, far = await overlay.start(asks, public=False), await overlay.start(answers, public=False)
    club = await overlay.rendezvous.ask(
        type="create_network", node_id=near.node_id, name="club", join_rule="open", admin_token=ADMIN_TOKEN
    )
    await far.ctl("network", "join", str(club["network_id"]))
    async with near.driver() as one, far.driver() as two:
        with trio.fail_after(PATIENCE):
            async with await dial_in_time(one, far, ECHO) as stream:
                with contextlib.suppress(trio.BrokenResourceError):  # it may have closed before we wrote
                    await stream.send_all(b"hello")
                assert await stream.receive_some() == b""
            async with await one.dial(far.address, DATA_EXCHANGE) as stream:
                with trio.move_on_after(1):
                    pytest.fail(f"another service said {await stream.receive_some()!r} to a member of the network")

            await one.trust.request(far.node_id)
            while not await two.trust.is_trusted(near.node_id):  # sharing a network may be enough for a handshake
                with contextlib.suppress(DaemonError):
                    for row in await two.trust.pending():
                        await two.trust.approve(row["node_id"])
                await trio.sleep(0.1)
            await one.trust.wait(far.node_id)
            await echo(one, far)
    assert any("echo refused: peer not trusted (private node)" in line for line in far.log)


async def dial_in_time(driver: Driver, target: OverlayNode, port: int) -> PilotStream:
    """Dial again until the daemons know of their network."""
    while True:
        try:
            return await driver.dial(target.address, port)
        except DialError:
            await trio.sleep(0.1)


async def echo(driver: Driver, target: OverlayNode) -> None:
    async with await driver.dial(target.address, ECHO) as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def until_some_pending(driver: Driver) -> list[dict[str, object]]:
    with trio.fail_after(PATIENCE):
        while True:
            try:
                rows = await driver.trust.pending()
            except DaemonError:
                rows = []
            if rows:
                return rows
            await trio.sleep(0.1)
