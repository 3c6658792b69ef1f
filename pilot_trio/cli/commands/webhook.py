"""Where the daemon posts its events: `set-webhook`, `clear-webhook`."""

from __future__ import annotations

from typing import Final

from pilot_trio.cli.framework import argument, command, timeout
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import Session
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Events"


@command("set-webhook", section=_SECTION)
@argument("url")
@timeout()
def set_webhook(session: Session, url: str, timeout: float) -> None:
    """Post the daemon's events to a URL, now and at its next starts."""
    if not url.startswith(("http://", "https://")):
        raise CliError("invalid_argument", "webhook URL must start with http:// or https://")
    _apply(session, url, "set-webhook", f"webhook set: {url}", timeout)


@command("clear-webhook", section=_SECTION)
@timeout()
def clear_webhook(session: Session, timeout: float) -> None:
    """Post events nowhere."""
    _apply(session, "", "clear-webhook", "webhook cleared", timeout)


def _apply(session: Session, url: str, name: str, done: str, timeout: float) -> None:
    """Tell the daemon first: a URL that it refuses must not be found in the settings at its next start."""
    applied = True
    try:
        session.ask_once(Code.SET_WEBHOOK, url.encode(), f"{name}: set_webhook", timeout)
    except CliError as exc:
        if exc.code != "not_running":
            raise
        applied = False
    session.save_config({"webhook": url or None})
    when = "applied to running daemon" if applied else "will take effect on next daemon start"
    session.output.result({"webhook": url, "applied": applied}, lambda: session.output.line(f"{done}\n{when}"))


COMMANDS: Final = {c.name: c for c in (set_webhook, clear_webhook)}
