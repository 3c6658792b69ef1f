"""Streams from the shell: `connect`, `send`, `recv`."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any, Final

from pilot_trio.address import Address
from pilot_trio.cli.durations import format_duration
from pilot_trio.cli.framework import (
    argument,
    command,
    count,
    duration,
    option,
    parse_port,
    stdin_bytes,
    switch,
    timeout,
)
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import ClientStream, DaemonGone, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, daemon_errors, dial_hint
from pilot_trio.errors import DaemonError

_SECTION: Final = "Streams and datagrams"
_TARGET: Final = "address|hostname"
ANSWER_MAX: Final = 65_535  # bytes of an answer that `connect` and `send` show; protocol, `spec/cli.md` §6.6
DEFAULT_PORT: Final = "1000"  # `connect` without a port; protocol


@command("connect", section=_SECTION)
@argument("target", _TARGET)
@argument("port", required=False)
@option("message", "what to send; without it, piped standard input")
@switch("no-auto-handshake", "do not check trust first")
@timeout("30s", "longest wait for the connection, and then for the answer")
def connect(
    session: Session, target: str, port: str | None, message: str | None, no_auto_handshake: bool, timeout: float
) -> None:
    """Open a stream, send one message, print one answer."""
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        number = parse_port(port or DEFAULT_PORT)
        data = message.encode("utf-8", "surrogateescape") if message else stdin_bytes()
        if not data:
            hint = "use --message to send a single message, or pipe data via stdin"
            raise CliError("invalid_argument", "--message is required (interactive mode not supported)", hint)
        _exchange(session, client, address, number, data, timeout)


@command("send", section=_SECTION)
@argument("target", _TARGET)
@argument("port")
@option("data", "what to send")
@switch("no-auto-handshake", "do not check trust first")
@timeout("30s", "longest wait for the connection, and then for the answer")
def send(session: Session, target: str, port: str, data: str | None, no_auto_handshake: bool, timeout: float) -> None:
    """Open a stream, send data, print one answer."""
    with session.connect() as client:
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        check_target(session, client, address, skip=no_auto_handshake)
        number = parse_port(port)
        if not data:
            raise CliError("invalid_argument", "--data is required")
        _exchange(session, client, address, number, data.encode("utf-8", "surrogateescape"), timeout)


@command("recv", section=_SECTION)
@argument("port")
@count("count", "number of streams to take", 1)
@duration(
    "idle", "close a stream that has brought data and then nothing for this time; the sender may wait for an answer"
)
@timeout("30s", "longest duration of the whole run")
def recv(session: Session, port: str, count: int, idle: float | None, timeout: float) -> None:
    """Listen on a port and print what each stream brings, until its end."""
    number = parse_port(port)
    out = session.output
    deadline = deadline_in(timeout)
    rows: list[dict[str, Any]] = []
    with session.connect() as client:
        with daemon_errors("listen: bind"):
            client.bind(number, deadline_in(REQUEST_TIMEOUT))
        if out.terminal:
            out.note(f"listening on port {number} — waiting for streams...")
        for sequence in range(count):
            try:
                _, stream = client.accept(deadline)
            except DaemonTimeout:
                break
            except DaemonGone as exc:
                raise CliError("connection_failed", f"recv: {exc}") from exc
            row, data = _read_to_end(stream, deadline, idle)
            rows.append({"seq": sequence, "port": number, **row})
            if not out.as_json:
                out.data(data)
    # A stream that came and did not end is no timeout: a sender that waits for an answer never ends its own.
    missing = len(rows) < count
    out.result({"messages": rows, "timeout": missing}, lambda: out.note("timeout") if missing else None)


def payload_fields(data: bytes) -> dict[str, Any]:
    """Return how JSON carries bytes: as text, and in base64 too where text would lose something."""
    fields: dict[str, Any] = {"data": data.decode("utf-8", "replace"), "bytes": len(data)}
    if not _is_text(data):
        fields["data_b64"] = base64.b64encode(data).decode()
    return fields


def _read_to_end(stream: ClientStream, deadline: float, idle: float | None) -> tuple[dict[str, Any], bytes]:
    """Return a stream's row and its bytes, up to its end or the deadline."""
    parts: list[bytes] = []
    error: dict[str, Any] = {}
    try:
        while piece := stream.receive(_earlier(deadline, idle if parts else None)):
            parts.append(piece)
    except DaemonTimeout as exc:
        # What came is kept: a peer that waits for an answer never ends its stream.
        error = {} if parts else {"error": str(exc)}
    except DaemonGone as exc:
        error = {"error": str(exc)}
    with suppress(DaemonTimeout, DaemonGone, DaemonError):
        stream.close(deadline_in(REQUEST_TIMEOUT))
    data = b"".join(parts)
    return {**payload_fields(data), **error}, data


def _earlier(deadline: float, idle: float | None) -> float:
    return deadline if idle is None else min(deadline, deadline_in(idle))


def _exchange(session: Session, client: IPCClient, address: Address, port: int, data: bytes, timeout: float) -> None:
    out = session.output
    try:
        stream = client.dial(address, port, deadline_in(timeout))
        stream.send(data, deadline_in(timeout))
    except (DaemonError, DaemonTimeout, DaemonGone) as exc:
        reason = "dial timeout" if isinstance(exc, DaemonTimeout) else str(exc)
        hint = dial_hint(reason, address, port)
        text = f"cannot connect to {address} port {port}: {reason}"
        raise CliError("connection_failed", text, hint) from exc
    try:
        answer = stream.receive(deadline_in(timeout))[:ANSWER_MAX]
        stream.close(deadline_in(REQUEST_TIMEOUT))
    except DaemonTimeout as exc:
        hint = "increase with --timeout, or check if the target is listening on that port"
        raise CliError("timeout", f"no response within {format_duration(timeout)}", hint) from exc
    except (DaemonGone, DaemonError) as exc:
        raise CliError("connection_failed", f"no response: {exc}") from exc
    result = {"target": str(address), "port": port, "sent": data.decode("utf-8", "replace")}
    result["response"] = answer.decode("utf-8", "replace")
    if not _is_text(answer):
        result["response_b64"] = base64.b64encode(answer).decode()
    if not answer:
        out.note(f"sent {len(data)} bytes (no response)")
    out.result(result, lambda: out.data(answer))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


COMMANDS: Final = {c.name: c for c in (connect, send, recv)}
