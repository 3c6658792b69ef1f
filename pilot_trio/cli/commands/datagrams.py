"""Datagrams from the shell: `dgram`, `listen`, `broadcast`."""

from __future__ import annotations

import math
from typing import Any, Final

from pilot_trio.cli.commands.streams import payload_fields
from pilot_trio.cli.framework import argument, command, count, duration, option, parse_port, parse_uint, switch, timeout
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import DaemonGone, DaemonTimeout, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import DIAL_TIMEOUT, REQUEST_TIMEOUT, Session, daemon_errors
from pilot_trio.errors import DaemonError
from pilot_trio.wire import ipc
from pilot_trio.wire.ipc import DATAGRAM_MAX, Code, ReceivedDatagram

_SECTION: Final = "Streams and datagrams"
BROADCAST_PORT: Final = "1000"  # protocol, `spec/cli.md` §6.7


@command("dgram", section=_SECTION)
@argument("target", "address|hostname")
@argument("port")
@option("data", "what to send")
@switch("no-auto-handshake", "do not check trust first")
@timeout(f"{DIAL_TIMEOUT:g}s")
def dgram(session: Session, target: str, port: str, data: str | None, no_auto_handshake: bool, timeout: float) -> None:
    """Send one datagram."""
    if not data:
        raise CliError("invalid_argument", "--data is required")
    number = parse_port(port)
    payload = data.encode("utf-8", "surrogateescape")
    if len(payload) > DATAGRAM_MAX:
        text = f"datagram is {len(payload)} bytes; the daemon refuses more than {DATAGRAM_MAX}, and less fits after headers"
        raise CliError("invalid_argument", f"{text} (use a stream for larger payloads)")
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        confirmed = True
        try:
            client.send_datagram(address, number, payload, deadline_in(timeout))
        except DaemonTimeout as exc:
            text = "datagram send not confirmed: the daemon did not answer in time; it may or may not have been sent"
            raise CliError("timeout", text) from exc
        except DaemonGone as exc:
            raise CliError("connection_failed", f"dgram: {exc}") from exc
        except DaemonError as exc:
            if not str(exc).startswith("unknown command"):
                raise CliError("connection_failed", f"dgram: daemon: {exc}") from exc
            client.send(ipc.encode_target(Code.SEND_TO, address, number, payload), deadline_in(timeout))
            confirmed = False
    out = session.output
    out.result(
        {"target": str(address), "port": number, "bytes": len(payload), "confirmed": confirmed},
        lambda: out.line(
            f"sent {len(payload)} byte(s) to {address} port {number}{'' if confirmed else ' (unconfirmed)'}"
        ),
    )


@command("listen", section=_SECTION)
@argument("port")
@count("count", "stop after so many datagrams")
@duration("timeout", "stop after this time; 0 or less never")
def listen(session: Session, port: str, count: int | None, timeout: float | None) -> None:
    """Print the datagrams that come to a port; without --count each as one line of JSON, or of text."""
    number = parse_port(port)
    deadline = deadline_in(timeout) if timeout is not None and timeout > 0 else math.inf
    out = session.output
    rows: list[dict[str, Any]] = []
    timed_out = False
    with session.connect() as client:
        out.note(f"listening on port {number} — waiting for datagrams...")
        while count is None or len(rows) < count:
            try:
                datagram = client.next_datagram(number, deadline)
            except DaemonTimeout:
                timed_out = True
                break
            except DaemonGone as exc:
                raise CliError("connection_failed", f"listen: {exc}") from exc
            row = _row(datagram)
            if count is not None:
                rows.append(row)
            if count is None and out.as_json:
                out.event(row)
            elif not out.as_json:
                out.line(f"[{row['src_addr']}:{row['src_port']}] {row['data']}")
    if timed_out:
        out.note("timeout")
    if count is not None:
        out.result({"messages": rows, "timeout": timed_out}, lambda: None)


@command("broadcast", section=_SECTION)
@argument("network_id")
@argument("message")
@option("port", "port to send to", "port", default=BROADCAST_PORT)
@timeout(f"{DIAL_TIMEOUT:g}s")
def broadcast(session: Session, network_id: str, message: str, port: str, timeout: float) -> None:
    """Send a datagram to every member of a network (needs the admin token)."""
    network = parse_uint(network_id, 0xFFFF, "network_id")
    number = parse_port(port)
    token = session.admin_token()
    payload = message.encode("utf-8", "surrogateescape")
    frame = ipc.encode_broadcast(network, number, token.encode(), payload)
    with session.connect() as client:
        try:
            with daemon_errors("broadcast"):
                client.request(Code.BROADCAST, frame[5:], deadline_in(timeout))
        except CliError as exc:
            cause = exc.__cause__
            if isinstance(cause, DaemonError):
                raise CliError("broadcast_failed", f"daemon: {cause}") from cause
            raise
    out = session.output
    out.result(
        {"network_id": network, "port": number, "bytes": len(payload)},
        lambda: out.line(f"sent {len(payload)} byte(s) to network {network} port {number}"),
    )


def _row(datagram: ReceivedDatagram) -> dict[str, Any]:
    return {"src_addr": str(datagram.source), "src_port": datagram.source_port, **payload_fields(datagram.data)}


COMMANDS: Final = {c.name: c for c in (dgram, listen, broadcast)}
