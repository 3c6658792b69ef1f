"""Messages to other nodes: `send-message`."""

from __future__ import annotations

import json
import secrets
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pilot_trio.address import Address, quote
from pilot_trio.cli import mailbox_files as files
from pilot_trio.cli.durations import format_duration
from pilot_trio.cli.framework import argument, command, count, duration, option, read_duration, switch
from pilot_trio.cli.gate import check_target
from pilot_trio.cli.ipc_client import IPCClient, deadline_in
from pilot_trio.cli.letters import Letter, Sender
from pilot_trio.cli.output import CliError
from pilot_trio.cli.replies import ReplyWatch
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.dataexchange import FrameType
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Messages and files"
HEADER_ROOM: Final = 4096  # bytes of a frame that a message leaves to headers, as the reference does
ACK_TIMEOUT: Final = 60.0  # seconds until a message is acknowledged, unless `--timeout` says otherwise
WAIT_DEFAULT: Final = 30.0  # seconds that `--wait` waits; protocol, `spec/cli.md` §6.8
RESEND_AFTER_MAX: Final = 15.0  # seconds without reply on first contact until the message is repeated; protocol
RESEND_WAIT_LEAST: Final = 3.0  # seconds of `--wait` below which nothing is repeated; protocol
PAUSE: Final = 0.05  # seconds between messages of one `--count`; protocol
_TYPES: Final = {"text": FrameType.TEXT, "json": FrameType.JSON, "binary": FrameType.BINARY}


@command("send-message", section=_SECTION)
@argument("target", "address|hostname")
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
        sender = Sender(
            client, address, deadline,
            reuse=reuse, resend=not flags["no_resend"], first_contact=not _has_tunnel(session, client, address),
        )  # fmt: skip
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


class _Steps:
    """Milliseconds since the start at each step; the labels are the reference's."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.marks: list[dict[str, Any]] = []

    def mark(self, label: str) -> None:
        self.marks.append({"label": label, "ms": round((time.perf_counter() - self._began) * 1000, 3)})


def _letter(session: Session, flags: dict[str, Any]) -> Letter:
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
    return Letter(_TYPES[kind], payload, _reply_to(flags["reply_to"]), trace)


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
    return WAIT_DEFAULT if text == "true" else read_duration("--wait", text)


def _has_tunnel(session: Session, client: IPCClient, address: Address) -> bool:
    info = session.ask(client, Code.INFO, b"", "info", REQUEST_TIMEOUT)
    rows = info.get("peer_list") or []
    return any(row.get("node_id") == address.node and row.get("encrypted") for row in rows if isinstance(row, dict))


def _send_many(
    session: Session,
    sender: Sender,
    letter: Letter,
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


def _send_one(sender: Sender, letter: Letter, address: Address, kind: str, steps: _Steps) -> dict[str, Any]:
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
    session: Session, sender: Sender, letter: Letter, result: dict[str, Any], watch: ReplyWatch, wait: float
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
            _repeat(sender, letter, message_id, began + wait)
    if reply is None:
        reply = watch.wait(message_id, began + wait)
    if reply is None:
        hint = "the message was delivered; look later with: pilot-trio inbox"
        raise CliError("timeout", f"no reply from {quote(target)} within {format_duration(wait)}", hint)
    if out.as_json:
        out.result({**result, "reply": reply, "reply_after_ms": int((time.monotonic() - began) * 1000)})
    else:
        out.result(reply)


def _repeat(sender: Sender, letter: Letter, message_id: str, deadline: float) -> None:
    """Send a message that was acknowledged once more; that this fails changes nothing about the first time."""
    sender.close()
    sender.deadline = deadline
    with suppress(CliError):
        sender.send(letter, message_id, 0)


COMMANDS: Final = {str(send_message.name): send_message}
