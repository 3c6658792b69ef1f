"""The real clients when a stream of theirs breaks: what our daemon says of it beyond the protocol is nothing to them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from functools import partial

import pytest
import trio

from pilot_trio.config import RendezvousConfig
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.errors import IPCClosedError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import SystemNetwork
from pilot_trio.testing import RunningNode, open_node
from tests.interop.go import GoHome
from tests.interop.rendezvous import ANY_PORT
from tests.interop.sdk import run_sdk

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]
ENDS, RESETS = 5000, 5001  # ports of services that answer once and then close, or reset


@contextlib.asynccontextmanager
async def _open_services() -> AsyncGenerator[RunningNode]:
    """Run a node with both services, in this process: no program of either kind resets a stream when it is asked to."""
    rendezvous = RendezvousConfig(registry=ANY_PORT, beacon=ANY_PORT)
    async with (
        open_node(network=SystemNetwork(), transport="socket", rendezvous=rendezvous, public=True) as node,
        trio.open_nursery() as nursery,
    ):
        streams = node.handle._node.streams
        nursery.start_soon(_serve, streams.bind(ENDS, "test"), "close")
        nursery.start_soon(_serve, streams.bind(RESETS, "test"), "reset")
        yield node
        nursery.cancel_scope.cancel()


async def _serve(listener: PortListener, end: str) -> None:
    while True:
        connection = await listener.accept()
        with contextlib.suppress(trio.BrokenResourceError, IPCClosedError):
            data = await connection.receive_some(1000)
            await connection.write_all(b"so far: " + data)
            await trio.sleep(0.2)  # the client is in its next read by then
        getattr(connection, end)()


async def test_our_driver_tells_a_reset_from_an_end() -> None:
    async with _open_services() as node:
        async with await node.driver.dial(node.address, ENDS) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"so far: hello"
            assert await stream.receive_some() == b""
        async with await node.driver.dial(node.address, RESETS) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"so far: hello"
            with pytest.raises(trio.BrokenResourceError, match="reset"):
                await stream.receive_some()


async def test_the_sdk_reads_an_end_and_goes_on() -> None:
    async with _open_services() as node:
        results = await run_sdk(
            node.handle.socket,
            f"""
            address = driver.info()["address"]
            for port in ({ENDS}, {RESETS}):
                conn = driver.dial(f"{{address}}:{{port}}")
                conn.write(b"hello")
                seen = [conn.read().decode(), error(conn.read), error(conn.read)]
                conn.close()
                other = driver.dial(f"{{address}}:7")  # over the same socket
                other.write(b"still there?")
                seen += [other.read().decode(), driver.info()["version"]]
                other.close()
                results[port] = seen
            """,
        )
    assert results[str(ENDS)] == results[str(RESETS)] == ["so far: hello", "EOF", "EOF", "still there?", "1.18.0"]


@pytest.mark.parametrize("command", ["connect", "send"])
async def test_pilotctl_says_the_same_of_both(command: str, make_go_home: MakeHome) -> None:
    async with _open_services() as node:
        beacon = node.handle.beacon
        assert beacon is not None
        home = make_go_home(node.handle.registry, beacon)
        home.environment["PILOT_SOCKET"] = str(node.handle.socket)
        option = {"connect": "--message", "send": "--data"}[command]
        run = partial(home.ctl, command, str(node.address))
        done = [await run(str(port), option, "hello") for port in (ENDS, RESETS)]
    assert done[0].returncode == done[1].returncode == 0
    texts = [
        re.sub(str(port), "PORT", result.output + result.errors)
        for port, result in zip((ENDS, RESETS), done, strict=True)
    ]
    assert "so far: hello" in texts[0]
    assert texts[0] == texts[1]
