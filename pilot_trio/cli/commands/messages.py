"""Messages between nodes: `send-message`, `inbox`."""

from __future__ import annotations

import json
import secrets
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs

from pilot_trio.address import Address, quote
from pilot_trio.cli import mailbox_files as files
from pilot_trio.cli.durations import format_duration
from pilot_trio.cli.exchange import DATA_EXCHANGE_PORT, Dialled, Exchange, dial_service, hang_up
from pilot_trio.cli.framework import DURATION, argument, command, count, duration, option, switch
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import DaemonGone, DaemonTimeout, IPCClient, deadline_in
from pilot_trio.cli.output import CliError
from pilot_trio.cli.replies import ReplyWatch
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, daemon_errors, literal_target
from pilot_trio.errors import DaemonError
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.dataexchange import FrameType
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Messages and files"
_TARGET: Final = "address|hostname"
HEADER_ROOM: Final = 4096  # bytes of a frame that a message leaves to headers, as the reference does
ACK_TIMEOUT: Final = 60.0  # seconds until a message is acknowledged, unless `--timeout` says otherwise
WAIT_DEFAULT: Final = 30.0  # seconds that `--wait` waits; protocol, `spec/cli.md` §6.8
RESEND_AFTER_MAX: Final = 15.0  # seconds without reply on first contact until the message is repeated; protocol
RESEND_WAIT_LEAST: Final = 3.0  # seconds of `--wait` below which nothing is repeated; protocol
PAUSE: Final = 0.05  # seconds between messages of one `--count`; protocol
_TYPES: Final = {"text": FrameType.TEXT, "json": FrameType.JSON, "binary": FrameType.BINARY}
_UNKNOWN_TAGGED: Final = ("ACK UNKNOWN(10)", "ERR UNKNOWN(10)")  # a receiver that does not know message ids


@attrs.frozen
class _Letter:
    """What is sent, apart from its id."""

    frame_type: FrameType
    payload: bytes
    reply_to: str
    trace: bool

    def frame(self, message_id: str, *, tagged: bool) -> bytes:
        """Return the frame; a timed one carries the time of this call."""
        frame_type, payload = self.frame_type, self.payload
        if self.trace:
            payload = wire.encode_trace(wire.Trace(frame_type, time.time_ns(), payload))
            frame_type = FrameType.TRACE
        if not tagged:
            return wire.encode_frame(frame_type, payload)
        return wire.encode_tagged(frame_type, payload, message_id=message_id, reply_to=self.reply_to)


class _Sender:
    """Sends letters to one node, over one stream each or one for all."""

    def __init__(self, client: IPCClient, address: Address, deadline: float, *, reuse: bool, resend: bool) -> None:
        self._client = client
        self._address = address
        self._deadline = deadline
        self._reuse = reuse
        self.may_resend = resend
        self._open: Exchange | None = None
        self.first_contact = False
        self.attempts = 0

    def send(self, letter: _Letter, message_id: str, sequence: int) -> dict[str, Any]:
        """Send one letter, wait for its acknowledgement, return its row."""
        reused = self._open is not None
        try:
            tagged, ack = self._attempt(letter, message_id)
        except (DaemonGone, DaemonTimeout) as exc:
            # The receiver recognises the id of a message that it has: a repeat is harmless.
            if not self.may_resend or self._deadline <= time.monotonic():
                raise _unacknowledged(self._address, exc) from exc
            self.close()
            reused = False
            try:
                tagged, ack = self._attempt(letter, message_id)
            except (DaemonGone, DaemonTimeout) as again:
                raise _unacknowledged(self._address, again) from again
        if ack.startswith("ERR "):
            raise CliError("connection_failed", f"the receiver did not store the message: {ack}")
        if not self._reuse:
            self.close()
        row = {"seq": sequence, "bytes": len(letter.payload), "ack": ack, "message_id": message_id}
        return row | {"tagged": tagged, "reused": reused}

    def close(self) -> None:
        """Hang up, if a stream is open."""
        if self._open is not None:
            hang_up(self._open.stream)
            self._open = None

    def _attempt(self, letter: _Letter, message_id: str) -> tuple[bool, str]:
        """Return whether the message went with its id, and the acknowledgement."""
        if self._open is None:
            left = max(self._deadline - time.monotonic(), 0.001)
            dialled: Dialled = dial_service(
                self._client, self._address, DATA_EXCHANGE_PORT, timeout=left, again=self.first_contact
            )
            self.attempts = dialled.attempts
            self._open = Exchange(dialled.stream)
        with suppress(DaemonError):
            _, answer = self._open.ask(letter.frame(message_id, tagged=True), self._deadline)
            ack = answer.decode("utf-8", "replace")
            if not ack.startswith(_UNKNOWN_TAGGED):
                return True, ack
            _, answer = self._open.ask(letter.frame(message_id, tagged=False), self._deadline)
            return False, answer.decode("utf-8", "replace")
        raise DaemonGone("the daemon refused the data")


@command("send-message", section=_SECTION)
@argument("target", _TARGET)
@option("data", 'what to send; "-" reads standard input')
@option("data-file", "send what a file holds", "path")
@option("type", "text, json or binary", "type", default="text")
@count("count", "send this many times", 1)
@switch("reuse-conn", "one stream for all of them")
@option("wait", "wait for the answer in the inbox", "dur=30s")
@switch("no-resend", "never send the same message a second time")
@duration("timeout", "longest duration until the message is acknowledged")
@option("reply-to", "the message (its message_id, or its id in the inbox) that this one answers", "id")
@switch("trace", "say how long each step took")
@switch("no-auto-handshake", "do not check trust first")
def send_message(session: Session, target: str, **flags: Any) -> None:
    """Leave a message in a node's inbox."""
    letter = _letter(session, flags)
    wait = _wait_time(flags["wait"])
    timeout = flags["timeout"]
    if timeout is not None and timeout <= 0:
        raise CliError("invalid_argument", "--timeout must be a positive duration")
    deadline = deadline_in(ACK_TIMEOUT if timeout is None else timeout)
    number = max(1, flags["count"])
    reuse = flags["reuse_conn"] or "PILOT_SENDMSG_REUSE_CONN" in session.environ
    steps = _Steps()
    with session.connect() as client:
        steps.mark("connectDriver")
        address = session.resolve(client, target, REQUEST_TIMEOUT)
        steps.mark("parseAddrOrHostname")
        sender = _Sender(client, address, deadline, reuse=reuse, resend=not flags["no_resend"])
        sender.first_contact = not _has_tunnel(session, client, address)
        check_target(session, client, address, skip=flags["no_auto_handshake"])
        steps.mark("maybeAutoHandshake")
        watch = ReplyWatch(files.inbox_directory(), address) if wait is not None and number == 1 else None
        try:
            if number > 1:
                _send_many(session, sender, letter, address, number, reuse=reuse, kind=flags["type"])
                return
            result = _send_one(sender, letter, address, flags["type"], steps)
            if watch is None or wait is None:
                session.output.result(result)
                return
            _await_reply(session, sender, letter, result, watch, wait)
        finally:
            sender.close()


@command("inbox", section=_SECTION)
@argument("words", "read <id>", required=False, many=True)
@switch("latest", "all of the newest message")
@count("limit", "show this many; 0 shows all", 10)
@option("from", "messages of this node alone", _TARGET)
@option("since", "messages newer than a duration (5m, 1h) or an RFC 3339 time", "dur|time")
@switch("full", "whole messages instead of their beginnings")
@switch("clear", "delete the messages that would be shown")
@duration("before", "with --clear: only those older than this")
def inbox(session: Session, words: tuple[str, ...], **flags: Any) -> None:
    """Show the messages that arrived, newest first; works without a daemon."""
    directory = files.inbox_directory()
    if words:
        if words[0] != "read" or len(words) != 2:
            raise CliError("invalid_argument", "usage: pilot-trio inbox read <id>")
        _read(session, directory, words[1])
        return
    sender = _sender_address(session, flags["from"])
    since, before = files.read_since(flags["since"]), files.read_before(flags["before"], clear=flags["clear"])
    found = files.messages(directory, sender=sender, since=since, before=before)
    if flags["clear"]:
        cleared = files.remove(path for path, _ in list(found))
        left = len(files.newest_first(directory, "*.json"))
        session.output.result(
            {"cleared": cleared, "remaining": left},
            lambda: session.output.line(f"cleared {cleared} message(s), {left} remaining"),
        )
        return
    limit = 1 if flags["latest"] else flags["limit"]
    full = bool(flags["full"] or flags["latest"])
    rows: list[dict[str, Any]] = []
    total = 0
    for _, message in found:
        total += 1
        if limit <= 0 or len(rows) < limit:
            rows.append(files.summary(message, full=full))
    data: dict[str, Any] = {"messages": rows, "shown": len(rows), "total": total}
    if directory.is_dir():
        data["dir"] = str(directory)
    session.output.result(data, lambda: _show_inbox(session, rows, total))


class _Steps:
    """Milliseconds since the start at each step; the labels are the reference's."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.marks: list[dict[str, Any]] = []

    def mark(self, label: str) -> None:
        self.marks.append({"label": label, "ms": round((time.perf_counter() - self._began) * 1000, 3)})


def _letter(session: Session, flags: dict[str, Any]) -> _Letter:
    data, path, kind = flags["data"], flags["data_file"], flags["type"]
    if data is not None and path is not None:
        raise CliError("invalid_argument", "give --data or --data-file, not both")
    if not data and not path:
        raise CliError("invalid_argument", "--data is required")
    if kind not in _TYPES:
        raise CliError("invalid_argument", f"unknown type {quote(kind)} (use text, json, or binary)")
    most = wire.frame_max(session.environ.get("PILOT_DATAEXCHANGE_MAX_FRAME", "")) - HEADER_ROOM
    payload = _payload(data, path, most)
    if len(payload) > most:
        text = (
            f"message is {len(payload)} bytes; one message can carry at most {most} (use send-file for larger payloads)"
        )
        raise CliError("invalid_argument", text)
    trace = flags["trace"] or "PILOTCTL_TRACE_TIME" in session.environ
    return _Letter(_TYPES[kind], payload, _reply_to(flags["reply_to"]), trace)


def _payload(data: str | None, path: str | None, most: int) -> bytes:
    """Return what to send, or of a longer text `most` + 1 bytes."""
    if path:
        try:
            with Path(path).open("rb") as file:
                payload = file.read(most + 1)
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise CliError("invalid_argument", f"read --data-file: open {path}: {reason}") from exc
        if not payload:
            raise CliError("invalid_argument", f"--data-file {path} is empty")
        return payload
    if data == "-":
        payload = sys.stdin.buffer.read(most + 1)
        if not payload:
            raise CliError("invalid_argument", "--data - read nothing from standard input")
        return payload
    return (data or "").encode("utf-8", "surrogateescape")


def _reply_to(text: str | None) -> str:
    """Return the message id that `--reply-to` names, itself or by an entry of the inbox."""
    if not text:
        return ""
    if not wire.is_correlation_id(text):
        raise CliError("invalid_argument", "--reply-to must be a message ID: 1-128 characters of A-Z a-z 0-9 . _ : -")
    message = files.load_message(files.inbox_directory() / f"{text}.json")
    return str(message.get("message_id") or text) if message is not None else text


def _wait_time(text: str | None) -> float | None:
    if text is None:
        return None
    seconds: float = WAIT_DEFAULT if text == "true" else DURATION.convert(text, None, None)
    return seconds


def _has_tunnel(session: Session, client: IPCClient, address: Address) -> bool:
    info = session.ask(client, Code.INFO, b"", "info", REQUEST_TIMEOUT)
    rows = info.get("peer_list") or []
    return any(row.get("node_id") == address.node and row.get("encrypted") for row in rows if isinstance(row, dict))


def _unacknowledged(address: Address, exc: DaemonGone | DaemonTimeout) -> CliError:
    if isinstance(exc, DaemonTimeout):
        return CliError("timeout", f"no acknowledgement from {address}", "increase with --timeout")
    return CliError("connection_failed", f"send to {address}: {exc}")


def _send_many(
    session: Session,
    sender: _Sender,
    letter: _Letter,
    address: Address,
    number: int,
    *,
    reuse: bool,
    kind: str,
) -> None:
    rows = []
    for sequence in range(number):
        if sequence:
            time.sleep(PAUSE)
        rows.append(sender.send(letter, secrets.token_hex(16), sequence))
    session.output.result(
        {"target": str(address), "to": str(address), "type": kind, "reuse_conn": reuse, "results": rows}
    )


def _send_one(sender: _Sender, letter: _Letter, address: Address, kind: str, steps: _Steps) -> dict[str, Any]:
    steps.mark("dial+send")
    row = sender.send(letter, secrets.token_hex(16), 0)
    steps.mark("dataexchange.Dial")
    result = {"target": str(address), "to": str(address), "type": kind, **row}
    if sender.first_contact:
        result["first_contact"] = True
        if sender.attempts > 1:
            result["dial_attempts"] = sender.attempts
    if letter.reply_to:
        result["reply_to"] = letter.reply_to
    return result | (_trace(row["ack"], steps) if letter.trace else {})


def _trace(ack: str, steps: _Steps) -> dict[str, Any]:
    """Return how long each part of the way took, by the two clocks."""
    now = time.time_ns()
    try:
        report = json.loads(ack)
        sent, received, answered = (int(report[key]) for key in ("sent_at_ns", "received_at_ns", "ack_sent_at_ns"))
    except (ValueError, KeyError, TypeError):
        return {"trace": steps.marks}  # a receiver that does not know timed messages

    def span(start: int, end: int) -> float:
        return round((end - start) / 1e6, 3)

    return {
        "trace": steps.marks,
        "inner_ack": str(report.get("inner_ack", "")),
        "total_ms": span(sent, now),
        "to_receiver_ms": span(sent, received),
        "receiver_process_ms": span(received, answered),
        "return_trip_ms": span(answered, now),
    }


def _await_reply(
    session: Session, sender: _Sender, letter: _Letter, result: dict[str, Any], watch: ReplyWatch, wait: float
) -> None:
    """Wait for the answer; on first contact, repeat the message once if none comes."""
    out = session.output
    target, message_id = result["target"], result["message_id"]
    if not out.as_json:
        out.result(result)
        out.note(f"waiting for reply from {target} (up to {format_duration(wait)})...")
    began = time.monotonic()
    reply = None
    if sender.first_contact and wait >= RESEND_WAIT_LEAST and sender.may_resend:
        reply = watch.wait(message_id, began + min(wait / 2, RESEND_AFTER_MAX))
        if reply is None:
            sender.close()
            with daemon_errors("send-message"):
                sender.send(letter, message_id, 0)
    if reply is None:
        reply = watch.wait(message_id, began + wait)
    if reply is None:
        hint = "the message was delivered; look later with: pilot-trio inbox"
        raise CliError("timeout", f"no reply from {quote(target)} within {format_duration(wait)}", hint)
    if out.as_json:
        out.result({**result, "reply": reply, "reply_after_ms": int((time.monotonic() - began) * 1000)})
    else:
        out.result(reply)


def _read(session: Session, directory: Path, identifier: str) -> None:
    if "/" in identifier or "\\" in identifier or "\0" in identifier or identifier.startswith("."):
        raise CliError("invalid_argument", f"invalid message id {quote(identifier)}")
    message = files.load_message(directory / f"{identifier}.json")
    if message is None:
        raise CliError("not_found", f"no message {quote(identifier)} — list ids with: pilot-trio inbox")
    session.output.result(message)


def _sender_address(session: Session, peer: str | None) -> str:
    if not peer:
        return ""
    known = literal_target(peer)
    if known is not None:
        return str(known)
    with session.connect() as client:
        return str(session.resolve(client, peer, REQUEST_TIMEOUT))


def _show_inbox(session: Session, rows: list[dict[str, Any]], total: int) -> None:
    out = session.output
    if not rows:
        out.line("inbox is empty (no messages match the filters)")
        return
    out.line(out.styled(f"Inbox — {total} message(s) · showing {len(rows)} newest", "bold"))
    for row in rows:
        arrived = files.received_at(row)
        when = f" · {files.age(arrived)}" if arrived is not None else ""
        out.line(f"\n  {row['id']}")
        out.line(out.styled(f"  {row.get('from', '?')} · {row.get('type', '?')}{when} · {row['bytes']} B", "dim"))
        for key in ("message_id", "reply_to"):
            if key in row:
                out.line(out.styled(f"  {key} {row[key]}", "dim"))
        out.line(f"  {row.get('data', row.get('preview', ''))}")


COMMANDS: Final = {str(c.name): c for c in (send_message, inbox)}
