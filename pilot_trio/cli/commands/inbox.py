"""The messages that arrived: `inbox`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pilot_trio.address import quote
from pilot_trio.cli import mailbox_files as files
from pilot_trio.cli.framework import argument, command, count, duration, option, switch
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, literal_target

_SECTION: Final = "Messages and files"


@command("inbox", section=_SECTION)
@argument("words", "read <id>", required=False, many=True)
@switch("latest", "all of the newest message")
@count("limit", "show this many; 0 shows all", 10)
@option("from", "messages of this node alone", "address|hostname")
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


COMMANDS: Final = {c.name: c for c in (inbox,)}
