"""What the daemon is doing: `info`, `health`, `peers`, `connections`, `disconnect`."""

from __future__ import annotations

from typing import Any, Final

from pilot_trio.cli.framework import argument, command, count, option, parse_uint, switch, timeout
from pilot_trio.cli.ipc_client import deadline_in
from pilot_trio.cli.output import Output, format_bytes, format_clock
from pilot_trio.cli.session import Session, daemon_errors, without_endpoints
from pilot_trio.wire.info_rows import with_paths
from pilot_trio.wire.ipc import Code

_SECTION: Final = "State"
_ROWS_MAX: Final = 50  # connections shown to a person; JSON has them all


@command("info", section=_SECTION)
@timeout()
def info(session: Session, timeout: float) -> None:
    """Print the daemon's whole state: identity, network, traffic."""
    data = without_endpoints(session.ask_once(Code.INFO, b"", "info", timeout))
    data["networks"] = data.get("networks") or []
    session.output.result(data, lambda: _print_info(session.output, data))


@command("health", section=_SECTION)
@timeout()
def health(session: Session, timeout: float) -> None:
    """Ask whether the daemon is well."""
    data = session.ask_once(Code.HEALTH, b"", "health", timeout)
    session.output.result(data, lambda: _print_health(session.output, data))


@command("peers", section=_SECTION)
@switch("all", "list every peer, also the well connected ones")
@count("limit", "rows to show to a person, 0 for all", 20)
@option("search", "only peers whose node id contains this", "digits")
@timeout()
def peers(session: Session, all: bool, limit: int, search: str | None, timeout: float) -> None:  # noqa: A002  (flag name)
    """List the nodes that this one has tunnels with."""
    reply = session.ask_once(Code.INFO, b"", "info", timeout)
    rows = [without_endpoints(row) for row in reply.get("peer_list") or [] if (search or "") in str(row.get("node_id"))]
    data = {"peers": rows, "total": len(rows), "encrypted": sum(bool(row.get("encrypted")) for row in rows)}
    session.output.result(data, lambda: _print_peers(session.output, rows, limit, everything=all or bool(search)))


@command("connections", section=_SECTION)
@timeout()
def connections(session: Session, timeout: float) -> None:
    """List the open streams."""
    reply = session.ask_once(Code.INFO, b"", "info", timeout)
    rows = with_paths(reply.get("conn_list") or [], reply.get("peer_list") or [])
    own = str(reply.get("address"))
    data = {"connections": rows, "total": len(rows)}
    session.output.result(data, lambda: _print_connections(session.output, rows, own))


@command("disconnect", section=_SECTION)
@argument("conn_id")
@timeout()
def disconnect(session: Session, conn_id: str, timeout: float) -> None:
    """Close a stream, whoever opened it."""
    number = parse_uint(conn_id, 0xFFFFFFFF, "connection ID")
    with session.connect(timeout) as client, daemon_errors("disconnect"):
        client.close_stream(number, deadline_in(timeout))
    session.output.result({"conn_id": number})


def _print_info(out: Output, data: dict[str, Any]) -> None:
    def get(key: str) -> Any:
        return data.get(key) or 0

    out.line(
        out.state(
            bool(get("node_id")), f"pilot-daemon {data.get('version', '')} · up {format_clock(get('uptime_secs'))}"
        )
    )
    registered = f"node {get('node_id')}" if get("node_id") else "not registered yet"
    names = [data.get("hostname") or "(no hostname)", data.get("address", ""), registered]
    out.line(f"  identity   {' · '.join(names)}")
    kept = "persistent" if data.get("identity") else "for this run only"
    out.line(f"             Ed25519 {data.get('public_key', '')} · {kept} · {data.get('email', '')}")
    direct = get("peers") - get("relay_peer_count")
    out.line(
        f"  network    {get('peers')} peer(s) ({get('encrypted_peers')} encrypted · {get('relay_peer_count')} relay · {direct} direct)"
    )
    out.line(
        f"             beacon {data.get('beacon_addr') or 'none'} · {get('connections')} connection(s) · {get('ports')} ports"
    )
    for network in data["networks"]:
        out.line(f"             network {network.get('network_id', '')} as {network.get('address', '')}")
    out.line(
        f"  traffic    ↑ {format_bytes(get('bytes_sent'))} ({get('pkts_sent')} pkts)"
        f" · ↓ {format_bytes(get('bytes_recv'))} ({get('pkts_recv')} pkts)"
    )


def _print_health(out: Output, data: dict[str, Any]) -> None:
    status = str(data.get("status", "unknown"))
    out.line(out.state(status == "ok", f"pilot-daemon {status}"))
    out.line(
        f"  uptime    {format_clock(data.get('uptime_seconds') or 0)} · {data.get('connections', 0)} connection(s)"
    )
    out.line(
        f"  peers     {data.get('peers', 0)} ({data.get('encrypted_peers', 0)} encrypted,"
        f" {data.get('relay_peer_count', 0)} via relay)"
    )
    out.line(
        f"  traffic   ↑ {format_bytes(data.get('bytes_sent') or 0)}  ↓ {format_bytes(data.get('bytes_recv') or 0)}"
    )


def _print_peers(out: Output, rows: list[dict[str, Any]], limit: int, *, everything: bool) -> None:
    secure = [row for row in rows if row.get("encrypted") and row.get("authenticated")]
    relayed = sum(bool(row.get("relay")) for row in rows)
    out.line(
        out.state(bool(rows), f"{len(rows)} peer(s)")
        + f" — {len(secure)} encrypted+authenticated · {relayed} relay · {len(rows) - relayed} direct"
    )
    shown = rows if everything else [row for row in rows if row not in secure]
    if shown:
        out.line()
        cells = [
            (
                row.get("node_id"),
                "yes" if row.get("encrypted") else "no",
                "yes" if row.get("authenticated") else "no",
                _path(row),
            )
            for row in (shown[:limit] if limit > 0 else shown)
        ]
        out.table(("NODE ID", "ENCRYPTED", "AUTH", "PATH"), cells)
        if 0 < limit < len(shown):
            out.line(f"… {len(shown) - limit} more: --limit 0")
    elif rows and not everything:
        out.line("list all: --all · search: --search <digits>")


def _path(row: dict[str, Any]) -> str:
    """Say how packets travel, and why not directly."""
    if not row.get("relay"):
        return "direct"
    return f"relay ({reason})" if (reason := row.get("relay_reason")) else "relay"


def _print_connections(out: Output, rows: list[dict[str, Any]], own: str) -> None:
    out.line(f"{len(rows)} connection(s)")
    if not rows:
        return
    out.line()
    cells = [
        (
            row.get("id"),
            row.get("local_port"),
            f"{row.get('remote_addr')}:{row.get('remote_port')}",
            row.get("state"),
            format_bytes(row.get("bytes_sent") or 0),
            format_bytes(row.get("bytes_recv") or 0),
            f"{row.get('srtt_ms') or 0:.1f} ms",
            format_bytes(row.get("cong_win") or 0),
            format_bytes(row.get("in_flight") or 0),
            (row.get("retransmits") or 0) + (row.get("fast_retx") or 0),
            "local" if row.get("remote_addr") == own else _path(row),
        )
        for row in rows[:_ROWS_MAX]
    ]
    out.table(("ID", "LOCAL", "REMOTE", "STATE", "SENT", "RECEIVED", "SRTT", "CWND", "FLIGHT", "RETX", "PATH"), cells)
    if len(rows) > _ROWS_MAX:
        out.line(f"… {len(rows) - _ROWS_MAX} more: --json")


COMMANDS: Final = {c.name: c for c in (info, health, peers, connections, disconnect)}
