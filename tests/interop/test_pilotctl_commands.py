"""The everyday commands on one node: the real pilotctl and ours, on the real daemon and on ours, must look alike.

Compared are exit codes, error codes, and the shape of the JSON: keys and types, not values. The real pilotctl on the real
daemon is the yardstick. Where ours is better on purpose, the test says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import CtlResult, GoHome, open_go_daemon
from tests.interop.ours import open_our_daemon, our_ctl
from tests.interop.rendezvous import open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]
Ctl = Callable[..., Awaitable[CtlResult]]

COMMANDS = [
    "info",
    "health",
    "peers",
    "peers --search 9",
    "connections",
    "disconnect 4000000",
    "disconnect x",
    "ping {self} --count 1",
    "ping alpha --count 1",
    "ping 1 --count 1 --trace",
    "ping 1 --count 2 --reuse-conn",
    "ping nowhere",
    "traceroute {self}",
    "bench {self} 0.5",
    "bench 1 0",
    "bench 1 5000",
    "connect {self} 7 --message hi",
    "connect {self} 4999 --message hi",
    "send {self} 7 --data hi",
    "send {self} 4999 --data hi",
    "send {self} 7",
    "send {self} x --data hi",
    "recv 7",
    "recv 4999 --timeout 300ms",
    "dgram {self} 4999 --data hi",
    "dgram {self} 4999",
    "listen 4999 --count 1 --timeout 300ms",
    "find alpha",
    "find nowhere",
    "lookup 1",
    "lookup alpha",
    "lookup 77",
    "set-hostname alpha",
    "set-hostname Not_Valid",
    "set-public",
    "extras set-tags a b",
    "extras set-tags a b c d",
    "extras clear-tags",
    "pending",
    "trust",
    "untrust 77",
    "handshake nowhere",
    "prefer-direct 1",
    "network list",
    "network members 1",
    "network invites",
    "network join 77",
    "network role 1 1",
    "network create",
    "network delete 1",
    "sign-request --audience x --body hi",
    "sign-request --audience x",
    "verify-request --envelope x --signature y",
    "set-webhook http://127.0.0.1:1/x",
    "clear-webhook",
    "broadcast 1 hi",
    "daemon status",
    "daemon status --check",
    "config",
    "config --set nonsense=1",
    "bogus",
]

# What pilotctl prints of vendor matters, and what the state of a machine decides.
_VOLATILE = {"info": {"motd", "networks", "peer_list", "conn_list", "features"}, "connections": {"connections"}}


def shape(value: Any) -> Any:
    """Return a value's keys and types. An empty list and null are the same: the reference prints either."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if value is None:
        return []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def look(command: str, result: CtlResult) -> dict[str, Any]:
    """Return what has to be alike."""
    seen: dict[str, Any] = {"exit": result.returncode}
    if result.output.strip():
        data = json.loads(result.output)["data"]
        name = command.split()[0]
        seen["data"] = {key: shape(value) for key, value in data.items() if key not in _VOLATILE.get(name, ())}
    elif result.errors.strip():
        seen["code"] = json.loads(result.errors)["code"]
    return seen


@asynccontextmanager
async def home_with_rendezvous(make: MakeHome) -> AsyncGenerator[GoHome, None]:
    async with open_rendezvous() as rendezvous:
        assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
        yield make(rendezvous.handle.registry, rendezvous.handle.beacon)


async def looks(ctl: Ctl) -> dict[str, Any]:
    """Run every command on a fresh public node called alpha."""
    return {command: await look_again(command, ctl) for command in COMMANDS}


async def look_again(command: str, ctl: Ctl) -> dict[str, Any]:
    """Run a command, and again if it was out of time: they have five seconds, and a busy machine may take those."""
    for _ in range(3):
        seen = look(command, await ctl(*command.format(self="0:0000.0000.0001").split()))
        if seen.get("code") != "timeout":
            break
    return seen


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    return {name: (expected[name], found[name]) for name in expected if expected[name] != found[name]}


async def on_the_real_daemon(make: MakeHome, *, ours: bool) -> dict[str, Any]:
    async with home_with_rendezvous(make) as home, open_go_daemon(home, "-public", "-hostname", "alpha"):
        return await looks(lambda *words: our_ctl(home, *words) if ours else home.ctl(*words))


async def on_our_daemon(make: MakeHome, *, ours: bool) -> dict[str, Any]:
    async with home_with_rendezvous(make) as home, open_our_daemon(home, "-public", "-hostname", "alpha"):
        return await looks(lambda *words: our_ctl(home, *words) if ours else home.ctl(*words))


@pytest.mark.timeout(300)
async def test_all_four_pairs_look_alike(make_go_home: MakeHome) -> None:
    found: dict[str, dict[str, Any]] = {}

    async def collect(name: str, run: Any, ours: bool) -> None:
        found[name] = await run(make_go_home, ours=ours)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, "yardstick", on_the_real_daemon, False)
        nursery.start_soon(collect, "our daemon", on_our_daemon, False)
        nursery.start_soon(collect, "our command line", on_the_real_daemon, True)
        nursery.start_soon(collect, "both ours", on_our_daemon, True)
    yardstick = found.pop("yardstick")
    assert {name: differences(yardstick, seen) for name, seen in found.items()} == {name: {} for name in found}


@pytest.mark.parametrize("receiver", ["pilotctl", "pilot-trio"])
@pytest.mark.parametrize("sender", ["pilotctl", "pilot-trio"])
async def test_what_one_command_line_sends_the_other_receives(
    make_go_home: MakeHome, receiver: str, sender: str
) -> None:
    async with home_with_rendezvous(make_go_home) as home, open_our_daemon(home):

        def run(program: str, *words: str) -> Awaitable[CtlResult]:
            return home.ctl(*words) if program == "pilotctl" else our_ctl(home, *words)

        received: list[Any] = []

        async def receive(*words: str) -> None:
            received.append((await run(receiver, *words)).data)

        for patience in ("2s", "10s", "30s"):  # all of it is waited for, so it begins with what an idle machine needs
            received.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, "recv", "5000", "--timeout", patience)
                for _ in range(200):  # the daemon tells nobody that a port was bound
                    if (await home.ctl("info")).data["ports"] == 5:
                        break
                sent = await run(sender, "send", "1", "5000", "--data", "hello ✓")
            if received[0]["messages"]:
                break
        assert sent.data == {"target": "0:0000.0000.0001", "port": 5000, "sent": "hello ✓", "response": ""}
        (message,) = received[0]["messages"]
        assert message == {"seq": 0, "port": 5000, "data": "hello ✓", "bytes": 9}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, "listen", "5001", "--count", "1", "--timeout", "60s")
            while len(received) < 2:
                # A listener binds nothing, so the first datagrams may come before it listens.
                assert (await run(sender, "dgram", "1", "5001", "--data", "hi")).data["confirmed"] is True
                await trio.sleep(0.1)
        assert (received[1]["messages"][0]["data"], received[1]["timeout"]) == ("hi", False)
