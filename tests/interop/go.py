"""Starts the real 1.18.0 programs: each in a home of its own, on loopback, with nothing of it left behind.

    home = GoHome.create(programs, registry=registry, beacon=beacon)
    async with open_go_daemon(home) as daemon:
        print(daemon.node_id, await daemon.ctl("info"))
    home.remove()

The programs come with the `pilotprotocol` wheel. They are told not to report, poll or install anything, and a proxy that
nobody serves stands between them and the rest of the world.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import attrs
import trio

from pilot_trio.net.network import Endpoint

START_TIMEOUT: Final = 90.0  # seconds; the daemon needs 0.1, and 48 before it gives up on an unreachable registry
STOP_TIMEOUT: Final = 5.0  # seconds after SIGTERM until SIGKILL
CTL_TIMEOUT: Final = 90.0  # seconds; pilotctl's own deadlines are shorter for everything the tests call

_QUIET_FLAGS: Final = ("-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject")
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


class GoPrograms(NamedTuple):
    """Where the real programs are."""

    daemon: Path
    ctl: Path

    @classmethod
    def find(cls) -> GoPrograms | None:
        """Return the programs of the installed `pilotprotocol` package, None if it is not installed."""
        spec = importlib.util.find_spec("pilotprotocol")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "bin"
        found = cls(folder / "pilot-daemon", folder / "pilotctl")
        return found if all(path.exists() for path in found) else None

    def runnable(self, folder: Path) -> GoPrograms:
        """Return these programs, or copies in `folder` if an installer lost the permission to run them."""
        if all(os.access(path, os.X_OK) for path in self):
            return self
        copies = GoPrograms(*(Path(shutil.copy(path, folder)) for path in self))
        for path in copies:
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return copies


class CtlResult(NamedTuple):
    """What pilotctl answered."""

    returncode: int
    output: str
    errors: str

    @property
    def envelope(self) -> dict[str, Any]:
        """The `--json` envelope: on standard output when all is well, on standard error when not."""
        for text in (self.output, self.errors):
            start = text.find("{")
            if start >= 0:
                value = json.loads(text[start:])
                assert isinstance(value, dict)
                return value
        raise AssertionError(f"pilotctl answered no JSON: {self}")

    @property
    def data(self) -> Any:
        """What the envelope carries, after a check that the command succeeded."""
        assert self.returncode == 0, self
        assert self.envelope["status"] == "ok", self
        return self.envelope.get("data")


@attrs.define(eq=False)
class GoHome:
    """A home directory for one daemon and the pilotctl that talks to it; it outlives restarts of the daemon."""

    programs: GoPrograms
    root: Path  # short: the path of a Unix socket must stay below 108 bytes
    environment: dict[str, str]

    @classmethod
    def create(
        cls, programs: GoPrograms, *, registry: Endpoint, beacon: Endpoint, environment: Mapping[str, str] | None = None
    ) -> GoHome:
        """Make an empty home that knows one rendezvous."""
        root = Path(tempfile.mkdtemp(prefix="pt", dir="/tmp"))
        nowhere = "http://127.0.0.1:1"  # feeds and catalogues fail at once instead of being fetched
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "XDG_RUNTIME_DIR": str(root),
            "PILOT_SOCKET": str(root / "s"),
            "PILOT_REGISTRY": str(registry),
            "PILOT_BEACON": str(beacon),
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_COLOR": "1",
        }
        return cls(programs.runnable(root), root, variables | dict(environment or {}))

    @property
    def socket(self) -> Path:
        """The daemon's IPC socket."""
        return self.root / "s"

    @property
    def identity(self) -> Path:
        """The daemon's key file."""
        return self.root / "identity.json"

    async def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT, admin_token: str = "") -> CtlResult:
        """Run `pilotctl --json ARGUMENTS`. Raises `trio.TooSlowError` after `timeout` seconds."""
        extra = {"PILOT_ADMIN_TOKEN": admin_token} if admin_token else {}
        with trio.fail_after(timeout):
            done = await trio.run_process(
                [str(self.programs.ctl), "--json", *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self.environment | extra,
            )
        return CtlResult(done.returncode, done.stdout.decode(), done.stderr.decode())

    def remove(self) -> None:
        """Delete everything in it."""
        shutil.rmtree(self.root, ignore_errors=True)


@attrs.define(eq=False)
class GoDaemon:
    """A running real daemon. Its log is read as it is written, so waiting for a line needs no polling."""

    home: GoHome
    process: trio.Process
    log: list[str] = attrs.field(factory=list)
    _progress: trio.Event = attrs.field(
        factory=trio.Event
    )  # set, and replaced, whenever a line was added or the log ended
    _ended: bool = False

    async def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT, admin_token: str = "") -> CtlResult:
        """Run pilotctl against this daemon; see `GoHome.ctl`."""
        return await self.home.ctl(*arguments, timeout=timeout, admin_token=admin_token)

    @property
    def node_id(self) -> int:
        """The id it registered with last."""
        lines = [line for line in self.log if 'msg="daemon registered"' in line or "re-registered" in line]
        return int(self.fields([line for line in lines if " node_id=" in line][-1])["node_id"])

    @property
    def endpoint(self) -> str:
        """Where it listens for tunnel datagrams, host:port."""
        (line,) = (line for line in self.log if 'msg="tunnel listening"' in line)
        return self.fields(line)["addr"]

    @staticmethod
    def fields(line: str) -> dict[str, str]:
        """Split a log line into its fields."""
        return {key: json.loads(value) if value[:1] == '"' else value for key, value in _FIELD.findall(line)}

    async def wait_for_log(self, *texts: str, timeout: float = START_TIMEOUT, start: int = 0) -> str:
        """Return the first line from index `start` on that contains all `texts`, waiting for it.

        Raises `trio.TooSlowError` after `timeout` seconds and `AssertionError` if the daemon ends before.
        """

        def matches(line: str) -> bool:
            return all(text in line for text in texts)

        return await self.wait_until(lambda: next(filter(matches, self.log[start:]), None), timeout=timeout)

    async def wait_until(self, condition: Callable[[], str | None], *, timeout: float) -> str:
        """Return what `condition` returns once that is not None; it is asked after each new line of the log."""
        with trio.fail_after(timeout):
            while (found := condition()) is None:
                assert not self._ended, "the daemon ended:\n" + "\n".join(self.log)
                await self._progress.wait()
        return found

    async def wait(self, timeout: float) -> int:
        """Wait for its end; return the exit code."""
        with trio.fail_after(timeout):
            return await self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return its exit code. Kills it if it does not comply in `STOP_TIMEOUT` seconds."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        with trio.move_on_after(STOP_TIMEOUT):
            return await self.process.wait()
        self.process.kill()
        return await self.process.wait()

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async with self.process.stdout:
            async for chunk in self.process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                self.log += (line.decode("utf-8", "replace") for line in lines)
                self._tell()
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()


@contextlib.asynccontextmanager
async def open_go_daemon(
    home: GoHome, *flags: str, ready: str = 'msg="daemon running"', environment: Mapping[str, str] | None = None
) -> AsyncGenerator[GoDaemon, None]:
    """Start a real daemon in `home`, wait for the log line that contains `ready` ("": do not wait), kill it at the end.

    `flags` go behind the usual ones, so they win. Raises `AssertionError` with its log if it ends before it is ready.
    """
    command = [str(home.programs.daemon), *_default_flags(home), *flags]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=home.environment | dict(environment or {}),
    )
    daemon = GoDaemon(home, process)
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(daemon._read_log)
            if ready:
                await daemon.wait_for_log(ready)
            yield daemon
        finally:
            # Killed: it would spend seconds on a farewell that nobody waits for. Tests that want one call `stop`.
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


def _default_flags(home: GoHome) -> Sequence[str]:
    return (
        *_QUIET_FLAGS,
        *("-socket", str(home.socket)),
        *("-identity", str(home.identity)),
        *("-listen", "127.0.0.1:0"),
        *("-log-level", "debug"),
    )
