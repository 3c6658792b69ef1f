"""Two daemons on one rendezvous: ours and the real one, started alike, measured alike."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from bench.impairment import Passage, passage
from bench.load import info
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.directory import registration
from pilot_trio.proto.directory.endpoints import stored_endpoint
from pilot_trio.rendezvous.serve import serve_rendezvous
from pilot_trio.rendezvous.settings import RendezvousConfig
from tests.interop.go import GoHome, GoPrograms

OURS = (sys.executable, "-m", "pilot_trio.cli.daemon_entry")
OUR_CTL = (str(Path(sys.executable).with_name("pilot-trio")),)
START_TIMEOUT = 20.0  # seconds
_FLAGS = (
    "-telemetry-url",
    "",
    "-motd-feed-url",
    "",
    "-no-skillinject",
    "-listen",
    "127.0.0.1:0",
    "-log-level",
    "error",
)
_OPEN = ("-public", "-syn-whitelist", "*", "-syn-rate-limit", "1000000", "-max-conns-per-port", "16384")


@attrs.frozen
class Peer:
    """A running daemon."""

    name: str
    socket: Path
    pid: int
    node_id: int
    ctl: tuple[str, ...]  # the command line tool that belongs to it, and what it needs to find the socket
    environment: dict[str, str]

    def resident(self) -> int:
        """Resident memory in bytes."""
        return _resident(self.pid)

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Peers:
    ours: Peer
    theirs: Peer

    def __iter__(self) -> Iterator[Peer]:
        """Theirs first: what the machine does to the second of a pair, it does to ours."""
        return iter((self.theirs, self.ours))


@contextlib.contextmanager
def open_peers(ours: str = "") -> Iterator[Peers]:
    """Start everything; `ours` replaces the command line of our daemon."""
    programs = GoPrograms.find()
    if programs is None:
        raise SystemExit("the real programs are needed: pip install 'pilot-trio[interop]'")
    with contextlib.ExitStack() as stack:
        registry, beacon = stack.enter_context(_rendezvous())
        homes = [GoHome.create(programs, registry=registry, beacon=beacon) for _ in range(2)]
        for home in homes:
            stack.callback(home.remove)
        command = tuple(shlex.split(ours)) or OURS
        theirs = stack.enter_context(
            _daemon("theirs", (str(homes[0].programs.daemon),), (str(homes[0].programs.ctl),), homes[0])
        )
        yield Peers(stack.enter_context(_daemon("ours", command, OUR_CTL, homes[1])), theirs)


@attrs.frozen
class Pair:
    """Two daemons that know each other; `near` dials."""

    near: Peer
    far: Peer
    passage: Passage | None = None  # before `far`

    def cpu_seconds(self) -> float:
        return self.near.cpu_seconds() + self.far.cpu_seconds()

    def resident(self) -> int:
        return self.near.resident() + self.far.resident()


@attrs.frozen
class Pairs:
    """Two daemons of each kind, and how they can be paired: each has one that only dials and one that is only dialled."""

    ours: Pair
    theirs: Pair
    ours_to_theirs: Pair
    theirs_to_ours: Pair


@contextlib.contextmanager
def open_pairs(ours: str = "", *, loss: float = 0.0, delay: float = 0.0) -> Iterator[Pairs]:
    """Start two daemons of each kind; with `loss` or `delay` (seconds, each way) a proxy stands before each daemon."""
    programs = GoPrograms.find()
    if programs is None:
        raise SystemExit("the real programs are needed: pip install 'pilot-trio[interop]'")
    with contextlib.ExitStack() as stack:
        passages = [stack.enter_context(passage(loss, delay)) for _ in range(4)] if loss or delay else []
        registry, beacon = stack.enter_context(_rendezvous(passages))
        ways = iter(passages)

        def start(name: str) -> tuple[Peer, Passage | None]:
            home = GoHome.create(programs, registry=registry, beacon=beacon)
            stack.callback(home.remove)
            if name == "ours":
                command, ctl = tuple(shlex.split(ours)) or OURS, OUR_CTL
            else:
                command, ctl = (str(home.programs.daemon),), (str(home.programs.ctl),)
            way = next(ways, None)
            if way is None:
                return stack.enter_context(_daemon(name, command, ctl, home, _OPEN)), None
            # No beacon: it would tell the daemons each other's own endpoints, or relay past the proxies.
            home.environment["PILOT_BEACON"] = ""
            flags = (*_OPEN, "-beacon", "", "-listen", str(way.daemon))
            return stack.enter_context(_daemon(name, command, ctl, home, flags)), way

        (their_near, _), (their_far, their_way) = start("theirs"), start("theirs")
        (our_near, _), (our_far, our_way) = start("ours"), start("ours")
        yield Pairs(
            ours=Pair(our_near, our_far, our_way),
            theirs=Pair(their_near, their_far, their_way),
            ours_to_theirs=Pair(our_near, their_far, their_way),
            theirs_to_ours=Pair(their_near, our_far, our_way),
        )


@contextlib.contextmanager
def _daemon(
    name: str, command: tuple[str, ...], ctl: tuple[str, ...], home: GoHome, flags: tuple[str, ...] = ()
) -> Iterator[Peer]:
    arguments = [*command, *_FLAGS, *flags, "-socket", str(home.socket), "-identity", str(home.identity)]
    environment = {**home.environment, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    log = home.root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
    try:
        node_id = _wait_until_registered(process, home.socket, log)
        yield Peer(name, home.socket, process.pid, node_id, ctl, environment)
    finally:
        _stop(process)


def _wait_until_registered(process: subprocess.Popen[bytes], path: Path, log: Path) -> int:
    end = time.perf_counter() + START_TIMEOUT
    while time.perf_counter() < end:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            if node_id := int(info(path)["node_id"]):
                return node_id
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} did not register within {START_TIMEOUT:g} s")


def _stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _rendezvous(passages: Sequence[Passage] = ()) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Serve registry and beacon; the registry takes the address before a daemon for the daemon's own."""
    moved = [f"{way.daemon}={way.front}" for way in passages]
    process = subprocess.Popen([sys.executable, "-m", "bench.peers", *moved], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        registry, beacon = process.stdout.readline().split()
        yield Endpoint.parse(registry), Endpoint.parse(beacon)
    finally:
        _stop(process)


async def _serve_rendezvous(moved: dict[str, str]) -> None:
    def stored(advertised: str, source_host: str, source_port: int) -> str:
        return moved.get(advertised) or stored_endpoint(advertised, source_host, source_port)

    setattr(registration, "stored_endpoint", stored)  # noqa: B010 (not one of its exports)
    anywhere = Endpoint("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(serve_rendezvous, RendezvousConfig(registry=anywhere, beacon=anywhere))
        print(handle.registry, handle.beacon, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trio.run(_serve_rendezvous, dict(argument.split("=") for argument in sys.argv[1:]))
