"""What is known of one peer: its session, its route, the key exchange under way, packets that wait for a key."""

from __future__ import annotations

from collections import deque
from math import inf

import attrs

from pilot_trio.proto.tunnel.events import Addr
from pilot_trio.proto.tunnel.route import Route
from pilot_trio.proto.tunnel.session import Session
from pilot_trio.proto.tunnel.settings import EARLY_PACKETS, RETRY_DELAYS


@attrs.define(eq=False)
class Exchange:
    """A key exchange that the peer has not answered yet (`spec/tunnel.md` §7.1)."""

    attempts: int = 0
    last_sent_at: float = -inf

    def due_at(self) -> float:
        """Return when the next attempt is due."""
        if not self.attempts:
            return self.last_sent_at
        return self.last_sent_at + RETRY_DELAYS[min(self.attempts, len(RETRY_DELAYS)) - 1]


@attrs.define(eq=False)
class Predecessor:
    """A session that a key frame has replaced, and what else that frame has changed."""

    session: Session
    address: Addr | None
    installed_frame: bytes
    installed_by_relay: bool
    question: int = 0  # sequence number of the ping that only its process can answer
    questions: int = 0  # how many there were
    asked_at: float = -inf


@attrs.define(eq=False)
class Peer:
    """One peer. The machine owns it; nothing else keeps it. Times are seconds of the machine's clock."""

    node: int
    route: Route = attrs.field(factory=Route)
    path: Addr | None = None  # where the last frame went: its endpoint, or None for the relay
    session: Session | None = None
    exchange: Exchange | None = None
    cooldown_until: float = -inf
    queue: deque[tuple[float, bytes]] = attrs.field(factory=deque)  # encoded packets that wait for a key
    early: deque[tuple[float, bytes, Addr, bool]] = attrs.field(  # sealed packets that no key opens yet
        factory=lambda: deque(maxlen=EARLY_PACKETS)
    )
    in_use: bool = False  # a connection to it is open
    used_at: float = -inf  # last application packet, either way
    frame_at: float = -inf  # last frame of any kind, either way
    opened_at: float = -inf  # last packet that the session opened: the peer lives
    installed_at: float = -inf
    installed_frame: bytes = b""  # the key frame that was verified last; its copy needs no second look
    installed_by_relay: bool = False
    proven_x25519: bytes = b""  # key of the last session that has opened a packet; another one means a new process
    predecessor: Predecessor | None = None  # kept until the session has opened a packet
    predecessor_at: float = inf  # when to ask it
    refuted: dict[bytes, float] = attrs.field(factory=dict)
    """Keys of earlier processes whose frames somebody has replayed, and until when they are not believed; the oldest first."""
    shown_at: float = -inf  # when it last showed a key that was known
    stale_reply_at: float = -inf
    rekey_at: float = -inf  # last key request
    teardown_at: float = -inf
    key_request_due: bool = False
    probes: int = 0  # path probes since the last sign of life
    probe_at: float = -inf
    probe_pause_until: float = -inf
    reset_at: float = -inf
    upgrade_at: float = -inf  # when to try next to leave the relay
    upgrade_probes: int = 0  # still to be sent of the attempt under way
    upgrade_probe_at: float = inf
    upgrade_to: tuple[Addr, ...] = ()
    asked_at: float = -inf  # when something was sent that wants an answer, and nothing has come since
    doubt_at: float = inf  # when to look whether it has been answered
    doubts: int = 0  # rounds of probes since then
    resolved_at: float = -inf  # when its route was last asked for anew
    due_at: float = inf  # when upkeep looks at it next

    @property
    def authenticated(self) -> bool:
        """True while there is a session; only signed key frames make one."""
        return self.session is not None

    def is_idle(self, now: float, after: float) -> bool:
        """Say whether nothing but upkeep has passed for `after` seconds and no connection is open."""
        return not self.in_use and now >= self.used_at + after
