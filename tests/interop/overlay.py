"""Nodes of both kinds on one rendezvous of ours, each a process with a home of its own; they can be killed and restarted.

async with open_overlay(make_home) as overlay:
    ours, theirs = await overlay.start("ours"), await overlay.start("go")
    assert (await ours.ctl("ping", theirs.address, "--count", "1")).returncode == 0
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import trio

from pilot_trio.address import Address, NetworkId, NodeId
from pilot_trio.driver import Driver, open_driver
from pilot_trio.errors import PilotError
from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import CTL_TIMEOUT, START_TIMEOUT, CtlResult, GoHome
from tests.interop.ours import DAEMON, our_ctl
from tests.interop.rendezvous import ADMIN_TOKEN, Restartable, open_rendezvous

Kind = Literal["ours", "go"]
MakeHome = Callable[[Endpoint, Endpoint], GoHome]

_FLAGS: Final = ("-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject", "-log-level", "debug")


@attrs.define(eq=False)
class OverlayNode:
    """A daemon of either kind, with the command line tool of the real programs unless said otherwise."""

    kind: Kind
    home: GoHome
    flags: tuple[str, ...]
    process: trio.Process = attrs.field(init=False)
    node_id: int = 0

    @property
    def address(self) -> str:
        """Its address on the backbone."""
        return str(Address(NetworkId(0), NodeId(self.node_id)))

    @property
    def log_path(self) -> Path:
        """What it has logged, over all its lives."""
        return self.home.root / "log"

    @property
    def log(self) -> list[str]:
        """The lines that it has logged, over all its lives."""
        return self.log_path.read_text(errors="replace").splitlines()

    async def start(self) -> None:
        """Start it, in the home and under the identity that it had, and wait until it is registered."""
        program = DAEMON if self.kind == "ours" else (str(self.home.programs.daemon),)
        paths = ("-socket", str(self.home.socket), "-identity", str(self.home.identity))
        listen = () if "-listen" in self.flags else ("-listen", "127.0.0.1:0")
        self.home.socket.unlink(missing_ok=True)  # a killed daemon leaves its own
        with self.log_path.open("ab") as log:
            self.process = await trio.lowlevel.open_process(
                [*program, *_FLAGS, *paths, *listen, *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.home.environment,
            )
        with trio.fail_after(START_TIMEOUT):
            while not await self._is_registered():
                assert self.process.poll() is None, "\n".join(self.log)
                await trio.sleep(0.02)  # it tells nobody that it is ready

    async def _is_registered(self) -> bool:
        try:
            async with open_driver(self.home.socket) as driver:
                self.node_id = (await driver.info()).node_id
        except (PilotError, trio.BrokenResourceError):
            return False
        return self.node_id != 0

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        with trio.fail_after(START_TIMEOUT):
            await self.process.wait()

    async def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> CtlResult:
        """Run the real pilotctl against it."""
        return await self.home.ctl(*arguments, timeout=timeout)

    async def our_ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> CtlResult:
        """Run our command line tool against it."""
        return await our_ctl(self.home, *arguments, timeout=timeout)

    def driver(self) -> contextlib.AbstractAsyncContextManager[Driver]:
        """Connect our driver to it."""
        return open_driver(self.home.socket)

    async def info(self) -> dict[str, Any]:
        """What it says about itself."""
        data = (await self.ctl("info")).data
        assert isinstance(data, dict)
        return data


@attrs.define(eq=False)
class Overlay:
    """A rendezvous and its nodes."""

    rendezvous: Restartable
    make_home: MakeHome
    nodes: list[OverlayNode] = attrs.field(factory=list)

    async def start(self, kind: Kind, *flags: str, public: bool = True, beacon: Endpoint | None = None) -> OverlayNode:
        """Start one more node."""
        handle = self.rendezvous.handle
        assert handle.registry is not None
        assert handle.beacon is not None
        home = self.make_home(handle.registry, beacon or handle.beacon)
        # The tool guesses its own sockets and tokens otherwise; a test says what it means.
        home.environment["PILOT_ADMIN_TOKEN"] = ADMIN_TOKEN
        node = OverlayNode(kind, home, (*(("-public",) if public else ()), *flags))
        self.nodes.append(node)
        await node.start()
        return node


@contextlib.asynccontextmanager
async def open_overlay(make_home: MakeHome, store: Path | None = None) -> AsyncGenerator[Overlay, None]:
    """Run a rendezvous, one that remembers if it has a `store`; at the end every node is killed."""
    async with open_rendezvous(store) as rendezvous:
        overlay = Overlay(rendezvous, make_home)
        try:
            yield overlay
        finally:
            with trio.CancelScope(shield=True):
                for node in overlay.nodes:
                    node.process.kill()
                    await node.process.wait()


def fields(text: str) -> dict[str, Any]:
    """Decode a JSON object."""
    value = json.loads(text)
    assert isinstance(value, dict)
    return value
