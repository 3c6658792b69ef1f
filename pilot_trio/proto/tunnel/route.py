"""How one peer is reached: directly or by relay, and why (`spec/tunnel.md` §10)."""

from __future__ import annotations

from math import inf
from typing import Final

import attrs

from pilot_trio.proto.tunnel.events import Addr
from pilot_trio.proto.tunnel.settings import (
    BLACKHOLE_MISSES,
    BLACKHOLE_SILENCE,
    DIRECT_CLEARS,
    SEND_ERRORS_MAX,
)

# Why a peer is on the relay.
SILENT: Final = "direct path silent"  # its endpoint has swallowed what was sent there
RELAY_ONLY: Final = "relay only"  # it hides its endpoint, or this node does
PEER_RELAYS: Final = "peer sends by relay"  # and nothing comes from it directly


@attrs.define(eq=False)
class Route:
    """Routing state of one peer."""

    address: Addr | None = None  # its own endpoint, as resolved or as last proven
    relay: bool = False
    pinned: bool = False  # direct packets do not turn it back
    hidden: bool = False  # the registry says that it does not want to be written to directly
    why: str = ""  # what turned it to the relay
    first_sent_at: float = inf  # since the last direct arrival
    last_sent_at: float = -inf
    last_direct_at: float = -inf
    misses: int = 0
    direct_arrivals: int = 0
    send_errors: int = 0
    key_came_by_relay: bool = False

    def turn_to_relay(self, why: str, *, pin: bool) -> bool:
        """Use the relay from now on; return True if that is new."""
        new = not self.relay
        self.relay = True
        self.pinned = self.pinned or pin
        if new:
            self.why = why
        self.misses = self.send_errors = self.direct_arrivals = 0
        return new

    def is_in_doubt(self, now: float) -> bool:
        """Say whether nothing has come directly for so long that what leaves directly counts as swallowed."""
        reference = self.last_direct_at if self.last_direct_at > -inf else self.first_sent_at
        return now - reference > BLACKHOLE_SILENCE

    def swallowed(self) -> bool:
        """Note a frame about to leave on a path in doubt; return True if the path has swallowed enough of them."""
        self.misses += 1
        return self.misses >= BLACKHOLE_MISSES

    def sent(self, now: float) -> None:
        """Note a frame that left."""
        self.last_sent_at = now
        if self.first_sent_at == inf:
            self.first_sent_at = now

    def unreachable(self) -> bool:
        """Note an error that says "no way there"; return True if there were enough of them."""
        self.send_errors += 1
        return self.send_errors >= SEND_ERRORS_MAX

    def arrived_directly(self, source: Addr, now: float, *, newest: bool) -> bool:
        """Note an authenticated packet from the peer's own endpoint; return True if it ends the use of the relay.

        The endpoint follows the newest packet only: a late one must not move it back. A new endpoint (a NAT has a new mapping,
        or there was none known) is a path that nothing is held against yet.
        """
        moved = newest and source != self.address
        if newest:
            self.address = source
        self.last_direct_at = now
        self.first_sent_at = inf
        if moved and self.relay and self.why != RELAY_ONLY:
            self.relay = self.pinned = False
            self.why = ""
            self.direct_arrivals = 0
            return True
        if not self.relay or self.pinned:
            return False
        self.direct_arrivals += 1
        if self.direct_arrivals < DIRECT_CLEARS:
            return False
        self.relay = False
        self.why = ""
        self.direct_arrivals = 0
        return True
