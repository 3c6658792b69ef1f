"""The real pilotctl 1.18.0 starts, watches and stops our daemon (`spec/cli.md` §6.2, §6.3, §9.6); ours does the same."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import START_TIMEOUT, CtlResult, GoHome, open_go_daemon
from tests.interop.ours import alive, daemon_script, our_ctl
from tests.interop.rendezvous import open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]
NOWHERE = Endpoint("127.0.0.1", 1)


@pytest.fixture(params=["pilotctl", "pilot-trio"])
def program(request: pytest.FixtureRequest) -> str:
    """Which command line is used."""
    return str(request.param)


async def run(program: str, home: GoHome, *words: str, timeout: float = 40) -> CtlResult:
    if program == "pilotctl":
        return await home.ctl(*words, timeout=timeout)
    return await our_ctl(home, *words, timeout=timeout)


@asynccontextmanager
async def home_with_rendezvous(make: MakeHome) -> AsyncGenerator[GoHome, None]:
    async with open_rendezvous() as rendezvous:
        assert rendezvous.handle.registry is not None and rendezvous.handle.beacon is not None
        home = make(rendezvous.handle.registry, rendezvous.handle.beacon)
        daemon_script(home)
        try:
            yield home
        finally:
            with suppress(OSError, ValueError):
                os.kill(int((home.root / ".pilot" / "pilot.pid").read_text()), signal.SIGKILL)


async def test_start_status_second_start_stop_second_stop(make_go_home: MakeHome, program: str) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        began = trio.current_time()
        started = (await run(program, home, "daemon", "start")).data
        assert trio.current_time() - began < 25
        pid = started["pid"]
        assert {
            "node_id": 1,
            "address": "0:0000.0000.0001",
            "hostname": "",
            "socket": str(home.socket),
        }.items() <= started.items()
        assert started["transport"] == "udp"
        log = Path(started["log_file"])
        assert log == home.root / ".pilot" / f"pilot-{pid}.log"
        assert (home.root / ".pilot" / "pilot.log").resolve() == log.resolve()
        assert stat.S_IMODE(log.stat().st_mode) == stat.S_IMODE(home.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE((home.root / ".pilot" / "identity.json").stat().st_mode) == 0o600

        again = await run(program, home, "daemon", "start")
        assert (again.returncode, again.envelope["code"]) == (1, "already_exists")
        assert again.envelope["message"] == f"daemon is already running (pid {pid})"

        status = (await run(program, home, "daemon", "status")).data
        assert (status["running"], status["responsive"], status["pid"]) == (True, True, pid)
        assert {"node_id", "address", "hostname", "uptime_secs", "peers", "connections"} <= status.keys()
        check = await run(program, home, "daemon", "status", "--check")
        assert (check.returncode, check.output, check.errors) == (0, "", "")
        assert (await run(program, home, "info")).data["node_id"] == 1

        # The tools use force after ten. On an idle machine it is a tenth of a second.
        assert await _stops_within(9.0, pid, program, home) == {"pid": pid}
        assert not home.socket.exists()
        assert not (home.root / ".pilot" / "pilot.pid").exists()
        lines = log.read_text().splitlines()
        assert 'level=INFO msg="shutting down"' in lines[-1]
        for text in (
            'msg="outbound network" transport=udp',
            'msg="saved identity"',
            'msg="IPC listening"',
            'msg="daemon running"',
        ):
            assert any(text in line for line in lines), text

        gone = await run(program, home, "daemon", "stop")
        assert (gone.returncode, gone.envelope["code"]) == (1, "not_running")
        assert (await run(program, home, "daemon", "status", "--check")).returncode == 1

        restarted = (await run(program, home, "daemon", "start")).data
        assert restarted["node_id"] == 1  # the same key, hence the same node
        await run(program, home, "daemon", "stop")


async def _stops_within(seconds: float, pid: int, program: str, home: GoHome) -> Any:
    ended_at = 0.0
    result: CtlResult | None = None

    async def stop() -> None:
        nonlocal result
        result = await run(program, home, "daemon", "stop")

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        while alive(pid):
            await trio.sleep(0.01)  # nobody tells a stranger that a process has ended
            assert trio.current_time() - began < 20
        ended_at = trio.current_time()
    assert ended_at - began < seconds
    assert result is not None
    return result.data


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--email", "nobody"), "daemon start: invalid email: email address must contain @"),
        (("--transport", "compat"), "-transport: the compat transport is not supported by this node; use udp or auto"),
        (("--endpoint", "nonsense"), "-endpoint: 'nonsense' is not host:port; write for example 127.0.0.1:9000"),
    ],
)
async def test_a_daemon_that_cannot_start_shows_its_error(
    make_go_home: MakeHome, program: str, words: tuple[str, ...], reason: str
) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        done = await run(program, home, "daemon", "start", *words)
        assert (done.returncode, done.envelope["code"]) == (1, "internal")
        assert done.envelope["message"].endswith(f"exited during startup (exit status 1): {reason}")
        assert done.envelope["hint"].startswith("check logs: tail -f ")
        assert not (home.root / ".pilot" / "pilot.pid").exists()


async def test_a_loose_identity_file_is_the_reason_shown(make_go_home: MakeHome, program: str) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        await run(program, home, "daemon", "start")
        await run(program, home, "daemon", "stop")
        (home.root / ".pilot" / "identity.json").chmod(0o644)
        done = await run(program, home, "daemon", "start")
        assert (
            "daemon start: load identity: identity file has loose permissions (mode 644); chmod 600"
            in (done.envelope["message"])
        )


async def test_a_second_daemon_does_not_take_the_socket(make_go_home: MakeHome) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        first = (await home.ctl("daemon", "start", timeout=40)).data
        done = await trio.run_process(
            [home.environment["PILOT_DAEMON_BIN"], "-socket", str(home.socket)],
            env=home.environment,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 1
        last = done.stderr.decode().splitlines()[-1]
        assert 'level=ERROR msg="daemon start: ' in last
        assert str(first["pid"]) in last
        assert (await home.ctl("info")).data["node_id"] == 1
        await home.ctl("daemon", "stop")


async def test_config_values_reach_the_daemon(make_go_home: MakeHome, program: str) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        await run(program, home, "config", "--set", "hostname=gamma")
        await run(program, home, "config", "--set", "log_level=debug")
        started = (await run(program, home, "daemon", "start", "--public", "--no-encrypt")).data
        assert started["hostname"] == "gamma"
        info = (await run(program, home, "info")).data
        assert (info["hostname"], info["encrypt"]) == ("gamma", False)
        await run(program, home, "daemon", "stop")


async def test_without_a_registry_the_daemon_starts_and_says_so(make_go_home: MakeHome) -> None:
    home = make_go_home(NOWHERE, NOWHERE)
    daemon_script(home)
    started = (await our_ctl(home, "daemon", "start", "--wait", "8s")).data  # it waits in vain, and that long
    try:
        assert started["node_id"] == 0
        assert (await our_ctl(home, "health")).returncode == 0
        assert (await home.ctl("health")).returncode == 0
    finally:
        stopped = (await our_ctl(home, "daemon", "stop")).data
    assert stopped == {"pid": started["pid"]}


async def test_either_command_line_drives_the_others_daemon(make_go_home: MakeHome) -> None:
    async with home_with_rendezvous(make_go_home) as home:
        pid = (await home.ctl("daemon", "start", timeout=40)).data["pid"]
        assert (await our_ctl(home, "daemon", "status")).data["pid"] == pid
        assert (await our_ctl(home, "daemon", "start")).envelope["code"] == "already_exists"
        assert (await our_ctl(home, "daemon", "stop")).data == {"pid": pid}
        pid = (await our_ctl(home, "daemon", "start")).data["pid"]
        assert (await home.ctl("daemon", "stop")).data == {"pid": pid}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_up_runs_a_node_with_its_rendezvous_and_joins_a_running_one(
    make_go_home: MakeHome, number: signal.Signals
) -> None:
    home = make_go_home(NOWHERE, NOWHERE)
    del home.environment["PILOT_REGISTRY"], home.environment["PILOT_BEACON"]
    async with _up(home, "0") as (first, process):
        assert (first["address"], first["embedded"], first["socket"]) == ("0:0000.0000.0001", True, str(home.socket))
        # The command line finds this registry without being told.
        assert (await our_ctl(home, "lookup", "1")).data["node_id"] == 1
        assert (await our_ctl(home, "ping", first["address"], "--count", "1")).returncode == 0
        assert (await our_ctl(home, "up")).envelope["code"] == "already_exists"
        other = make_go_home(NOWHERE, NOWHERE)
        async with _up(other, first["registry"].rpartition(":")[2]) as (second, _):
            assert (second["address"], second["embedded"]) == ("0:0000.0000.0002", False)
            assert second["registry"] == first["registry"]
        process.send_signal(number)
        with trio.fail_after(20):
            assert await process.wait() == 0
    async with _up(home, "0") as (again, _):
        assert again["address"] == first["address"]


async def test_a_rendezvous_alone_serves_a_real_daemon_and_shows_it(make_go_home: MakeHome) -> None:
    home = make_go_home(NOWHERE, NOWHERE)
    words = ["--registry-addr", "127.0.0.1:0", "--beacon-addr", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    async with _foreground(home, "rendezvous", *words) as (told, process):
        assert told["store"] == str(home.root / ".pilot" / "pilot-trio" / "rendezvous.db")
        node = make_go_home(Endpoint.parse(told["registry"]), Endpoint.parse(told["beacon"]))
        async with open_go_daemon(node) as daemon:
            assert daemon.node_id == 1
            page = told["http"].rstrip("/") + "/healthz"
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            body = await trio.to_thread.run_sync(lambda: direct.open(page, timeout=30).read())
            assert json.loads(body)["nodes_online"] == 1
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(20):
            assert await process.wait() == 0
    async with _foreground(home, "rendezvous", *words, "--tls", "127.0.0.1:0") as (told, _):
        assert len(told["fingerprint"]) == 64
        lookup = await our_ctl(home, "lookup", "1")
        assert lookup.returncode == 1  # nobody told the command line of this registry
        home.environment["PILOT_REGISTRY"] = told["registry"]
        assert (await our_ctl(home, "lookup", "1")).data["node_id"] == 1  # and the registry remembers


def _up(home: GoHome, port: str) -> AbstractAsyncContextManager[tuple[dict[str, Any], trio.Process]]:
    return _foreground(home, "up", "--rendezvous-registry", f"127.0.0.1:{port}", "--rendezvous-beacon", "127.0.0.1:0")


@asynccontextmanager
async def _foreground(home: GoHome, *words: str) -> AsyncGenerator[tuple[dict[str, Any], trio.Process], None]:
    """Run a command that runs until it is stopped; give what it told once it was ready."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", "from pilot_trio.cli import main; raise SystemExit(main())", "--json", *words],
        stdout=subprocess.PIPE,
        env=home.environment,
    )
    assert process.stdout is not None
    try:
        line = b""
        with trio.fail_after(START_TIMEOUT):
            while not line.endswith(b"\n"):
                data = await process.stdout.receive_some()
                assert data, "ended early"
                line += data
        yield json.loads(line)["data"], process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()
