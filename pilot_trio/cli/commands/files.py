"""Files between nodes: `send-file`, `received`."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any, Final

from pilot_trio.address import Address
from pilot_trio.cli import mailbox_files
from pilot_trio.cli.durations import format_duration
from pilot_trio.cli.exchange import Exchange, dial_service, hang_up
from pilot_trio.cli.file_sender import NotSupported, TransferFailed, send_stream
from pilot_trio.cli.framework import argument, command, count, duration, option, switch, timeout
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import DaemonGone, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError, format_bytes
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session
from pilot_trio.errors import DaemonError, DecodeError
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.service_ports import DATA_EXCHANGE_PORT

_SECTION: Final = "Messages and files"
PARTIAL_QUIET: Final = 10.0  # seconds without a write after which a partial file belongs to no live transfer


@command("send-file", section=_SECTION)
@argument("target", "address|hostname")
@argument("path", "filepath")
@switch("prefer-direct", "forget the route to the node first, so that the direct one is tried")
@switch("no-stream", "send the file in one frame, for receivers that know nothing else")
@switch("no-auto-handshake", "do not check trust first")
@timeout("90s", "longest wait for an answer of the receiver")
def send_file(
    session: Session,
    target: str,
    path: str,
    prefer_direct: bool,
    no_stream: bool,
    no_auto_handshake: bool,
    timeout: float,
) -> None:
    """Send a file; an interrupted transfer continues where it was."""
    with session.connect() as client:
        address = _resolve(session, client, target)
        file = Path(path)
        size = _size(file)
        check_target(session, client, address, skip=no_auto_handshake)
        if prefer_direct:
            session.ask(client, Code.PREFER_DIRECT, struct.pack("!I", address.node), "prefer-direct", REQUEST_TIMEOUT)
        try:
            if no_stream:
                result = _send_whole(session, client, address, file, size, timeout)
            else:
                result = _send_streamed(session, client, address, file, size, timeout)
        except OSError as exc:
            raise CliError("internal", f"read {file}: {exc.strerror or exc}") from exc
    session.output.result(result)


@command("received", section=_SECTION)
@count("limit", "show this many; 0 shows all")
@option("since", "files newer than a duration (5m, 1h) or an RFC 3339 time", "dur|time")
@switch("clear", "delete the files that would be shown, and partial ones")
@duration("before", "with --clear: only those older than this")
def received(session: Session, limit: int | None, since: str | None, clear: bool, before: float | None) -> None:
    """Show the files that arrived, newest first; works without a daemon."""
    directory = mailbox_files.received_directory()
    newer, older = mailbox_files.read_since(since), mailbox_files.read_before(before, clear=clear)
    if clear and not directory.is_dir():
        raise CliError("not_found", "no received files")
    found = [
        path
        for path in mailbox_files.newest_first(directory, "*")
        if mailbox_files.within(mailbox_files.modified_at(path), newer, older)
    ]
    if clear:
        partial = [
            path
            for path in mailbox_files.newest_first(directory / ".partial", "*")
            if mailbox_files.within(mailbox_files.modified_at(path), newer, older)
            and mailbox_files.modified_at(path).timestamp() < time.time() - PARTIAL_QUIET
        ]
        cleared, cleared_partial = mailbox_files.remove(found), mailbox_files.remove(partial)
        left = len(mailbox_files.newest_first(directory, "*"))
        data: dict[str, Any] = {"cleared": cleared, "cleared_partial": cleared_partial, "remaining": left}
        session.output.result(data, lambda: session.output.line(f"cleared {cleared} file(s), {left} remaining"))
        return
    shown = found[: limit or None] if session.output.as_json else found[: (10 if limit is None else limit) or None]
    rows = [row for path in shown if (row := _row(path)) is not None]
    data = {"files": rows, "shown": len(rows), "total": len(found)}
    if directory.is_dir():
        data["dir"] = str(directory)
    session.output.result(data, lambda: _show(session, rows, len(found), directory))


def _resolve(session: Session, client: IPCClient, target: str) -> Address:
    try:
        return session.resolve(client, target, REQUEST_TIMEOUT)
    except CliError as exc:
        if exc.code != "not_found":
            raise
        raise CliError("invalid_argument", exc.message, exc.hint) from exc  # the reference's code for this command


def _size(file: Path) -> int:
    try:
        if file.is_dir():
            raise CliError("invalid_argument", f"{file} is a directory, not a file")
        if not file.is_file():
            raise CliError("not_found", f"file not found: {file}")
        return file.stat().st_size
    except OSError as exc:
        raise CliError("not_found", f"{file}: {exc.strerror or exc}") from exc


def _send_streamed(
    session: Session, client: IPCClient, address: Address, file: Path, size: int, timeout: float
) -> dict[str, Any]:
    stream = dial_service(client, address, DATA_EXCHANGE_PORT).stream
    began = time.perf_counter()
    try:
        with session.output.progress(f"sending {file.name}", float(size)) as progress:
            sent = send_stream(Exchange(stream), file, size, timeout, progress)
    except NotSupported as exc:
        session.output.note(f"{exc}; sending the file in one frame")
        hang_up(stream)
        return _send_whole(session, client, address, file, size, timeout)
    except (TransferFailed, DecodeError, DaemonTimeout, DaemonGone, DaemonError) as exc:
        hang_up(stream)
        raise CliError(
            "connection_failed", f"streamed send-file failed: {exc}", "send it again to continue where it stopped"
        ) from exc
    result = _result(address, file, size, size - sent.resumed, time.perf_counter() - began)
    hang_up(stream)
    return result | {
        "bytes_sent": size - sent.resumed,
        "bytes_resumed": sent.resumed,
        "sha256": sent.sha256,
        "transport": "filestream",
        "verified": True,
    }


def _send_whole(
    session: Session, client: IPCClient, address: Address, file: Path, size: int, timeout: float
) -> dict[str, Any]:
    most = wire.frame_max(session.environ.get("PILOT_DATAEXCHANGE_MAX_FRAME", ""))
    if size > most:
        text = f"file too large: {size} bytes (max {most}) for a transfer in one frame"
        raise CliError("invalid_argument", text, "omit --no-stream")
    if len(file.name.encode("utf-8", "surrogateescape")) > wire.NAME_MAX:
        raise CliError("invalid_argument", f"the name of the file is longer than {wire.NAME_MAX} bytes")
    data = file.read_bytes()
    stream = dial_service(client, address, DATA_EXCHANGE_PORT).stream
    began = time.perf_counter()
    frame = wire.encode_frame(wire.FrameType.FILE, wire.encode_file(wire.File(file.name, data)))
    try:
        _, answer = Exchange(stream).ask(frame, deadline_in(timeout))
    except DaemonTimeout as exc:
        text = f"send-file timed out waiting for ACK from {address} after {format_duration(timeout)}"
        raise CliError("timeout", text, "increase with --timeout") from exc
    except (DaemonGone, DaemonError) as exc:
        raise CliError("connection_failed", f"send-file: {exc}") from exc
    elapsed = time.perf_counter() - began
    hang_up(stream)
    ack = answer.decode("utf-8", "replace")
    if ack.startswith("ERR "):
        raise CliError("internal", f"receiver rejected file: {ack}")
    return _result(address, file, len(data), len(data), elapsed) | {"ack": ack}


def _result(address: Address, file: Path, size: int, sent: int, elapsed: float) -> dict[str, Any]:
    rate = sent * 8 / 1e6 / elapsed if elapsed > 0 else 0.0  # megabits per second
    result = {"filename": file.name, "bytes": size, "destination": str(address)}
    return result | {"elapsed_ms": int(elapsed * 1000), "throughput_mbps": rate}


def _row(path: Path) -> dict[str, Any] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # deleted meanwhile
    modified = mailbox_files.rfc3339_seconds(status.st_mtime)
    return {"name": path.name, "bytes": status.st_size, "modified": modified, "path": str(path)}


def _show(session: Session, rows: list[dict[str, Any]], total: int, directory: Path) -> None:
    out = session.output
    if not rows:
        out.line("no received files (none match the filters)")
        return
    out.line(out.styled(f"Received files — {total} · {directory}", "bold"))
    for row in rows:
        when = mailbox_files.age(mailbox_files.modified_at(Path(row["path"])))
        out.line(f"\n  {row['name']}")
        out.line(out.styled(f"  {when} · {format_bytes(row['bytes'])}", "dim"))


COMMANDS: Final = {c.name: c for c in (send_file, received)}
