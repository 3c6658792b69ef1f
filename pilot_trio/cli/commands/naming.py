"""Names, visibility, and the node's record at the registry."""

from __future__ import annotations

import json
from typing import Final

from pilot_trio.address import quote
from pilot_trio.cli.framework import argument, command, timeout
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import Session, without_endpoints
from pilot_trio.wire.ipc import Code

_DISCOVERY: Final = "Discovery"
_REGISTRY: Final = "Registry"
TAGS_MAX: Final = 3  # tags per node; protocol, `spec/ipc.md` §5.4


@command("find", section=_DISCOVERY)
@argument("hostname")
@timeout()
def find(session: Session, hostname: str, timeout: float) -> None:
    """Say which node has a hostname."""
    try:
        reply = session.ask_once(Code.RESOLVE_HOSTNAME, hostname.encode(), "find: resolve_hostname", timeout)
    except CliError as exc:
        if exc.code != "connection_failed":
            raise
        text = f"cannot find {quote(hostname)} — hostname not found or no mutual trust"
        hint = f'establish trust first: pilot-trio handshake {hostname} "reason"  ({exc.message})'
        raise CliError("not_found", text, hint) from exc
    data = {
        "hostname": hostname,
        "node_id": reply.get("node_id"),
        "address": reply.get("address"),
        "public": bool(reply.get("public")),
    }
    out = session.output
    out.result(
        data,
        lambda: out.line(
            f"Hostname:  {hostname}\nNode ID:   {data['node_id']}\nAddress:   {data['address']}\n"
            f"Visible:   {'public' if data['public'] else 'private'}"
        ),
    )


@command("lookup", section=_DISCOVERY)
@argument("peer", "node_id|address|hostname")
@timeout()
def lookup(session: Session, peer: str, timeout: float) -> None:
    """Print a node's record at the registry, without its endpoints."""
    node = session.resolve_node(peer, timeout)
    reply = session.ask_registry({"type": "lookup", "node_id": node}, "lookup")
    session.output.result(without_endpoints(reply))


@command("set-hostname", section=_DISCOVERY)
@argument("hostname")
@timeout()
def set_hostname(session: Session, hostname: str, timeout: float) -> None:
    """Give this node a name, now and at its next starts."""
    label = "set-hostname: set_hostname"
    reply = session.ask_once(Code.SET_HOSTNAME, hostname.encode(), label, timeout)
    session.save_config({"hostname": hostname})
    data = {"hostname": reply.get("hostname", hostname), "node_id": reply.get("node_id")}
    session.output.result(data, lambda: session.output.line(f"hostname set: {data['hostname']}"))


@command("clear-hostname", section=_DISCOVERY)
@timeout()
def clear_hostname(session: Session, timeout: float) -> None:
    """Take this node's name away."""
    session.ask_once(Code.SET_HOSTNAME, b"", "clear-hostname: set_hostname", timeout)
    session.save_config({"hostname": None})
    session.output.result({"hostname": ""}, lambda: session.output.line("hostname cleared"))


@command("set-public", section=_DISCOVERY)
@timeout()
def set_public(session: Session, timeout: float) -> None:
    """Let everybody see this node's endpoint."""
    _set_visibility(session, "set-public", b"\x01", timeout)


@command("set-private", section=_DISCOVERY)
@timeout()
def set_private(session: Session, timeout: float) -> None:
    """Let only trusted nodes see this node's endpoint."""
    _set_visibility(session, "set-private", b"\x00", timeout)


@command("set-tags", section=_DISCOVERY)
@argument("tags", "tag", many=True)
@timeout()
def set_tags(session: Session, tags: tuple[str, ...], timeout: float) -> None:
    """Describe this node with up to three tags."""
    if len(tags) > TAGS_MAX:
        raise CliError("invalid_argument", f"set-tags: maximum {TAGS_MAX} tags allowed, got {len(tags)}")
    payload = json.dumps(list(tags)).encode()
    reply = session.ask_once(Code.SET_TAGS, payload, "set-tags: set_tags", timeout)
    data = {"node_id": reply.get("node_id"), "tags": reply.get("tags") or list(tags)}
    session.output.result(data, lambda: session.output.line("tags set: " + " ".join(f"#{tag}" for tag in tags)))


@command("clear-tags", section=_DISCOVERY)
@timeout()
def clear_tags(session: Session, timeout: float) -> None:
    """Take this node's tags away."""
    session.ask_once(Code.SET_TAGS, b"[]", "clear-tags: set_tags", timeout)
    session.output.result({"tags": []}, lambda: session.output.line("tags cleared"))


@command("register", section=_REGISTRY)
@timeout()
def register(session: Session, timeout: float) -> None:
    """Show this node's registration.

    The daemon registers by itself, and again whenever the registry has lost it.
    """
    info = session.ask_once(Code.INFO, b"", "register: info", timeout)
    node = info.get("node_id")
    if not node:
        hint = "the daemon keeps trying; see its log for the reason"
        raise CliError("connection_failed", "register: the registry has not accepted this node yet", hint)
    session.output.result({"node_id": node, "address": info.get("address"), "public_key": info.get("public_key")})


@command("deregister", section=_REGISTRY)
@timeout()
def deregister(session: Session, timeout: float) -> None:
    """Remove this node from the registry; the daemon runs on and registers again after a while."""
    session.output.result(session.ask_once(Code.DEREGISTER, b"", "deregister: deregister", timeout))


@command("rotate-key", section=_REGISTRY)
@timeout()
def rotate_key(session: Session, timeout: float) -> None:
    """Replace this node's key pair; its address stays."""
    session.output.result(session.ask_once(Code.ROTATE_KEY, b"", "rotate-key: rotate_key", timeout))


def _set_visibility(session: Session, name: str, payload: bytes, timeout: float) -> None:
    session.output.result(session.ask_once(Code.SET_VISIBILITY, payload, f"{name}: set_visibility", timeout))


COMMANDS: Final = {
    str(c.name): c
    for c in (
        find,
        lookup,
        set_hostname,
        clear_hostname,
        set_public,
        set_private,
        set_tags,
        clear_tags,
        register,
        deregister,
        rotate_key,
    )
}
