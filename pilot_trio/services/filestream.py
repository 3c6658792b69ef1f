"""Receive files in resumable pieces (`spec/services.md` §3.6): the receiver's half of frame type 7.

A transfer is named after its content, so a partial file is good for whoever sends the same content again. Only one live
transfer writes to a partial file; a second one of the same content gets a private partial, unless the first has been
silent for `TAKEOVER_AFTER`. Disk work runs in worker threads.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

import attrs
import trio

from pilot_trio.errors import DecodeError, PilotError
from pilot_trio.services.mailbox import DISK_RESERVE, RECEIVED_BYTES_MAX, Mailbox
from pilot_trio.wire import filestream as wire
from pilot_trio.wire.filestream import Kind

TRANSFERS_MAX: Final = 64  # at once per connection; protocol §3.6
REORDER_BYTES_MAX: Final = 786_432  # bytes kept of chunks that came too early; protocol §3.6 (16 chunks)
HASHES_MAX: Final = 1  # files being compared with their hash at once; more would only share the disk and take threads
TAKEOVER_AFTER: Final = 10.0  # seconds without a write after which a partial file may be taken over; protocol §3.6


class TransferRefused(PilotError):
    """The transfer cannot go on; the text goes to the sender."""


@attrs.frozen
class ReceivedFile:
    """A file that is complete and verified."""

    path: Path
    size: int


@attrs.define(eq=False)
class _Transfer:
    init: wire.Init
    path: Path
    private: bool
    offset: int  # bytes on disk, without gaps
    last_write_at: float
    early: dict[int, bytes] = attrs.field(factory=dict)  # offset -> data that came before its turn

    @property
    def early_bytes(self) -> int:
        return sum(map(len, self.early.values()))


class TransferTable:
    """Which partial files are being written, over all connections of the daemon.

    Args:
      mailbox: where they are.
      disk: held while files of the mailbox change.
    """

    def __init__(self, mailbox: Mailbox, disk: trio.Lock) -> None:
        self.mailbox = mailbox
        self.disk = disk
        self.hashing = trio.CapacityLimiter(HASHES_MAX)
        self._owner: dict[Path, _Transfer] = {}

    async def open(self, transfer_id: bytes, init: wire.Init) -> _Transfer:
        """Claim the partial file of a content and find out how much of it is there."""
        path, private = self.mailbox.partial / transfer_id.hex(), False
        holder = self._owner.get(path)
        if holder is not None and trio.current_time() - holder.last_write_at < TAKEOVER_AFTER:
            path, private = path.with_name(f"{path.name}.{secrets.token_hex(4)}"), True
        # Claimed before the first wait, so that two connections cannot both find the name free.
        transfer = _Transfer(init, path, private, 0, trio.current_time())
        self._owner[path] = transfer
        try:
            async with self.disk:
                transfer.offset = await trio.to_thread.run_sync(self._prepare, path, init.size)
        except BaseException:
            self.release(transfer)
            raise
        return transfer

    def _prepare(self, path: Path, size: int) -> int:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        have = path.stat().st_size if path.exists() else 0
        needed = max(0, size - have)
        available = RECEIVED_BYTES_MAX - self.mailbox.received_bytes()
        if needed > available:
            raise TransferRefused(
                f"receiver disk quota exceeded: need {needed}, {available} of {RECEIVED_BYTES_MAX} available"
            )
        free = shutil.disk_usage(path.parent).free
        if needed + DISK_RESERVE > free:
            path.unlink(missing_ok=True)
            raise TransferRefused(
                f"receiver disk full: need {needed} bytes, {free} free (keeping {DISK_RESERVE} in reserve)"
            )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if have > size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        return min(have, size)

    def owns(self, transfer: _Transfer) -> bool:
        """Say whether the partial file is still this transfer's, or was taken over."""
        return self._owner.get(transfer.path) is transfer

    def release(self, transfer: _Transfer) -> None:
        """Give the partial file up. It stays on disk for a retry, unless it was private."""
        if self.owns(transfer):
            del self._owner[transfer.path]


class FileReceiver:
    """The transfers of one connection. `handle` takes a type 7 payload and says what to answer."""

    def __init__(self, table: TransferTable) -> None:
        self._table = table
        self._transfers: dict[bytes, _Transfer] = {}

    async def handle(self, payload: bytes) -> tuple[list[bytes], ReceivedFile | None]:
        """Process one message; return the payloads to answer with, and the file if this completed one.

        Never raises for what the peer sent: refusals are answers. Cancellation leaves the partial file as it is.
        """
        transfer_id = bytes(wire.ID_SIZE)
        try:
            message = wire.decode(payload)
            transfer_id = message.transfer_id
            if transfer_id == bytes(wire.ID_SIZE):
                raise DecodeError("malformed stream frame")
            return await self._dispatch(message)
        except (DecodeError, TransferRefused) as exc:
            await self._drop(transfer_id)
            return [wire.encode_complete(transfer_id, str(exc))], None
        except OSError as exc:
            await self._drop(transfer_id)
            return [wire.encode_complete(transfer_id, f"write: {exc.strerror or exc}")], None

    async def aclose(self) -> None:
        """Give all transfers up; private partial files are removed."""
        for transfer_id in list(self._transfers):
            await self._drop(transfer_id)

    async def _dispatch(self, message: wire.StreamMessage) -> tuple[list[bytes], ReceivedFile | None]:
        transfer_id = message.transfer_id
        if message.kind == Kind.INIT:
            return [await self._start(transfer_id, wire.decode_init(message.body))], None
        transfer = self._transfers.get(transfer_id)
        if message.kind == Kind.CHUNK:
            chunk = wire.decode_chunk(message.body)
            if transfer is None:
                return [wire.encode(Kind.ABORT, transfer_id, b"no active transfer (send INIT first)")], None
            await self._write(transfer, chunk)
            return [wire.encode_offset(Kind.ACK, transfer_id, transfer.offset)], None
        if message.kind == Kind.DONE:
            if transfer is None:
                raise TransferRefused("no active transfer")
            received = await self._finish(transfer_id, transfer)
            return [wire.encode_complete(transfer_id)], received
        if message.kind == Kind.ABORT:
            await self._drop(transfer_id)
        return [], None

    async def _start(self, transfer_id: bytes, init: wire.Init) -> bytes:
        await self._drop(transfer_id)  # a repeated INIT starts over from what is on disk
        if len(self._transfers) >= TRANSFERS_MAX:
            raise TransferRefused("too many concurrent transfers")
        transfer = await self._table.open(transfer_id, init)
        self._transfers[transfer_id] = transfer
        return wire.encode_offset(Kind.INIT_ACK, transfer_id, transfer.offset)

    async def _write(self, transfer: _Transfer, chunk: wire.Chunk) -> None:
        size = transfer.init.size
        if chunk.offset + len(chunk.data) > size:
            raise TransferRefused(f"chunk at {chunk.offset} of {len(chunk.data)} bytes exceeds declared size {size}")
        if chunk.offset > transfer.offset:
            if transfer.early_bytes + len(chunk.data) <= REORDER_BYTES_MAX:
                transfer.early.setdefault(chunk.offset, chunk.data)
            return
        ready, end = [], transfer.offset
        early: bytes | None = chunk.data[transfer.offset - chunk.offset :]
        while early:
            ready.append(early)
            end += len(early)
            early = transfer.early.pop(end, None)
        for offset in [offset for offset in transfer.early if offset < end]:
            del transfer.early[offset]
        if ready:
            async with self._table.disk:
                if not self._table.owns(transfer):
                    raise TransferRefused("no active transfer")
                await trio.to_thread.run_sync(_append, transfer.path, transfer.offset, b"".join(ready))
            transfer.offset = end
            transfer.last_write_at = trio.current_time()

    async def _finish(self, transfer_id: bytes, transfer: _Transfer) -> ReceivedFile:
        size = transfer.init.size
        if transfer.offset != size:
            raise TransferRefused(f"incomplete: have {transfer.offset} of {size} bytes")
        # Reading gigabytes takes seconds: not under the lock, or every message to this node would wait for it. Abandoning
        # a read harms nothing.
        digest = await trio.to_thread.run_sync(
            _sha256, transfer.path, abandon_on_cancel=True, limiter=self._table.hashing
        )
        if digest != transfer.init.sha256:
            raise TransferRefused("sha256 mismatch — file corrupt, .partial retained")
        async with self._table.disk:
            if not self._table.owns(transfer):
                raise TransferRefused("no active transfer")
            final = self._table.mailbox.final_path(transfer.init.name)
            try:
                await trio.to_thread.run_sync(transfer.path.rename, final)
            except OSError as exc:
                raise TransferRefused(f"rename: {exc.strerror or exc}") from exc
            del self._transfers[transfer_id]
            self._table.release(transfer)
        return ReceivedFile(final, size)

    async def _drop(self, transfer_id: bytes) -> None:
        transfer = self._transfers.pop(transfer_id, None)
        if transfer is None:
            return
        self._table.release(transfer)
        if transfer.private:
            with trio.CancelScope(shield=True):  # one unlink; leaving it undone would leak the file for ever
                await trio.to_thread.run_sync(lambda: transfer.path.unlink(missing_ok=True))


def _append(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").digest()
