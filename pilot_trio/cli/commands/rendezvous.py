"""`rendezvous`: registry, beacon and their page alone, for the nodes of others."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilot_trio.cli.framework import command, duration, option, switch
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import Session

if TYPE_CHECKING:  # a server takes longer to load than the help of this command may take
    import trio

    from pilot_trio.config import RendezvousConfig
    from pilot_trio.rendezvous.serve import RendezvousHandle

_SECTION: Final = "Run a node"
_STORE: Final = "pilot-trio/rendezvous.db"


@command("rendezvous", section=_SECTION)
@option("registry-addr", "where the registry listens; :9000 is every address", "host:port", default="127.0.0.1:9000")
@option("beacon-addr", "where the beacon listens", "host:port", default="127.0.0.1:9001")
@option("beacon-advertise", "the beacon's endpoint as others reach it", "host:port", default="")
@option("http", "where to show nodes, networks and health as a page, with /healthz and /metrics", "host:port")
@option("store", f"database file (default {_STORE} in ~/.pilot); 'memory' keeps nothing", "path")
@option("admin-token", "token for administration (or $PILOT_ADMIN_TOKEN)", "token")
@option("tls", "additional registry listener with TLS", "host:port")
@option("tls-cert", "its certificate chain (PEM); without one, a self-signed one is made", "path")
@option("tls-key", "the certificate's key (PEM)", "path")
@duration("stale-threshold", "time without a heartbeat until a node's record is dropped (default 30m)")
@option("unlimited", "networks that no rate limit applies to, comma-separated", "cidrs", default="")
@switch("allow-unsigned", "also take daemons that do not sign their registration (before 1.13)")
@option("log-level", "debug, info, warn or error", "level", default="info")
@option("log-format", "text or json", "format", default="text")
def rendezvous(session: Session, **flags: Any) -> None:
    """Run a registry and a beacon in this terminal, until Ctrl-C."""
    from pilot_trio.cli.foreground import run_until_signal
    from pilot_trio.errors import ConfigError

    try:
        settings = _settings(session, flags)
    except (ConfigError, ValueError) as exc:
        raise CliError("invalid_argument", f"rendezvous: {exc}") from exc
    if settings.store is not None:
        settings.store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    start = partial(_start, session, settings)
    run_until_signal(start, log_level=flags["log_level"], log_format=flags["log_format"])


async def _start(session: Session, settings: RendezvousConfig, nursery: trio.Nursery) -> None:
    from pilot_trio.rendezvous.serve import serve_rendezvous

    _announce(session, await nursery.start(partial(serve_rendezvous, settings)), settings)


def _announce(session: Session, handle: RendezvousHandle, settings: RendezvousConfig) -> None:
    out = session.output
    data = {
        "registry": str(handle.registry or ""),
        "tls": str(handle.tls or ""),
        "fingerprint": handle.fingerprint,
        "beacon": str(handle.beacon or ""),
        "http": handle.http,
        "store": str(settings.store or ""),
        "pid": os.getpid(),
    }
    if out.as_json:
        out.event({"data": data, "status": "ok"})
        return
    out.line(out.state(good=True, text="rendezvous running"))
    for label, key in (
        ("registry", "registry"),
        ("TLS", "tls"),
        ("pin", "fingerprint"),
        ("beacon", "beacon"),
        ("page", "http"),
    ):
        if data[key]:
            out.line(f"  {label:9} {data[key]}")
    out.line(f"  store     {data['store'] or 'none: everything is forgotten at the end'}")
    if str(handle.registry or "").startswith(("127.", "[::1]")):
        out.line("\nOnly this machine reaches it. For others: --registry-addr :9000 --beacon-addr :9001")
    out.line("\nA node that uses it:")
    out.line(f"  {session.program} daemon start --registry {data['registry'] or data['tls']} --beacon {data['beacon']}")
    out.line("\nCtrl-C stops it.")


def _settings(session: Session, flags: dict[str, Any]) -> RendezvousConfig:
    from pilot_trio.config import Endpoint, RendezvousConfig

    def endpoint(name: str) -> Endpoint | None:
        return Endpoint.parse(flags[name]) if flags[name] else None

    store = session.home / _STORE if flags["store"] is None else Path(flags["store"])
    stale = flags["stale_threshold"]
    return RendezvousConfig(
        registry=endpoint("registry_addr"),
        tls=endpoint("tls"),
        tls_certificate=Path(flags["tls_cert"]) if flags["tls_cert"] else None,
        tls_key=Path(flags["tls_key"]) if flags["tls_key"] else None,
        beacon=endpoint("beacon_addr"),
        beacon_advertise=flags["beacon_advertise"],
        http=endpoint("http"),
        store=None if flags["store"] == "memory" else store,
        admin_token=flags["admin_token"] or session.environ.get("PILOT_ADMIN_TOKEN", ""),
        allow_unsigned=flags["allow_unsigned"],
        **({"stale_threshold": stale} if stale is not None else {}),
        unlimited=tuple(word.strip() for word in flags["unlimited"].split(",") if word.strip()),
    )


COMMANDS: Final = {"rendezvous": rendezvous}
