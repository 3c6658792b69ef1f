"""Send a file in resumable pieces: the sender's half of frame type 7 (`spec/services.md` §3.6)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from pilot_trio.cli.exchange import Exchange
from pilot_trio.cli.ipc_client import DaemonGone, DaemonTimeout, deadline_in
from pilot_trio.errors import DecodeError, PilotError
from pilot_trio.wire import filestream as wire
from pilot_trio.wire.dataexchange import FrameType, encode_frame
from pilot_trio.wire.filestream import Kind

CHUNK_SIZE: Final = 49_152  # bytes; protocol
WINDOW: Final = 16 * CHUNK_SIZE  # bytes that may be unacknowledged; protocol
INIT_TIMEOUT: Final = 5.0  # seconds until a receiver that does not answer counts as one that knows no type 7; protocol
STEP_TIMEOUT: Final = 60.0  # seconds for each answer after that; protocol


class NotSupported(PilotError):
    """The receiver does not know this kind of transfer; the file has to go in one frame."""


class TransferFailed(PilotError):
    """The receiver refused the transfer or gave it up; the text is its reason."""


class Sent(NamedTuple):
    """A transfer that the receiver has verified."""

    resumed: int  # bytes that it had already
    sha256: str


def send_stream(exchange: Exchange, path: Path, size: int, timeout: float, progress: Callable[[float], None]) -> Sent:
    """Send a file; `timeout` bounds each wait in seconds, `progress` hears how many bytes are acknowledged.

    Raises:
      NotSupported: use a whole-file frame on a fresh connection.
      TransferFailed: the receiver says why.
      DaemonTimeout, DaemonGone, DaemonError: the stream broke; a repetition resumes.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        transfer = _Transfer(exchange, digest[: wire.ID_SIZE], min(timeout, STEP_TIMEOUT))
        resumed = acknowledged = at = transfer.begin(wire.Init(size, digest, CHUNK_SIZE, path.name))
        progress(acknowledged)
        file.seek(at)
        while at < size:
            while at < size and at - acknowledged < WINDOW:
                data = file.read(min(CHUNK_SIZE, size - at))
                if not data:
                    raise TransferFailed("the file became shorter while it was sent")
                transfer.send(wire.encode_offset(Kind.CHUNK, transfer.id, at) + data)
                at += len(data)
            acknowledged = max(acknowledged, transfer.acknowledgement())
            progress(acknowledged)
        transfer.finish()
        progress(size)
    return Sent(resumed, digest.hex())


class _Transfer:
    """One transfer's conversation."""

    def __init__(self, exchange: Exchange, transfer_id: bytes, timeout: float) -> None:
        self.id = transfer_id
        self._exchange = exchange
        self._timeout = timeout

    def begin(self, init: wire.Init) -> int:
        """Announce the file; return the offset to resume at."""
        self.send(wire.encode_init(self.id, init))
        try:
            frame_type, payload = self._exchange.reply(deadline_in(min(INIT_TIMEOUT, self._timeout)))
        except (DaemonTimeout, DaemonGone) as exc:
            raise NotSupported(str(exc)) from exc
        if frame_type != FrameType.FILESTREAM:
            raise NotSupported("the receiver answers with another kind of frame")
        message = _decode(payload)
        if message.kind == Kind.COMPLETE:
            raise TransferFailed(wire.decode_complete(message.body).text or "refused")
        if message.kind != Kind.INIT_ACK or message.transfer_id != self.id:
            raise NotSupported("the receiver answers with something else")
        offset = wire.decode_offset(message.body)
        if offset > init.size:
            raise TransferFailed(f"the receiver wants to resume at {offset} of {init.size} bytes")
        return offset

    def acknowledgement(self) -> int:
        """Return the next acknowledged offset."""
        while True:
            message = self._next()
            if message.kind == Kind.ACK:
                return wire.decode_offset(message.body)

    def finish(self) -> None:
        """Say that all is sent; return when the receiver has verified it."""
        self.send(wire.encode(Kind.DONE, self.id))
        while self._next().kind != Kind.COMPLETE:
            pass  # acknowledgements that are still on their way

    def send(self, payload: bytes) -> None:
        self._exchange.stream.send(encode_frame(FrameType.FILESTREAM, payload), deadline_in(self._timeout))

    def _next(self) -> wire.StreamMessage:
        """Return the next message of this transfer; a failure of it is raised."""
        while True:
            frame_type, payload = self._exchange.reply(deadline_in(self._timeout))
            if frame_type != FrameType.FILESTREAM:
                continue
            message = _decode(payload)
            if message.transfer_id != self.id:
                continue
            if message.kind == Kind.ABORT:
                raise TransferFailed(message.body.decode("utf-8", "replace"))
            if message.kind == Kind.COMPLETE and not (end := wire.decode_complete(message.body)).ok:
                raise TransferFailed(end.text)
            return message


def _decode(payload: bytes) -> wire.StreamMessage:
    try:
        return wire.decode(payload)
    except DecodeError as exc:
        raise TransferFailed(f"unreadable answer: {exc}") from exc
