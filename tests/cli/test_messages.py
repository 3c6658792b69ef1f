"""`send-message` and `send-file` when an acknowledgement is lost, a receiver is old, a reply does not come."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot_trio.cli.commands import messages
from pilot_trio.wire import dataexchange as exchange
from pilot_trio.wire import ipc
from pilot_trio.wire.dataexchange import HEADER, FrameType, Tagged
from pilot_trio.wire.ipc import Code
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import INFO, PEER, FakeDaemon, answers, fails

HANG_UP = "hang up"  # in place of an answer


class Receiver:
    """The data exchange of the node that is written to; `script` has its answer to each frame, the last one stays."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.frames: list[Tagged] = []
        self.streams = 0
        self.script: list[str] = ["ACK"]
        self.on_frame: Callable[[Tagged], None] = lambda frame: None
        self._buffers: dict[int, bytes] = {}
        self._dial = daemon.replies[Code.DIAL]
        daemon.replies[Code.DIAL] = self._count
        daemon.replies[Code.SEND] = self._take

    def _count(self, payload: bytes) -> Iterator[bytes]:
        self.streams += 1
        yield from self._dial(payload)

    def _take(self, payload: bytes) -> Iterator[bytes]:
        conn, data = ipc.decode_conn(payload)
        data = self._buffers.pop(conn, b"") + data
        while len(data) >= HEADER.size and len(data) >= HEADER.size + HEADER.unpack_from(data)[1]:
            kind, length = HEADER.unpack_from(data)
            body, data = data[HEADER.size : HEADER.size + length], data[HEADER.size + length :]
            frame = exchange.decode_tagged(body) if kind == FrameType.TAGGED else Tagged(kind, body)
            self.frames.append(frame)
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            self.on_frame(frame)
            if answer == HANG_UP:
                yield ipc.encode_conn(Code.CLOSE_OK, conn)
            else:
                yield ipc.encode_conn(Code.RECV, conn, exchange.encode_frame(FrameType.TEXT, answer.encode()))
        self._buffers[conn] = data


@pytest.fixture
def receiver(daemon: FakeDaemon) -> Receiver:
    return Receiver(daemon)


def test_a_message_goes_with_its_id_and_brings_its_acknowledgement(cli: Cli, receiver: Receiver) -> None:
    receiver.script = ["ACK TEXT 5 bytes"]
    row = cli("--json", "send-message", "beta", "--data", "hello", "--reply-to", "an-id").data
    (frame,) = receiver.frames
    assert frame == Tagged(FrameType.TEXT, b"hello", row["message_id"], "an-id")
    assert row == {
        "target": str(PEER),
        "to": str(PEER),
        "type": "text",
        "seq": 0,
        "bytes": 5,
        "ack": "ACK TEXT 5 bytes",
        "message_id": row["message_id"],
        "tagged": True,
        "reused": False,
        "reply_to": "an-id",
    }


def test_a_message_whose_acknowledgement_is_lost_is_sent_again_with_the_same_id(cli: Cli, receiver: Receiver) -> None:
    receiver.script = [HANG_UP, "ACK"]
    row = cli("--json", "send-message", "beta", "--data", "hello").data
    assert row["ack"] == "ACK"
    assert [frame.message_id for frame in receiver.frames] == [row["message_id"]] * 2
    assert receiver.streams == 2


def test_it_is_sent_again_once_and_never_if_told_so(cli: Cli, receiver: Receiver) -> None:
    receiver.script = [HANG_UP]
    error = cli("--json", "send-message", "beta", "--data", "hello").error
    assert (error["code"], len(receiver.frames)) == ("connection_failed", 2)
    assert error["message"] == f"send to {PEER}: the peer closed the stream without an answer"
    receiver.frames.clear()
    assert cli("--json", "send-message", "beta", "--data", "hello", "--no-resend").error["code"] == "connection_failed"
    assert len(receiver.frames) == 1


@pytest.mark.parametrize("answer", ["ACK UNKNOWN(10) 41 bytes", "ERR UNKNOWN(10) save failed"])
def test_a_receiver_that_knows_no_ids_gets_the_plain_message(cli: Cli, receiver: Receiver, answer: str) -> None:
    receiver.script = [answer, "ACK BINARY 2 bytes"]
    row = cli("--json", "send-message", "beta", "--data", "hi", "--type", "binary").data
    assert (row["tagged"], row["ack"]) == (False, "ACK BINARY 2 bytes")
    assert receiver.frames[1] == Tagged(FrameType.BINARY, b"hi")
    assert receiver.streams == 1


def test_a_receiver_that_could_not_store_it_is_a_failure(cli: Cli, receiver: Receiver) -> None:
    receiver.script = ["ERR TEXT save failed"]
    error = cli("--json", "send-message", "beta", "--data", "hi").error
    assert error["message"] == "the receiver did not store the message: ERR TEXT save failed"


def test_no_acknowledgement_in_time_is_a_timeout(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.replies[Code.SEND] = lambda payload: []
    error = cli("--json", "send-message", "beta", "--data", "hi", "--timeout", "50ms").error
    assert (error["code"], error["message"]) == ("timeout", f"no acknowledgement from {PEER}")


def test_many_messages_share_a_stream_if_asked_to(cli: Cli, receiver: Receiver) -> None:
    rows = cli("--json", "send-message", "beta", "--data", "hi", "--count", "3", "--reuse-conn").data["results"]
    assert [(row["seq"], row["reused"]) for row in rows] == [(0, False), (1, True), (2, True)]
    assert receiver.streams == 1
    assert len({row["message_id"] for row in rows}) == 3


def test_a_shared_stream_that_ends_is_replaced(cli: Cli, receiver: Receiver) -> None:
    receiver.script = ["ACK", HANG_UP, "ACK"]
    rows = cli("--json", "send-message", "beta", "--data", "hi", "--count", "3", "--reuse-conn").data["results"]
    assert [row["reused"] for row in rows] == [False, False, True]
    assert receiver.streams == 2


def test_a_timed_message_tells_each_part_of_the_way(cli: Cli, receiver: Receiver) -> None:
    def report(frame: Tagged) -> None:
        sent = exchange.decode_trace(frame.payload).sent_at_ns
        stamps = {"sent_at_ns": sent, "received_at_ns": sent + 2_000_000, "ack_sent_at_ns": sent + 5_000_000}
        receiver.script[0] = json.dumps(stamps | {"inner_ack": "ACK TEXT 2 bytes"})

    receiver.on_frame = report
    receiver.script = ["", ""]
    cli("--json", "send-message", "beta", "--data", "hi", "--trace")  # leaves the report as the next answer
    receiver.on_frame = lambda frame: None
    row = cli("--json", "send-message", "beta", "--data", "hi", "--trace").data
    assert (row["to_receiver_ms"], row["receiver_process_ms"]) == (2.0, 3.0)
    assert row["inner_ack"] == "ACK TEXT 2 bytes"


class TestFirstContact:
    """No tunnel to the node yet: its reply may be lost with it, and then the message is sent once more."""

    @pytest.fixture
    def receiver(self, daemon: FakeDaemon, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
        daemon.replies[Code.INFO] = answers(Code.INFO_OK, INFO | {"peer_list": []})
        monkeypatch.setattr(messages, "RESEND_WAIT_LEAST", 0.1)
        return receiver

    def test_the_message_is_repeated_when_no_reply_comes(self, cli: Cli, home: Path, receiver: Receiver) -> None:
        def reply(frame: Tagged) -> None:
            if len(receiver.frames) == 2:
                store(home, {"type": "TEXT", "from": str(PEER), "data": "yes", "reply_to": frame.message_id})

        receiver.on_frame = reply
        row = cli("--json", "send-message", "beta", "--data", "hello", "--wait", "1s").data
        assert row["first_contact"] is True
        assert row["reply"]["data"] == "yes"
        assert [frame.message_id for frame in receiver.frames] == [row["message_id"]] * 2

    def test_a_repetition_that_fails_is_no_failure(
        self, cli: Cli, home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(messages, "RESEND_AFTER_MAX", 0.2)
        receiver.script = ["ACK", HANG_UP]
        late = threading.Timer(0.3, store, (home, {"type": "TEXT", "from": str(PEER), "data": "late"}))
        receiver.on_frame = lambda frame: late.start() if len(receiver.frames) == 2 else None
        row = cli("--json", "send-message", "beta", "--data", "hello", "--wait", "60s", "--timeout", "60s").data
        assert (row["ack"], row["reply"]["data"]) == ("ACK", "late")
        assert len(receiver.frames) == 3  # the message, its repetition, and that one's own second try

    def test_no_reply_at_all_is_a_timeout(self, cli: Cli, receiver: Receiver) -> None:
        error = cli("--json", "send-message", "beta", "--data", "hello", "--wait", "200ms").error
        assert (error["code"], error["message"]) == ("timeout", f'no reply from "{PEER}" within 200ms')
        assert "inbox" in error["hint"]
        assert len(receiver.frames) == 2

    def test_a_dial_that_times_out_is_repeated_once(self, cli: Cli, daemon: FakeDaemon, receiver: Receiver) -> None:
        dial = daemon.replies[Code.DIAL]

        def refuse_once(payload: bytes) -> Iterator[bytes]:
            daemon.replies[Code.DIAL] = dial
            yield ipc.encode_error("dial timeout")

        daemon.replies[Code.DIAL] = refuse_once
        row = cli("--json", "send-message", "beta", "--data", "hello").data
        assert row["dial_attempts"] == 2
        assert len(receiver.frames) == 1


def test_where_there_is_a_tunnel_nothing_is_repeated(cli: Cli, receiver: Receiver, daemon: FakeDaemon) -> None:
    error = cli("--json", "send-message", "beta", "--data", "hello", "--wait", "100ms").error
    assert error["code"] == "timeout"
    assert len(receiver.frames) == 1
    daemon.replies[Code.DIAL] = fails("dial timeout")
    error = cli("--json", "send-message", "beta", "--data", "hello").error
    assert error["code"] == "connection_failed"
    assert daemon.codes().count(Code.DIAL) == 2  # one for each command


class TestPreferDirect:
    """`send-file --prefer-direct` has the daemon look for the direct path before it dials."""

    @pytest.fixture
    def file(self, home: Path) -> Path:
        path = home / "f.txt"
        path.write_bytes(b"content")
        return path

    def test_the_route_is_forgotten_before_the_dial(
        self, cli: Cli, daemon: FakeDaemon, receiver: Receiver, file: Path
    ) -> None:
        receiver.script = ["ACK FILE 7 bytes"]
        row = cli("--json", "send-file", "beta", str(file), "--prefer-direct", "--no-stream").data
        assert row["ack"] == "ACK FILE 7 bytes"
        codes = daemon.codes()
        assert codes.index(Code.PREFER_DIRECT) < codes.index(Code.DIAL)
        assert daemon.wait_for(Code.PREFER_DIRECT) == PEER.node.to_bytes(4, "big")

    def test_without_the_flag_nothing_is_forgotten(
        self, cli: Cli, daemon: FakeDaemon, receiver: Receiver, file: Path
    ) -> None:
        receiver.script = ["ACK FILE 7 bytes"]
        assert cli("send-file", "beta", str(file), "--no-stream").code == 0
        assert Code.PREFER_DIRECT not in daemon.codes()

    def test_an_old_daemon_that_cannot_is_an_error_before_anything_is_sent(
        self, cli: Cli, daemon: FakeDaemon, receiver: Receiver, file: Path
    ) -> None:
        daemon.replies[Code.PREFER_DIRECT] = fails("unknown command: 0x3B")
        error = cli("--json", "send-file", "beta", str(file), "--prefer-direct").error
        assert "prefer-direct" in error["message"]
        assert receiver.frames == []


def store(home: Path, message: dict[str, Any]) -> None:
    """Put a message into the inbox, as the daemon does."""
    folder = home / ".pilot" / "inbox"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"TEXT-20260101-000000.000-{len(list(folder.iterdir())):06d}.json"
    (folder / f".{name}").write_text(json.dumps({"received_at": "2026-01-01T00:00:00Z", "bytes": 1} | message))
    (folder / f".{name}").rename(folder / name)
