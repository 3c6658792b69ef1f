"""Networks: what a member does goes through the daemon, what an administrator does straight to the registry."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

from pilot_trio.address import quote
from pilot_trio.cli.framework import (
    PilotCommand,
    PilotSubgroup,
    argument,
    command,
    count,
    option,
    parse_uint,
    switch,
    timeout,
)
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import Session, without_endpoints
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Networks"
_LIST, _JOIN, _LEAVE, _MEMBERS, _INVITE, _INVITES, _RESPOND = range(1, 8)  # `spec/ipc.md` §5.6
_PEER: Final = "node_id|address|hostname"
_NETWORK: Final = "network_id"
RULES_MAX: Final = 1 << 20  # bytes of a rules file; the registry's message could not carry much more


@command("list", section=_SECTION)
@timeout()
def list_(session: Session, timeout: float) -> None:
    """List the networks that the registry knows."""
    reply = _ask(session, "list", _LIST, b"", timeout)
    out = session.output
    rows = reply.get("networks") or []
    cells = [(row.get("id"), row.get("name"), row.get("join_rule"), row.get("members", "")) for row in rows]
    out.result(reply, lambda: out.table(("ID", "NAME", "JOIN RULE", "MEMBERS"), cells))


@command("join", section=_SECTION)
@argument("network_id")
@option("token", "the network's token, if it wants one", default="")
@count("node-id", "join for this node, as administrator")
@timeout()
def join(session: Session, network_id: str, token: str, node_id: int | None, timeout: float) -> None:
    """Join a network."""
    number = _id(network_id)
    if node_id is not None:
        reply = _administer(
            session, "join", {"type": "join_network", "network_id": number, "node_id": node_id, "token": token}
        )
    else:
        reply = _ask(session, "join", _JOIN, struct.pack("!H", number) + token.encode(), timeout)
    session.output.result(reply, lambda: session.output.line(f"joined network {number} as {reply.get('address', '')}"))


@command("leave", section=_SECTION)
@argument("network_id")
@timeout()
def leave(session: Session, network_id: str, timeout: float) -> None:
    """Leave a network."""
    number = _id(network_id)
    reply = _ask(session, "leave", _LEAVE, struct.pack("!H", number), timeout)
    session.output.result(reply, lambda: session.output.line(f"left network {number}"))


@command("members", section=_SECTION)
@argument("network_id")
@timeout()
def members(session: Session, network_id: str, timeout: float) -> None:
    """List the members of a network."""
    reply = without_endpoints(_ask(session, "members", _MEMBERS, struct.pack("!H", _id(network_id)), timeout))
    out = session.output
    cells = [
        (
            row.get("node_id"),
            row.get("hostname") or "-",
            row.get("version") or "-",
            "public" if row.get("public") else "private",
        )
        for row in reply.get("nodes") or []
    ]
    out.result(reply, lambda: out.table(("NODE ID", "HOSTNAME", "VERSION", "VISIBLE"), cells))


@command("invite", section=_SECTION)
@argument("network_id")
@argument("peer", _PEER)
@timeout()
def invite(session: Session, network_id: str, peer: str, timeout: float) -> None:
    """Invite a node to a network."""
    number = _id(network_id)
    node = session.resolve_node(peer, timeout)
    reply = _ask(session, "invite", _INVITE, struct.pack("!HI", number, node), timeout)
    session.output.result(reply, lambda: session.output.line(f"invited node {node} to network {number}"))


@command("invites", section=_SECTION)
@timeout()
def invites(session: Session, timeout: float) -> None:
    """List the invitations to this node."""
    reply = _ask(session, "poll-invites", _INVITES, b"", timeout)
    out = session.output
    rows = reply.get("invites") or []

    def human() -> None:
        out.table(
            ("NETWORK", "INVITER", "TIME"),
            [(r.get("network_id"), r.get("inviter_id"), r.get("timestamp")) for r in rows],
        )
        if rows:
            out.line(
                "\naccept: pilot-trio network accept <network_id> · reject: pilot-trio network reject <network_id>"
            )

    out.result(reply, human)


def _answer(name: str, verb: str, help_: str) -> PilotCommand:
    """Declare a command that answers an invitation."""
    accepts = name == "accept"

    @command(name, section=_SECTION)
    @argument("network_id")
    @timeout()
    def answer(session: Session, network_id: str, timeout: float) -> None:
        number = _id(network_id)
        reply = _ask(session, "respond-invite", _RESPOND, struct.pack("!HB", number, accepts), timeout)
        session.output.result(reply, lambda: session.output.line(f"{verb} the invitation to network {number}"))

    answer.help = help_
    return answer


@command("create", section=_SECTION)
@option("name", "the network's name")
@option("join-rule", "who may join: open, token or invite", "rule", default="open")
@option("token", "token for joining", default="")
@switch("enterprise", "turn the enterprise features on")
@count("node-id", "the owner; by default this node")
@option("network-admin-token", "a token that administers this network only")
@option("rules", "managed network rules", "json")
@option("rules-file", "file with managed network rules", "path")
@timeout()
def create(
    session: Session,
    name: str | None,
    join_rule: str,
    token: str,
    enterprise: bool,
    node_id: int | None,
    network_admin_token: str | None,
    rules: str | None,
    rules_file: str | None,
    timeout: float,
) -> None:
    """Create a network (administrator)."""
    if not name:
        raise CliError(
            "invalid_argument", "usage: pilot-trio network create --name <text> [--join-rule open|token|invite] …"
        )
    session.admin_token()
    owner = node_id if node_id is not None else _own_node(session, timeout)
    request: dict[str, Any] = {
        "type": "create_network",
        "node_id": owner,
        "name": name,
        "join_rule": join_rule,
        "token": token,
    }
    if enterprise:
        request["enterprise"] = True
    if network_admin_token:
        request["network_admin_token"] = network_admin_token
    if rules or rules_file:
        request["rules"] = rules or _read_rules(Path(str(rules_file)))
    reply = _administer(session, "create", request)
    session.output.result(
        reply, lambda: session.output.line(f"created network {reply.get('network_id')} ({reply.get('name')})")
    )


@command("delete", section=_SECTION)
@argument("network_id")
def delete(session: Session, network_id: str) -> None:
    """Delete a network (administrator)."""
    session.output.result(_administer(session, "delete", {"type": "delete_network", "network_id": _id(network_id)}))


@command("rename", section=_SECTION)
@argument("network_id")
@argument("name", "new_name")
def rename(session: Session, network_id: str, name: str) -> None:
    """Rename a network (administrator)."""
    request = {"type": "rename_network", "network_id": _id(network_id), "name": name}
    session.output.result(_administer(session, "rename", request))


def _member_change(name: str, help_: str) -> PilotCommand:
    """Declare a command that changes what a member is."""

    @command(name, section=_SECTION)
    @argument("network_id")
    @argument("peer", _PEER)
    @timeout()
    def change(session: Session, network_id: str, peer: str, timeout: float) -> None:
        number = _id(network_id)
        session.admin_token()  # asked for before the peer is looked up, so that the first error is the first cause
        node = session.resolve_node(peer, timeout)
        request = {"type": f"{name}_member", "network_id": number, "node_id": 0, "target_node_id": node}
        session.output.result(_administer(session, name, request))

    change.help = help_
    return change


@command("role", section=_SECTION)
@argument("network_id")
@argument("peer", _PEER)
@timeout()
def role(session: Session, network_id: str, peer: str, timeout: float) -> None:
    """Show a member's role."""
    number = _id(network_id)
    node = session.resolve_node(peer, timeout)
    request = {"type": "get_member_role", "network_id": number, "target_node_id": node}
    session.output.result(session.ask_registry(request, "network role"))


@command("policy", section=_SECTION)
@argument("network_id")
@count("max-members", "most members, 0 for no limit")
@option("description", "what the network is for")
@option("allowed-ports", "ports that members may use, comma-separated; empty for all", "ports")
def policy(
    session: Session, network_id: str, max_members: int | None, description: str | None, allowed_ports: str | None
) -> None:
    """Show a network's policy, or change it (administrator)."""
    number = _id(network_id)
    changes: dict[str, Any] = {}
    if max_members is not None:
        changes["max_members"] = max_members
    if description is not None:
        changes["description"] = description
    if allowed_ports is not None:
        words = [word.strip() for word in allowed_ports.split(",") if word.strip()]
        changes["allowed_ports"] = [parse_uint(word, 0xFFFF, f"port {quote(word)}") for word in words]
    if changes:
        request = {"type": "set_network_policy", "network_id": number, **changes}
        session.output.result(_administer(session, "policy", request))
    else:
        reply = session.ask_registry({"type": "get_network_policy", "network_id": number}, "network policy")
        session.output.result(reply)


def _ask(session: Session, label: str, sub: int, body: bytes, timeout: float) -> dict[str, Any]:
    return session.ask_once(Code.NETWORK, bytes((sub,)) + body, f"network {label}", timeout)


def _administer(session: Session, label: str, request: dict[str, Any]) -> dict[str, Any]:
    token = session.admin_token()
    return session.ask_registry({**request, "admin_token": token}, f"network {label}")


def _own_node(session: Session, timeout: float) -> int:
    return int(session.ask_once(Code.INFO, b"", "network create: info", timeout).get("node_id") or 0)


def _read_rules(path: Path) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(RULES_MAX + 1)
    except OSError as exc:
        raise CliError("not_found", f"read --rules-file: {path}: {exc.strerror or exc}") from exc
    if len(body) > RULES_MAX:
        raise CliError("invalid_argument", f"{path} is larger than {RULES_MAX} bytes")
    return body.decode("utf-8", "replace")


def _id(text: str) -> int:
    return parse_uint(text, 0xFFFF, f"network_id {quote(text)}")


network: Final = PilotSubgroup(
    "network",
    _SECTION,
    "Manage overlay networks: list, join, invite, administer.",
    (
        list_,
        create,
        join,
        leave,
        members,
        invite,
        invites,
        _answer("accept", "accepted", "Accept an invitation."),
        _answer("reject", "declined", "Decline an invitation."),
        delete,
        rename,
        _member_change("promote", "Make a member an admin (administrator)."),
        _member_change("demote", "Make an admin a member (administrator)."),
        _member_change("kick", "Remove a member (administrator)."),
        role,
        policy,
    ),
)

COMMANDS: Final = {"network": network}
