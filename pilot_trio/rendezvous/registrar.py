"""The one clerk behind all connections: asks the directory, writes down what changed, and only then lets answers out.

The directory changes in memory at once; `settle` returns when all of that is on disk. An answer that promises something waits
not only for its own changes but for every change made before it, those of other connections included: a repeated request
changes nothing, and must not be confirmed while the first one is still on its way to the disk.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.errors import StoreError
from pilot_trio.proto.directory import READ_ONLY, TYPES, Change, Directory, PeerInfo
from pilot_trio.wire.registry import Message

logger: Final = logging.getLogger("pilot_trio.registry")

REAP_INTERVAL: Final = 10.0  # seconds between two looks for nodes not heard of; reference value, registry §9.1
LAST_SEEN_INTERVAL: Final = 600.0  # seconds between two notes of who was heard of; only pages show what a crash forgets


class Ledger(Protocol):
    """Where changes are kept; `store.Store` is one."""

    async def commit(self, changes: Sequence[Change]) -> None:
        """Return when these changes and all of earlier calls are safe; raise `StoreError` if they are not."""


@attrs.define(eq=False)
class Registrar:
    """Directory and store as one thing.

    Args:
      notify: called with each node for whom a handshake message waits, once that is on disk.
      clock: unix seconds.
    """

    directory: Directory
    ledger: Ledger
    notify: Callable[[NodeId], object]
    clock: Callable[[], float] = time.time
    requests: Counter[str] = attrs.field(factory=Counter, init=False)  # by type; unknown ones under "other"
    _failing: bool = attrs.field(default=False, init=False)  # the store could not write last time

    def answer(self, request: Message, peer: PeerInfo) -> Message:
        """Answer one request from memory; it may leave only after `settle`. Refusals are answers too, masked (§2.2)."""
        self._count(request)
        return self.directory.handle(request, peer, self.clock())

    def answer_unmasked(self, request: Message, peer: PeerInfo) -> Message:
        """Like `answer`, but raise `Refused` for a refusal."""
        self._count(request)
        return self.directory.answer(request, peer, self.clock())

    async def settle(self, *, promise: bool = True) -> None:
        """Wait until what the directory knows now is on disk; then poke those for whom mail arrived.

        Args:
          promise: whether an answer is waiting that must not be taken back by a crash; without one, and with nothing
            new to write, this returns at once.

        Raises:
          StoreError: the disk failed. No answer may leave; the changes are kept and written later.
        """
        changes = self.directory.take_changes()
        if changes or promise:
            try:
                await self.ledger.commit(changes)
            except StoreError as exc:
                if not self._failing:  # said once: every request would repeat it
                    logger.error("store failed, answers are withheld err=%s", exc)  # noqa: TRY400 - the text says it all
                self._failing = True
                raise
            if changes and self._failing:
                self._failing = False
                logger.info("store works again")
        for node in self.directory.take_notifications():
            self.notify(node)

    def connection_closed(self, peer: PeerInfo) -> None:
        """Note that a connection is gone."""
        self.directory.disconnected(peer)

    async def keep_house(self) -> None:
        """Remove nodes not heard of for too long, note when the others were, until cancelled."""
        noted_at = trio.current_time()
        while True:
            await trio.sleep(REAP_INTERVAL)
            if reaped := self.directory.reap(self.clock()):
                logger.info("nodes reaped count=%d", len(reaped))
            if trio.current_time() - noted_at >= LAST_SEEN_INTERVAL:
                noted_at = trio.current_time()
                self.directory.note_last_seen()
            with contextlib.suppress(StoreError):  # said by `settle`; the next round tries again
                await self.settle()

    def _count(self, request: Message) -> None:
        kind = request.get("type")
        self.requests[kind if isinstance(kind, str) and kind in TYPES else "other"] += 1


def promises(request: Message) -> bool:
    """Say whether the answer to a request promises that something will last."""
    kind = request.get("type")
    return not (isinstance(kind, str) and kind in READ_ONLY)
