"""One agreed key with one peer (`spec/tunnel.md` §4 to §6, §7.8)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import attrs

from pilot_trio.crypto.aead import PREFIX_SIZE, Opener, Sealer, read_nonce
from pilot_trio.crypto.replay import ReplayWindow, Verdict
from pilot_trio.errors import AuthenticationError
from pilot_trio.proto.tunnel.settings import (
    EPOCHS_MAX,
    GATE_AGE_DECRYPT,
    GATE_AGE_REPLAY,
    GATE_COUNT,
    SALVAGE_AGE,
    SALVAGE_PACKETS,
)


@attrs.frozen
class Past:
    """What is kept of an ended session, because its key comes back if both processes live on."""

    counter: int = 0  # the nonce counter that was used last: the peer may remember it
    seen: tuple[tuple[bytes, int], ...] = ()  # nonce prefixes of the peer and their highest counters: no replay since


class Session:
    """Keys, counters and faults of one session. Times are seconds of the machine's clock."""

    __slots__ = (
        "_epochs", "_opener", "_prefix", "_salvage", "_sealer", "_window",
        "created_at", "decrypt_failures", "outside", "peer_x25519", "replays", "seal", "seal_run",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        own_node: int,
        peer_x25519: bytes,
        random_bytes: Callable[[int], bytes],
        now: float,
        past: Past = Past(),
    ) -> None:
        self.peer_x25519 = peer_x25519
        self.created_at = now
        self.decrypt_failures = self.replays = self.outside = 0  # in a row
        self._opener = Opener(key)
        self._sealer = Sealer(key, own_node, random_bytes(PREFIX_SIZE), past.counter)
        self.seal: Callable[[bytes], bytes] = self._sealer.seal
        """Returns a datagram; take it to the network in the order of these calls."""
        self.seal_run: Callable[[Sequence[bytes]], list[bytes]] = self._sealer.seal_run
        """Likewise for packets in a row."""
        self._epochs = OrderedDict(  # {nonce prefix: window}, latest used last
            (prefix, ReplayWindow(highest=highest)) for prefix, highest in past.seen
        )
        self._prefix, self._window = b"", ReplayWindow()  # the latest; no nonce has an empty prefix
        self._salvage: deque[tuple[float, bytes]] = deque(maxlen=SALVAGE_PACKETS)

    @property
    def past(self) -> Past:
        """What to begin with if there is a session with this key again."""
        seen = tuple((prefix, window.highest) for prefix, window in self._epochs.items())
        return Past(self._sealer.counter, seen)

    def open(self, datagram: bytes) -> tuple[bytes, Verdict, bool]:
        """Return packet, replay verdict, and whether it is the newest frame of its epoch so far.

        Raises:
          AuthenticationError: this key did not seal it. Nothing has changed.
        """
        packet = self._opener.open(datagram)
        prefix, counter = read_nonce(datagram)
        if prefix != self._prefix:
            self._change_epoch(prefix)
        window = self._window
        newest = counter > window.highest
        verdict = window.accept(counter)
        if verdict is Verdict.FRESH:
            self.decrypt_failures = self.replays = self.outside = 0
        return packet, verdict, newest

    def peek(self, datagram: bytes) -> bytes | None:
        """Return the packet if this key sealed it, without any trace of that."""
        try:
            return self._opener.open(datagram)
        except AuthenticationError:
            return None

    def open_run(self, batch: Sequence[tuple[bytes, object]], at: int) -> list[bytes]:
        """Open sealed datagrams from `at` on that are all alike; return their packets, one for each datagram taken.

        Alike: of one node and source, of the latest epoch, authentic and never seen before. Of the first one that is not,
        there is no trace: `open` says what it is.
        """
        packets = self._opener.open_run(batch, at, self._prefix, self._window)
        if packets:
            self.decrypt_failures = self.replays = self.outside = 0
        return packets

    def _change_epoch(self, prefix: bytes) -> None:
        """Judge by the window of another nonce prefix from now on."""
        window = self._epochs.get(prefix)
        if window is None:
            # Authenticated, so the peer did restart its counter; it cannot make us keep more than a few windows.
            if len(self._epochs) >= EPOCHS_MAX:
                self._epochs.popitem(last=False)
            window = self._epochs[prefix] = ReplayWindow()
        else:
            self._epochs.move_to_end(prefix)
        self._prefix, self._window = prefix, window

    # --- gates (§6): is it time to ask the peer whether it has another key? --------------------------------------------

    def failed_to_open(self, now: float) -> bool:
        """Note a failed opening; return True if the session has had enough of them."""
        self.decrypt_failures += 1
        return self.decrypt_failures >= GATE_COUNT and now - self.created_at >= GATE_AGE_DECRYPT

    def replayed(self, verdict: Verdict, now: float) -> bool:
        """Note an authenticated frame that was refused; return True if the session has had enough of them.

        Better than §6, where one is enough for an old session: a peer that counts anew has a new nonce prefix, and with it
        a window of its own. A frame refused here is most likely one that the network repeated or held up.
        """
        if verdict is Verdict.REPLAY:
            self.replays += 1
            count = self.replays
        else:
            self.outside += 1
            count = self.outside
        return count >= GATE_COUNT and now - self.created_at >= GATE_AGE_REPLAY

    # --- salvage (§7.8) ----------------------------------------------------------------------------------------------

    def remember(self, packets: Sequence[bytes], now: float) -> None:
        """Keep packets that may have to be sent again under the next key. Never those of a stream: they repeat themselves."""
        self._salvage.extend((now, packet) for packet in packets[-SALVAGE_PACKETS:])

    def salvage(self, now: float) -> list[bytes]:
        """Take out what is young enough to be sent again."""
        packets = [packet for at, packet in self._salvage if now - at <= SALVAGE_AGE]
        self._salvage.clear()
        return packets
