"""Whom this node trusts: `handshake`, `pending`, `approve`, `reject`, `untrust`, `trust`."""

from __future__ import annotations

import struct
import time
from datetime import UTC, datetime
from typing import Any, Final

from pilot_trio.address import quote
from pilot_trio.cli.framework import argument, command, count, duration, option, timeout
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import DIAL_TIMEOUT, Session, literal_target
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Trust"
_SEND, _APPROVE, _REJECT, _PENDING, _TRUSTED, _REVOKE, _WAIT = range(1, 8)  # `spec/ipc.md` §5.5
_NODE: Final = struct.Struct("!I")
_PEER: Final = "node_id|address|hostname"


@command("handshake", section=_SECTION)
@argument("peer", _PEER)
@argument("justification", required=False)
@duration("wait", "wait this long for the peer's approval")
@timeout(f"{DIAL_TIMEOUT:g}s")
def handshake(session: Session, peer: str, justification: str | None, wait: float | None, timeout: float) -> None:
    """Ask a node to trust this one."""
    node = _node(session, peer, timeout)
    body = _NODE.pack(node) + (justification or "").encode()
    out = session.output
    out.note(f"sending handshake to node {node}...")
    reply = _ask(session, "handshake", "handshake", _SEND, body, timeout)
    if wait is None:
        out.result(reply, lambda: out.line(_sent(node)))
        return
    patience = max(wait, 0.0)
    milliseconds = min(int(patience * 1000), 0xFFFFFFFF)
    waited = _ask(session, "handshake", "wait", _WAIT, _NODE.pack(node) + _NODE.pack(milliseconds), patience + timeout)
    trusted = bool(waited.get("trusted"))
    result = {**reply, "trusted": trusted}
    out.result(
        result, lambda: out.line(f"node {node} trusts this node" if trusted else f"{_sent(node)}\nno answer yet")
    )


@command("pending", section=_SECTION)
@timeout()
def pending(session: Session, timeout: float) -> None:
    """List the nodes that ask for trust."""
    rows = _ask(session, "pending", "pending", _PENDING, b"", timeout).get("pending") or []
    out = session.output

    def human() -> None:
        out.line(f"{len(rows)} request(s) for trust")
        for row in rows:
            node = row.get("node_id")
            out.line(f"\n  {out.styled(f'node {node}', 'bold')} · {_age(row.get('received_at'))}")
            out.line(f"  {row.get('justification') or '(no reason given)'}")
            out.line(f'  accept: pilot-trio approve {node} · decline: pilot-trio reject {node} "reason"')

    out.result({"pending": rows}, human)


@command("approve", section=_SECTION)
@argument("peer", _PEER)
@timeout()
def approve(session: Session, peer: str, timeout: float) -> None:
    """Trust a node that asked for it."""
    node = _asking(session, "approve", peer, timeout)
    reply = _ask(session, "approve", "approve", _APPROVE, _NODE.pack(node), timeout)
    session.output.result(reply, lambda: session.output.line(f"node {node} is trusted now"))


@command("reject", section=_SECTION)
@argument("peer", _PEER)
@argument("reason", required=False)
@timeout()
def reject(session: Session, peer: str, reason: str | None, timeout: float) -> None:
    """Refuse a node that asked for trust."""
    node = _asking(session, "reject", peer, timeout)
    body = _NODE.pack(node) + (reason or "").encode()
    reply = _ask(session, "reject", "reject", _REJECT, body, timeout)
    session.output.result(reply, lambda: session.output.line(f"request of node {node} rejected"))


@command("untrust", section=_SECTION)
@argument("peer", _PEER)
@timeout()
def untrust(session: Session, peer: str, timeout: float) -> None:
    """Take trust away from a node."""
    node = session.resolve_node(peer, timeout)
    _ask(session, "untrust", "revoke", _REVOKE, _NODE.pack(node), timeout)
    session.output.result({"node_id": node}, lambda: session.output.line(f"node {node} is no longer trusted"))


@command("trust", section=_SECTION)
@count("limit", "rows to show, 0 for all", 20)
@option("search", "only rows that contain this", "text")
@timeout()
def trust(session: Session, limit: int, search: str | None, timeout: float) -> None:
    """List the nodes that this one trusts, newest first."""
    rows: list[dict[str, Any]] = _ask(session, "trust", "trusted", _TRUSTED, b"", timeout).get("trusted") or []
    wanted = (search or "").lower()
    found = [row for row in rows if wanted in f"{row.get('node_id')} {row.get('hostname', '')}".lower()]
    found.sort(key=lambda row: -(row.get("approved_at") or 0))
    shown = found[:limit] if limit > 0 else found
    out = session.output

    def human() -> None:
        out.line(f"{len(found)} trusted node(s)")
        if shown:
            out.line()
            cells = [
                (
                    row.get("node_id"),
                    row.get("hostname", ""),
                    _when(row.get("approved_at")),
                    "mutual" if row.get("mutual") else "one-way",
                )
                for row in shown
            ]
            out.table(("NODE ID", "HOSTNAME", "APPROVED", "DIRECTION"), cells)
        if len(shown) < len(found):
            out.line(f"… {len(found) - len(shown)} more: --limit 0")

    out.result({"trusted": shown, "total": len(found)}, human)


def _ask(session: Session, command_: str, label: str, sub: int, body: bytes, timeout: float) -> dict[str, Any]:
    return session.ask_once(Code.HANDSHAKE, bytes((sub,)) + body, f"{command_}: {label}", timeout)


def _asking(session: Session, command_: str, peer: str, timeout: float) -> int:
    """Return the node, which must have asked: the daemon says yes to anything (`spec/cli.md` §6.10)."""
    node = session.resolve_node(peer, timeout)
    rows = _ask(session, command_, "pending", _PENDING, b"", timeout).get("pending") or []
    if not any(row.get("node_id") == node for row in rows):
        raise CliError("not_found", f"{command_}: node {node} has not asked for trust", "see: pilot-trio pending")
    return node


def _node(session: Session, peer: str, timeout: float) -> int:
    known = literal_target(peer)
    if known is not None:
        return known.node
    label = f"resolve {quote(peer)}: resolve_hostname"
    try:
        reply = session.ask_once(Code.RESOLVE_HOSTNAME, peer.encode(), label, timeout)
    except CliError as exc:
        code = "not_found" if exc.code == "connection_failed" else exc.code
        raise CliError(code, exc.message, exc.hint) from exc
    session.output.note(f"resolved {peer} → node {reply.get('node_id')}")
    return int(reply.get("node_id") or 0)


def _sent(node: int) -> str:
    return f"request sent to node {node}; it has to be approved there\nsee: pilot-trio trust"


def _when(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _age(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    minutes = int(max(time.time() - seconds, 0) // 60)
    span = f"{minutes // 1440}d{minutes // 60 % 24}h" if minutes >= 1440 else f"{minutes // 60}h{minutes % 60}m"
    return f"{span} ago ({_when(seconds)})"


COMMANDS: Final = {c.name: c for c in (handshake, pending, approve, reject, untrust, trust)}
