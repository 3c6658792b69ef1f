"""The daemon in the background: `daemon start`, `stop`, `status`, and in the foreground: `daemon run`."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from pilot_trio.address import quote
from pilot_trio.cli import process_table
from pilot_trio.cli.framework import PilotSubgroup, command, duration, option, pass_through, switch, timeout
from pilot_trio.cli.ipc_client import DaemonGone, DaemonNotRunning, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import EXIT_FAILURE, CliError, format_clock
from pilot_trio.cli.process_table import PidFile
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, decode_object
from pilot_trio.errors import DaemonError
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Run a node"
READY_TIMEOUT: Final = 15.0  # seconds until a started daemon must answer; protocol, `spec/cli.md` §6.2
POLL_TIMEOUT: Final = 1.0  # seconds for one question while a daemon starts
_TRANSPORTS: Final = ("", "udp", "compat", "auto")

# Flags of the daemon that are passed on when they are given here or, for those named, found in config.json.
_FROM_CONFIG: Final = ("email", "hostname", "webhook", "networks")
_FORWARDED: Final = ("listen", "endpoint", "log_level", "log_format", "transport", *_FROM_CONFIG)


@command("start", section=_SECTION)
@option("config", "configuration file", "path")
@option("registry", "registry to use", "host:port")
@option("beacon", "beacon to use", "host:port")
@option("listen", "UDP address for tunnels", "addr")
@option("socket", "Unix socket for local programs", "path")
@option("identity", "key file", "path")
@option("email", "owner's email address", "addr")
@option("owner", "old name of --email", "addr")
@option("hostname", "name of this node", "name")
@option("endpoint", "own public endpoint", "host:port")
@switch("public", "let everybody see this node's endpoint")
@option("webhook", "URL that events are posted to", "url")
@option("admin-token", "admin token", "token")
@option("networks", "networks to join", "ids")
@switch("trust-auto-approve", "approve every request for trust")
@option("log-level", "debug, info, warn or error", "level")
@option("log-format", "text or json", "format")
@option("transport", "udp or auto", "name")
@switch("no-encrypt", "no tunnel encryption")
@switch("foreground", "become the daemon instead of starting one")
@duration("wait", f"how long to wait for the daemon to be ready (default {READY_TIMEOUT:g}s)")
def start(session: Session, foreground: bool, wait: float | None, admin_token: str | None, **flags: Any) -> None:
    """Start a daemon in the background and wait until it is registered."""
    _check_transport(flags)
    pids = PidFile(session.home)
    _refuse_second(session, pids, flags)
    command_ = [*process_table.daemon_command(session.environ), *_arguments(session, flags)]
    environ = dict(session.environ)
    token = admin_token or session.setting("admin_token", "PILOT_ADMIN_TOKEN")
    if token:
        environ["PILOT_ADMIN_TOKEN"] = token  # never in argv, which every user of the machine can read
    socket = Path(flags.get("socket") or session.socket)
    pids.claim()
    if foreground:
        pids.write(os.getpid())
        os.execvpe(command_[0], command_, environ)  # noqa: S606  (this process becomes the daemon)
    try:
        process, log = process_table.spawn(command_, environ, session.home)
        pids.write(process.pid)
    except BaseException:
        pids.remove()
        raise
    patience = READY_TIMEOUT if wait is None else wait
    info = _wait_ready(process, log, socket, patience, pids)
    data = {
        "node_id": info.get("node_id"),
        "address": info.get("address"),
        "pid": process.pid,
        "socket": str(socket),
        "hostname": info.get("hostname", ""),
        "log_file": str(log),
        "transport": "udp",
    }
    out = session.output

    def human() -> None:
        out.line(f"Daemon running (pid {process.pid})")
        registered = data["node_id"] or "not registered yet: the registry does not answer"
        out.line(f"  Address:  {data['address'] if data['node_id'] else registered}")
        for label, key in (("Hostname", "hostname"), ("Socket", "socket"), ("Logs", "log_file")):
            if data[key]:
                out.line(f"  {label + ':':9} {data[key]}")

    out.result(data, human)


@command("stop", section=_SECTION)
def stop(session: Session) -> None:
    """Stop the daemon that was started in the background."""
    pids = PidFile(session.home)
    pid = pids.read()
    if not process_table.is_daemon(pid):
        _nothing_to_stop(session, pids, pid)
    forced = process_table.stop(pid)
    pids.remove()
    verb = "force-stopped" if forced else "stopped"
    data: dict[str, Any] = {"pid": pid, **({"forced": True} if forced else {})}
    session.output.result(data, lambda: session.output.line(f"daemon {verb} (pid {pid})"))


@command("status", section=_SECTION)
@switch("check", "say nothing, exit 0 if the daemon answers, else 1")
@timeout()
def status(session: Session, check: bool, timeout: float) -> int:
    """Say whether a daemon runs and answers."""
    pids = PidFile(session.home)
    pid = pids.read() if process_table.is_daemon(pids.read()) else 0
    info = _ask_info(session.socket, timeout)
    if check:
        return 0 if info is not None else EXIT_FAILURE
    data: dict[str, Any] = {
        "running": bool(pid) or info is not None,
        "responsive": info is not None,
        "pid": pid,
        "pid_file": str(pids.path),
        "socket": session.socket,
    }
    for key in ("node_id", "address", "hostname", "uptime_secs", "peers", "connections"):
        if info is not None:
            data[key] = info.get(key)
    session.output.result(data, lambda: _print_status(session, data, info))
    return 0


@pass_through("run", "[daemon flags; see -help]", section=_SECTION)
def run(_session: Session, words: list[str]) -> int:
    """Run the daemon in this terminal; takes the flags of pilot-trio-daemon (-help lists them)."""
    from pilot_trio.cli.daemon_entry import main

    return main(words)


def _check_transport(flags: dict[str, Any]) -> None:
    transport = flags.get("transport") or ""
    if transport not in _TRANSPORTS:
        text = f"daemon start: invalid transport {quote(transport)}: must be udp, compat or auto"
        raise CliError("invalid_argument", text)


def _refuse_second(session: Session, pids: PidFile, flags: dict[str, Any]) -> None:
    hint = "stop it first with: pilot-trio daemon stop"
    pid = pids.read()
    if process_table.is_daemon(pid):
        raise CliError("already_exists", f"daemon is already running (pid {pid})", hint)
    if pid:
        pids.remove()
    socket = Path(flags.get("socket") or session.socket)
    if _connects(socket):
        raise CliError("already_exists", f"daemon is already running (socket {socket} is active)", hint)


def _arguments(session: Session, flags: dict[str, Any]) -> list[str]:
    registry = flags.get("registry") or session.setting("registry", "PILOT_REGISTRY")
    beacon = flags.get("beacon") or session.setting("beacon", "PILOT_BEACON")
    words = ["--socket", str(flags.get("socket") or session.socket)]
    words += ["--identity", flags.get("identity") or str(session.home / "identity.json")]
    if registry:
        words += ["--registry", registry]
    if beacon:
        words += ["--beacon", beacon]
    flags["email"] = flags.get("email") or flags.get("owner")
    for key in _FORWARDED:
        value = flags.get(key) or (session.config.get(key) if key in _FROM_CONFIG else None)
        if value:
            words += [f"--{key.replace('_', '-')}", str(value)]
    if flags.get("config") or session.config_path.exists():
        words += ["--config", flags.get("config") or str(session.config_path)]
    words += [f"--{key.replace('_', '-')}" for key in ("public", "trust_auto_approve") if flags.get(key)]
    return [*words, "--encrypt=false"] if flags.get("no_encrypt") else words


def _wait_ready(
    process: subprocess.Popen[bytes], log: Path, socket: Path, patience: float, pids: PidFile
) -> dict[str, Any]:
    """Wait for the daemon's registration; a daemon that answers without one by the end is running too."""
    deadline = time.monotonic() + patience
    info: dict[str, Any] | None = None
    while True:
        code = process.poll()
        if code is not None:
            pids.remove()
            how = f"exit status {code}" if code >= 0 else f"signal {-code}"
            text = f"daemon (pid {process.pid}) exited during startup ({how}): {process_table.failure_reason(log)}"
            raise CliError("internal", text, f"check logs: tail -f {log}")
        info = _ask_info(socket, POLL_TIMEOUT) or info
        if info is not None and info.get("node_id"):
            return info
        if time.monotonic() >= deadline:
            break
        time.sleep(process_table.POLL_INTERVAL)
    if info is None:
        text = f"daemon started (pid {process.pid}) but did not become ready within {patience:g}s"
        raise CliError("timeout", text, f"check logs: tail -f {log}")
    return info


def _ask_info(socket: Path | str, timeout: float) -> dict[str, Any] | None:
    try:
        with IPCClient(socket, deadline_in(timeout)) as client:
            return decode_object(client.request(Code.INFO, b"", deadline_in(timeout)))
    except (DaemonNotRunning, DaemonTimeout, DaemonGone, DaemonError, CliError):
        return None


def _connects(socket: Path | str) -> bool:
    try:
        IPCClient(socket, deadline_in(REQUEST_TIMEOUT)).close()
    except DaemonNotRunning:
        return False
    except DaemonTimeout:
        return True  # somebody listens, and does not accept
    return True


def _nothing_to_stop(session: Session, pids: PidFile, pid: int) -> None:
    if _connects(session.socket):
        text = "daemon socket is active but PID file is missing and the owning process could not be identified"
        raise CliError("not_running", text, "stop it where it was started")
    if pid:
        pids.remove()
        raise CliError("not_running", "daemon is not running (cleaned up stale state)")
    raise CliError("not_running", "daemon is not running")


def _print_status(session: Session, data: dict[str, Any], info: dict[str, Any] | None) -> None:
    out = session.output
    if info is None:
        out.line(out.state(good=False, text="pilot-daemon " + ("not responding" if data["pid"] else "stopped")))
        out.line(f"  pid {data['pid']}" if data["pid"] else "  start: pilot-trio up, or pilot-trio daemon start")
        return
    pid = f" · pid {data['pid']}" if data["pid"] else ""
    out.line(out.state(good=True, text="pilot-daemon running"))
    out.line(
        f"  uptime    {format_clock(info.get('uptime_secs') or 0)}{pid} · {info.get('connections', 0)} connection(s)"
    )
    names = [str(info.get("node_id")), str(info.get("address")), str(info.get("hostname") or "")]
    out.line(f"  node      {' · '.join(name for name in names if name)}")
    out.line(
        f"  peers     {info.get('peers', 0)} ({info.get('encrypted_peers', 0)} encrypted,"
        f" {info.get('relay_peer_count', 0)} via relay)"
    )


daemon: Final = PilotSubgroup(
    "daemon",
    _SECTION,
    "Run a node in the background: start, stop, status; or in this terminal: run.",
    (start, stop, status, run),
)
COMMANDS: Final = {"daemon": daemon}
