"""Sending a file to receivers that refuse, fall silent, or answer something else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from pilot_trio.cli.exchange import Exchange
from pilot_trio.cli.file_sender import CHUNK_SIZE, NotSupported, TransferFailed, send_stream
from pilot_trio.cli.ipc_client import DaemonGone
from pilot_trio.wire import filestream as wire
from pilot_trio.wire.dataexchange import HEADER, FrameType, encode_frame
from pilot_trio.wire.filestream import Kind

CONTENT = bytes(range(256)) * 400
ID = hashlib.sha256(CONTENT).digest()[:16]


class ScriptedStream:
    """A stream whose peer says what a script holds, in pieces of one byte; it keeps what it is sent."""

    def __init__(self, answers: Iterable[bytes]) -> None:
        self._answers = b"".join(answers)
        self.sent: list[wire.StreamMessage] = []

    def send(self, data: bytes, deadline: float) -> None:
        del deadline
        self.sent.append(wire.decode(data[HEADER.size :]))

    def receive(self, deadline: float) -> bytes:
        del deadline
        piece, self._answers = self._answers[:1], self._answers[1:]
        return piece


def frame(payload: bytes) -> bytes:
    return encode_frame(FrameType.FILESTREAM, payload)


def offset(kind: Kind, value: int) -> bytes:
    return frame(wire.encode_offset(kind, ID, value))


END = len(CONTENT)
ACKS = [offset(Kind.ACK, min(at + CHUNK_SIZE, END)) for at in range(0, END, CHUNK_SIZE)]
COMPLETE = frame(wire.encode_complete(ID))


def send(tmp_path: Path, *answers: bytes) -> tuple[ScriptedStream, int]:
    path = tmp_path / "f.bin"
    path.write_bytes(CONTENT)
    stream = ScriptedStream(answers)
    sent = send_stream(Exchange(stream), path, END, 1.0, lambda _done: None)  # type: ignore[arg-type]
    return stream, sent.resumed


@pytest.mark.parametrize("resume", [0, 1, CHUNK_SIZE, END - 1, END])
def test_the_receiver_gets_what_it_does_not_have(tmp_path: Path, resume: int) -> None:
    # One acknowledgement of everything stands for all.
    stream, resumed = send(tmp_path, offset(Kind.INIT_ACK, resume), offset(Kind.ACK, END), COMPLETE)
    chunks = [wire.decode_chunk(message.body) for message in stream.sent if message.kind == Kind.CHUNK]
    assert b"".join(chunk.data for chunk in chunks) == CONTENT[resume:]
    assert resumed == resume
    assert [stream.sent[0].kind, stream.sent[-1].kind] == [Kind.INIT, Kind.DONE]


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [encode_frame(FrameType.TEXT, b"ERR UNKNOWN(7) save failed")],
        [frame(wire.encode(Kind.ABORT, ID))],
        [frame(wire.encode_offset(Kind.INIT_ACK, b"another transfer", 0))],
    ],
)
def test_a_receiver_that_does_not_know_transfers_is_recognised(tmp_path: Path, answers: list[bytes]) -> None:
    with pytest.raises(NotSupported):
        send(tmp_path, *answers)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([frame(wire.encode_complete(ID, "receiver disk full"))], "receiver disk full"),
        ([offset(Kind.INIT_ACK, END + 1)], "wants to resume at"),
        ([offset(Kind.INIT_ACK, 0), frame(wire.encode(Kind.ABORT, ID, b"enough"))], "enough"),
        ([offset(Kind.INIT_ACK, 0), *ACKS, frame(wire.encode_complete(ID, "sha256 mismatch"))], "sha256 mismatch"),
        ([offset(Kind.INIT_ACK, 0), frame(b"short")], "unreadable answer"),
    ],
)
def test_a_failure_is_told_in_the_words_of_the_receiver(tmp_path: Path, answers: list[bytes], text: str) -> None:
    with pytest.raises(TransferFailed, match=text):
        send(tmp_path, *answers)


def test_a_stream_that_ends_before_the_file_is_verified_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(DaemonGone):
        send(tmp_path, offset(Kind.INIT_ACK, 0), *ACKS)
