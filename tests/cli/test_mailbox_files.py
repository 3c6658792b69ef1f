"""Reading the directories of messages and files, and watching them for an answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pilot_trio.address import Address
from pilot_trio.cli import mailbox_files as files
from pilot_trio.cli import replies
from pilot_trio.cli.output import CliError
from pilot_trio.cli.replies import ReplyWatch
from tests.cli.conftest import Cli

PEER = "0:0000.0000.0006"


@pytest.fixture
def put(home: Path) -> Callable[..., str]:
    """Write a message file; the number orders them."""
    inbox = home / ".pilot" / "inbox"
    inbox.mkdir(parents=True)

    def write(number: int, kind: str = "TEXT", sender: str = PEER, data: str = "x", **more: str) -> str:
        name = f"{kind}-20261123-120000.000-{number:06d}"
        body = {"from": sender, "type": kind, "bytes": len(data), "data": data, "received_at": "2026-11-23T12:00:00Z"}
        temporary = inbox / f".{name}"
        temporary.write_text(json.dumps(body | more))
        temporary.rename(inbox / f"{name}.json")
        return name

    return write


def test_messages_are_ordered_by_time_whatever_their_type(cli: Cli, put: Callable[..., str]) -> None:
    names = [put(1, "TEXT"), put(2, "BINARY"), put(3, "JSON")]
    assert [row["id"] for row in cli("--json", "inbox").data["messages"]] == names[::-1]


def test_what_is_no_message_is_passed_over(cli: Cli, home: Path, put: Callable[..., str]) -> None:
    put(1)
    inbox = home / ".pilot" / "inbox"
    for name, content in (
        ("a.json", b"{"),
        ("b.json", b"[]"),
        ("c.txt", b"{}"),
        ("d.json", b"\xff"),
        (".e.json", b"{}"),
    ):
        (inbox / name).write_bytes(content)
    (inbox / "f.json").mkdir()
    data = cli("--json", "inbox").data
    assert (data["total"], data["shown"]) == (1, 1)


def test_an_inbox_that_does_not_exist_is_empty(cli: Cli) -> None:
    assert cli("--json", "inbox").data == {"messages": [], "total": 0, "shown": 0}
    assert cli("--json", "received").data == {"files": [], "total": 0, "shown": 0}
    assert cli("inbox").out == "inbox is empty (no messages match the filters)\n"


@pytest.mark.parametrize(("length", "shown"), [(119, 119), (120, 120), (121, 121)])
def test_a_preview_is_bounded(length: int, shown: int) -> None:
    assert len(files.preview("x" * length)) == shown
    assert files.preview("x" * length).endswith("…") is (length > files.PREVIEW_MAX)


def test_a_preview_is_one_line() -> None:
    assert files.preview(" a\n\tb  c ") == "a b c"


def test_since_takes_spans_and_points_in_time() -> None:
    now = datetime.now(UTC)
    for text in ("1h", "3600"):
        moment = files.read_since(text)
        assert moment is not None and abs(moment - (now - timedelta(hours=1))) < timedelta(minutes=5)
    assert files.read_since("2026-01-01T00:00:00.123456789Z") == datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert files.read_since(None) is None
    for text in ("soon", "", "nan", "9e99"):
        with pytest.raises(CliError):
            files.read_since(text)


@pytest.mark.parametrize("words", ["..", "/etc/passwd", ".hidden", "a\\b"])
def test_an_id_cannot_leave_the_inbox(cli: Cli, words: str) -> None:
    assert cli("--json", "inbox", "read", words).error["code"] == "invalid_argument"


def test_a_partial_file_that_is_being_written_is_not_cleared(cli: Cli, home: Path) -> None:
    import os

    partial = home / ".pilot" / "received" / ".partial"
    partial.mkdir(parents=True)
    (partial / "live").write_bytes(b"x")
    (partial / "old").write_bytes(b"x")
    os.utime(partial / "old", (1, 1))
    assert cli("--json", "received", "--clear").data == {"cleared": 0, "cleared_partial": 1, "remaining": 0}
    assert [path.name for path in partial.iterdir()] == ["live"]


def watch(home: Path) -> ReplyWatch:
    return ReplyWatch(home / ".pilot" / "inbox", Address.parse(PEER))


def in_time() -> float:
    return time.monotonic() + 60


def test_the_message_that_names_ours_is_the_answer(home: Path, put: Callable[..., str]) -> None:
    put(1, reply_to="mine")  # there before: answers an earlier message
    watching = watch(home)
    put(2, data="to another", reply_to="other")
    put(3, data="of another", sender="0:0000.0000.0009", reply_to="mine")
    put(4, data="unnamed")
    put(5, data="named", reply_to="mine")
    answer = watching.wait("mine", in_time())
    assert answer is not None
    assert (answer["data"], "id" in answer) == ("named", False)


def test_the_oldest_message_without_a_name_is_taken_from_a_peer_that_names_nothing(
    home: Path, put: Callable[..., str]
) -> None:
    watching = watch(home)
    put(2, data="first")
    put(3, data="second")
    answer = watching.wait("mine", in_time())
    assert answer is not None and answer["data"] == "first"


def test_it_is_held_back_from_a_peer_that_names_what_it_answers(
    home: Path, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "POLL", 0.01)
    monkeypatch.setattr(replies, "HOLD", 30.0)
    put(1, reply_to="earlier")
    watching = watch(home)
    put(2, data="unnamed")
    timer = threading.Timer(0.1, put, (3,), {"data": "named", "reply_to": "mine"})
    timer.start()
    answer = watching.wait("mine", in_time())
    timer.join()
    assert answer is not None and answer["data"] == "named"


def test_without_an_answer_the_wait_ends_at_its_deadline(home: Path, put: Callable[..., str]) -> None:
    watching = watch(home)
    put(1, reply_to="other")
    assert watching.wait("mine", time.monotonic()) is None
