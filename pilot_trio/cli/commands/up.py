"""`up`: a node with its own rendezvous, with nothing configured."""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilot_trio.cli import registry_client
from pilot_trio.cli.framework import command, option, switch
from pilot_trio.cli.ipc_client import DaemonNotRunning, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session
from pilot_trio.errors import RegistryError, RegistryUnavailable

if TYPE_CHECKING:  # a node takes longer to load than the help of this command may take
    import trio

    from pilot_trio.config import Config
    from pilot_trio.serving import NodeHandle

_SECTION: Final = "Run a node"
PROBE_TIMEOUT: Final = 2.0  # seconds to find out whether the registry port is taken by a registry
DEMO_PORT: Final = 5000  # port of the example commands; not used by any service


@command("up", section=_SECTION)
@option("hostname", "name of this node", "name", default="")
@option("registry", "use this registry instead of an own one", "host:port")
@option("beacon", "use this beacon instead of an own one", "host:port")
@option("rendezvous-registry", "where the own registry listens", "host:port", default="127.0.0.1:9000")
@option("rendezvous-beacon", "where the own beacon listens", "host:port", default="127.0.0.1:9001")
@option("rendezvous-http", "where to show the rendezvous as a page", "host:port")
@option("socket", "Unix socket for local programs", "path")
@option("identity", "key file (default identity.json in ~/.pilot)", "path")
@option("email", "owner's email address", "addr", default="")
@switch("public", "let everybody see this node's endpoint")
@switch("trust-auto-approve", "approve every request for trust")
@option("admin-token", "admin token of the own registry", "token")
@option("log-level", "debug, info, warn or error", "level", default="warn")
@option("log-format", "text or json", "format", default="text")
def up(session: Session, **flags: Any) -> None:
    """Run a node and its own rendezvous in this terminal, until Ctrl-C.

    If a registry answers already where the own one would listen, the node joins that one.
    """
    socket = Path(flags["socket"] or session.socket)
    _refuse_second(socket)
    joined = None if flags["registry"] else _registry_at(flags["rendezvous_registry"])

    from pilot_trio.cli.foreground import run_until_signal
    from pilot_trio.errors import ConfigError

    try:
        config = _config(session, flags, socket, joined)
    except (ConfigError, ValueError) as exc:
        raise CliError("invalid_argument", f"up: {exc}") from exc
    start = partial(_start, session, config, joined)
    run_until_signal(start, log_level=flags["log_level"], log_format=flags["log_format"])


async def _start(session: Session, config: Config, joined: str | None, nursery: trio.Nursery) -> None:
    from pilot_trio.serving import serve

    handle: NodeHandle = await nursery.start(partial(serve, config))
    nursery.start_soon(_accompany, session, handle, joined)


async def _accompany(session: Session, handle: NodeHandle, joined: str | None) -> None:
    """Tell the user and the other commands of the node, as long as it runs."""
    import trio

    from pilot_trio.cli import runtime_file

    facts = {"registry": str(handle.registry), "beacon": str(handle.beacon or "")}
    await trio.to_thread.run_sync(runtime_file.write, session.home, handle.socket, facts)
    try:
        if not handle.registered:
            session.output.note(f"waiting for the registry at {handle.registry}; everything local works already")
        await handle.wait_registered()
        _announce(session, handle, joined)
        await trio.sleep_forever()
    finally:
        runtime_file.remove(session.home, handle.socket)


def _announce(session: Session, handle: NodeHandle, joined: str | None) -> None:
    out = session.output
    embedded = handle.rendezvous
    data = {
        "address": str(handle.address),
        "node_id": handle.node_id,
        "socket": str(handle.socket),
        "registry": str(handle.registry),
        "beacon": str(handle.beacon or ""),
        "embedded": embedded is not None,
        "pid": os.getpid(),
    }
    if out.as_json:
        out.event({"data": data, "status": "ok"})
        return
    how = "embedded" if embedded is not None else "was running here already; joined" if joined else "as told"
    out.line(out.state(good=True, text="node running"))
    out.line(f"  address   {out.styled(str(data['address']), 'cyan')}")
    out.line(f"  socket    {data['socket']}")
    out.line(f"  registry  {data['registry']} ({how})")
    if embedded is not None and embedded.http:
        out.line(f"  page      {embedded.http}")
    examples = (
        f"ping {data['address']}",
        f"recv {DEMO_PORT} --idle 1s",
        f"send {data['address']} {DEMO_PORT} --data hello",
    )
    # Commands find the socket by themselves unless this one was told another.
    prefix = "" if handle.socket == Path(session.socket) else f"PILOT_SOCKET={shlex.quote(str(handle.socket))} "
    out.line("\nTry, in other terminals:")
    for example in examples:
        out.line(f"  {prefix}{session.program} {example}")
    out.line("\nCtrl-C stops the node.")


def _config(session: Session, flags: dict[str, Any], socket: Path, joined: str | None) -> Config:
    import attrs

    from pilot_trio.config import Config, Endpoint, RegistryConfig, RendezvousConfig, TrustConfig

    registry = flags["registry"] or joined
    beacon = flags["beacon"] or (flags["rendezvous_beacon"] if joined else None)
    token = flags["admin_token"] or session.setting("admin_token", "PILOT_ADMIN_TOKEN")
    config = Config(
        home=session.home,
        socket=socket,
        identity=Path(flags["identity"] or session.home / "identity.json"),
        registry=RegistryConfig(endpoint=Endpoint.parse(registry) if registry else None),
        beacon=(beacon,) if beacon else (),
        hostname=flags["hostname"],
        email=flags["email"],
        public=flags["public"],
        admin_token=token,
        trust=TrustConfig(auto_approve=flags["trust_auto_approve"]),
        # A registry on this machine knows nodes on this machine alone.
        listen=Endpoint("", 0) if flags["registry"] else Endpoint("127.0.0.1", 0),
    )
    if config.rendezvous is None:
        return config
    rendezvous = RendezvousConfig(
        registry=Endpoint.parse(flags["rendezvous_registry"]),
        beacon=Endpoint.parse(flags["rendezvous_beacon"]),
        http=Endpoint.parse(flags["rendezvous_http"]) if flags["rendezvous_http"] else None,
        store=config.rendezvous.store,
        admin_token=token,
    )
    return attrs.evolve(config, rendezvous=rendezvous)


def _refuse_second(socket: Path) -> None:
    who = ""
    try:
        with IPCClient(socket, deadline_in(REQUEST_TIMEOUT)) as client:
            who = f" (pid {client.daemon_pid})"
    except DaemonNotRunning:
        return
    except DaemonTimeout:
        pass  # somebody listens, and does not accept
    hint = (
        "use it (pilot-trio info), stop it (pilot-trio daemon stop), or give this one another --socket and --identity"
    )
    raise CliError("already_exists", f"a daemon is already running on {socket}{who}", hint)


def _registry_at(endpoint: str) -> str | None:
    """Return the endpoint if a registry answers there, None if nobody does; raise if somebody else does."""
    if endpoint.endswith(":0"):
        return None
    try:
        registry_client.call(endpoint, {"type": "list_networks"}, timeout=PROBE_TIMEOUT)
    except RegistryUnavailable as exc:
        if isinstance(exc.__cause__, ConnectionRefusedError):
            return None
        if isinstance(exc.__cause__, ValueError):
            raise CliError("invalid_argument", f"--rendezvous-registry: {exc.text}") from exc
        text = f"{endpoint} is taken by a program that is no registry ({exc.text})"
        hint = "listen elsewhere: --rendezvous-registry 127.0.0.1:0 --rendezvous-beacon 127.0.0.1:0"
        raise CliError("already_exists", text, hint) from exc
    except RegistryError:
        return endpoint  # it answers as a registry does
    return endpoint


COMMANDS: Final = {"up": up}
