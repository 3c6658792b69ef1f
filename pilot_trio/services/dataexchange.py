"""Data exchange on port 1001: store what peers send, acknowledge each frame in order (`spec/services.md` §3).

Runs on any Trio listener whose streams have a `remote` socket address. Nothing here knows of the daemon.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from pilot_trio.address import SocketAddress
from pilot_trio.errors import DecodeError
from pilot_trio.services.filestream import FileReceiver, TransferTable
from pilot_trio.services.mailbox import INBOX_BYTES_MAX, RECEIVED_BYTES_MAX, Mailbox, MailboxFull
from pilot_trio.services.places import Places
from pilot_trio.services.reading import ExactReader
from pilot_trio.wire import canonical_json
from pilot_trio.wire import dataexchange as wire
from pilot_trio.wire.dataexchange import FrameType

log = logging.getLogger("pilot_trio.services.dataexchange")

IDLE_TIMEOUT: Final = 120.0  # seconds without a byte, between frames and inside one; protocol §3.1
LARGE_FRAME: Final = 1 << 20  # bytes; above it a frame takes one of the places below
LARGE_FRAMES_MAX: Final = 4  # large frames received at once; bounds what strangers can make us hold to 4 x 64 MiB
LARGE_FRAME_RATE: Final = 16 << 10  # bytes per second that one brings at least, or others would never get its place
DEDUPLICATION_TIME: Final = 600.0  # seconds in which a repeated message is recognised; protocol §3.5
DEDUPLICATION_MAX: Final = 8192  # deliveries remembered; protocol §3.5

Publish = Callable[[str, dict[str, Any]], None]


@attrs.define(eq=False)
class _Delivery:
    """One message with an id: under way, or stored at `stored_at` and answered with `ack`."""

    done: trio.Event = attrs.field(factory=trio.Event)
    ack: str = ""
    stored_at: float = 0.0


class DataExchange:
    """The service: one mailbox, shared by all connections."""

    def __init__(
        self,
        mailbox: Mailbox,
        publish: Publish,
        *,
        frame_max: int = wire.FRAME_MAX_DEFAULT,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._mailbox = mailbox
        self._publish = publish
        self._frame_max = frame_max
        self._now_ns = now_ns
        self._disk = trio.Lock()  # the mailbox is for one thread at a time
        self._large = Places(LARGE_FRAMES_MAX)
        self._transfers = TransferTable(mailbox, self._disk)
        self._deliveries: OrderedDict[bytes, _Delivery] = OrderedDict()

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends, misbehaves or falls silent; close it. For `trio.serve_listeners`."""
        remote: SocketAddress = stream.remote  # type: ignore[attr-defined]
        receiver = FileReceiver(self._transfers)
        async with stream:
            try:
                await self._serve(stream, ExactReader(stream), remote, receiver)
            except (DecodeError, trio.TooSlowError, trio.BrokenResourceError) as exc:
                log.debug("dataexchange connection ended", extra={"kv": {"remote": str(remote), "reason": repr(exc)}})
            finally:
                await receiver.aclose()

    async def _serve(
        self, stream: trio.abc.Stream, reader: ExactReader, remote: SocketAddress, receiver: FileReceiver
    ) -> None:
        while (header := await reader.exactly(wire.HEADER.size, stall_timeout=IDLE_TIMEOUT)) is not None:
            frame_type, length = wire.HEADER.unpack(header)
            if length > self._frame_max:
                raise DecodeError(f"frame of {length} bytes (limit {self._frame_max})")
            if length > LARGE_FRAME:
                async with self._large.one(remote.address.node):
                    reply = await self._frame(reader, frame_type, length, remote, receiver)
            else:
                reply = await self._frame(reader, frame_type, length, remote, receiver)
            if reply is None:
                return
            if reply:
                await stream.send_all(reply)

    async def _frame(
        self, reader: ExactReader, frame_type: int, length: int, remote: SocketAddress, receiver: FileReceiver
    ) -> bytes | None:
        with trio.fail_after(IDLE_TIMEOUT + length / LARGE_FRAME_RATE):
            payload = await reader.exactly(length, stall_timeout=IDLE_TIMEOUT)
        if payload is None:
            return None
        tagged = wire.Tagged(frame_type, payload)
        if frame_type == FrameType.TAGGED:
            tagged = wire.decode_tagged(payload)
        if tagged.frame_type == FrameType.FILESTREAM:
            return await self._file_stream(tagged, receiver)
        if tagged.frame_type == FrameType.TRACE:
            return await self._trace(tagged, remote)
        ack = await self._deliver(tagged, str(remote.address))
        return wire.encode_frame(FrameType.TEXT, ack.encode())

    async def _file_stream(self, tagged: wire.Tagged, receiver: FileReceiver) -> bytes:
        answers, received = await receiver.handle(tagged.payload)
        if received is not None:
            log.info("file saved (stream)", extra={"kv": {"path": str(received.path), "bytes": received.size}})
            event = {"filename": received.path.name, "path": str(received.path), "size": received.size}
            self._publish("file.received", event | _ids(tagged))
        return b"".join(wire.encode_frame(FrameType.FILESTREAM, answer) for answer in answers)

    async def _trace(self, tagged: wire.Tagged, remote: SocketAddress) -> bytes:
        received_at = self._now_ns()
        try:
            trace = wire.decode_trace(tagged.payload)
        except DecodeError as exc:
            return wire.encode_frame(FrameType.TEXT, f"ERR trace parse: {exc}".encode())
        inner = tagged._replace(frame_type=trace.inner_type, payload=trace.payload)
        ack = await self._store_message(inner, str(remote.address))
        report = {
            "received_at_ns": received_at,
            "inbox_written_at_ns": self._now_ns(),
            "inner_ack": ack,
            "sent_at_ns": trace.sent_at_ns,
        }
        report["ack_sent_at_ns"] = self._now_ns()
        return wire.encode_frame(FrameType.JSON, canonical_json.dumps(report))

    async def _deliver(self, tagged: wire.Tagged, sender: str) -> str:
        """Store once, whatever the sender repeats; return the acknowledgement (§3.5)."""
        if not tagged.message_id:
            return await self._store(tagged, sender)
        self._forget_deliveries(DEDUPLICATION_MAX)
        key = _delivery_key(tagged, sender)
        while (earlier := self._deliveries.get(key)) is not None:
            if earlier.done.is_set():
                return f"{earlier.ack} (duplicate)"
            await earlier.done.wait()
        self._forget_deliveries(DEDUPLICATION_MAX - 1)  # not before: the oldest one may be what is repeated
        delivery = self._deliveries[key] = _Delivery()
        try:
            ack = await self._store(tagged, sender)
            if ack.startswith("ACK "):
                delivery.ack, delivery.stored_at = ack, trio.current_time()
            return ack
        finally:
            # A delivery that failed or was cancelled is forgotten: the next attempt stores.
            if not delivery.ack:
                self._deliveries.pop(key, None)
            delivery.done.set()

    def _forget_deliveries(self, most: int) -> None:
        """Forget what is old, and the oldest until there are no more than `most`; what is under way stays."""
        horizon = trio.current_time() - DEDUPLICATION_TIME
        while self._deliveries:
            key, oldest = next(iter(self._deliveries.items()))
            if not oldest.done.is_set() or (oldest.stored_at > horizon and len(self._deliveries) <= most):
                return
            del self._deliveries[key]

    async def _store(self, tagged: wire.Tagged, sender: str) -> str:
        if tagged.frame_type == FrameType.FILE:
            return await self._store_file(tagged)
        if tagged.frame_type in wire.MESSAGE_TYPES:
            return await self._store_message(tagged, sender)
        kind = wire.type_name(tagged.frame_type)
        return f"ERR {kind} save failed: unsupported frame type {tagged.frame_type}"

    async def _store_file(self, tagged: wire.Tagged) -> str:
        file = wire.decode_file(tagged.payload)
        if not file.name:
            return f"ACK FILE {len(file.data)} bytes"
        try:
            async with self._disk:
                path = await trio.to_thread.run_sync(self._mailbox.save_file, file.name, file.data)
        except (OSError, MailboxFull) as exc:
            self._report_failure("received.full", RECEIVED_BYTES_MAX, tagged, exc)
            return f"ERR FILE save failed: {exc}"
        log.info("file saved", extra={"kv": {"path": str(path), "bytes": len(file.data)}})
        event = {"filename": file.name, "path": str(path), "size": len(file.data)}
        self._publish("file.received", event | _ids(tagged))
        return f"ACK FILE {len(file.data)} bytes"

    async def _store_message(self, tagged: wire.Tagged, sender: str) -> str:
        kind = wire.type_name(tagged.frame_type)

        def save() -> Any:
            return self._mailbox.save_message(
                kind, tagged.payload, sender=sender, message_id=tagged.message_id, reply_to=tagged.reply_to
            )

        try:
            async with self._disk:
                stored = await trio.to_thread.run_sync(save)
        except (OSError, MailboxFull) as exc:
            self._report_failure("inbox.full", INBOX_BYTES_MAX, tagged, exc, sender)
            return f"ERR {kind} save failed: {exc}"
        said = {"path": str(stored.path), "type": kind, "bytes": stored.size, "message_id": tagged.message_id or ""}
        log.info("inbox message saved", extra={"kv": said})
        self._publish("message.received", {"from": sender, "size": stored.size, "type": kind} | _ids(tagged))
        return f"ACK {kind} {stored.size} bytes"

    def _report_failure(self, topic: str, limit: int, tagged: wire.Tagged, exc: Exception, sender: str = "") -> None:
        kind = wire.type_name(tagged.frame_type)
        log.warning("dataexchange save failed", extra={"kv": {"type": kind, "error": str(exc)}})
        if isinstance(exc, MailboxFull):
            data = {"type": kind, "frame_bytes": len(tagged.payload), "max_bytes": limit}
            self._publish(topic, data | ({"from": sender} if sender else {}))


def _ids(tagged: wire.Tagged) -> dict[str, str]:
    pairs = (("message_id", tagged.message_id), ("reply_to", tagged.reply_to))
    return {key: value for key, value in pairs if value}


def _delivery_key(tagged: wire.Tagged, sender: str) -> bytes:
    digest = hashlib.sha256()
    for part in (sender, str(tagged.frame_type), tagged.message_id, tagged.reply_to):
        digest.update(part.encode() + b"\0")
    digest.update(tagged.payload)  # a FILE's name is part of its payload
    return digest.digest()
