"""Why a beacon let a datagram, or an answer to one, go nowhere."""

from __future__ import annotations

from enum import Enum


class Drop(Enum):
    """One reason each; all are counted, none is logged."""

    MALFORMED = "malformed"
    NOT_FOR_BEACONS = "not for beacons"  # a message that only beacons send
    UNSUPPORTED = "unsupported"  # gossip: this beacon has no peers
    RATE_LIMITED = "rate limited"
    UNKNOWN_TARGET = "unknown target"  # relay or punch to a node that nobody has heard of lately
    PUNCH_REFUSED = "punch refused"  # a stranger asks, or one of the two does not show its endpoint to the other
    UNSENT = "unsent"  # the socket did not take it
