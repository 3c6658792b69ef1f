"""What the tunnel machine tells its shell: work to do, lines to log, events to publish (`spec/tunnel.md` §16)."""

from __future__ import annotations

from enum import Enum

import attrs

from pilot_trio.wire.packet import Packet

Addr = tuple[str, int]
"""Host literal and UDP port."""


class Drop(Enum):
    """Why a datagram or packet was dropped. Each has a counter."""

    EMPTY = "empty"
    SHORT = "short"
    UNKNOWN_MAGIC = "unknown magic"
    PLAINTEXT = "plaintext"
    ENCRYPTION_OFF = "encryption off"
    OWN_NODE = "own node id"
    NOT_FROM_BEACON = "not from beacon"
    BAD_BEACON_MESSAGE = "bad beacon message"
    UNREGISTERED = "own node id unknown"
    KEY_FRAME_RATE = "key frame rate"
    UNTRUSTED = "untrusted"
    UNKNOWN_NODE = "unknown node"
    KEY_MISMATCH = "key mismatch"
    BAD_SIGNATURE = "bad signature"
    BAD_KEY = "bad key"
    SUPERSEDED_KEY = "superseded key"
    NO_SESSION = "no session"
    UNDECRYPTABLE = "undecryptable"
    REPLAY = "replay"
    OUTSIDE_WINDOW = "outside window"
    MALFORMED_PACKET = "malformed packet"
    SPOOFED_SOURCE = "spoofed source"
    QUEUE_FULL = "queue full"
    QUEUE_EXPIRED = "queue expired"
    PUNCH = "punch"
    STRANGER_RATE = "stranger rate"


class Event:
    """Base of all events."""


@attrs.frozen
class KeyNeeded(Event):
    """Look the node's Ed25519 key up and call `on_key`; one at a time per node. `fresh`: no cache may answer."""

    node: int
    fresh: bool


@attrs.frozen
class RouteNeeded(Event):
    """Resolve the node and call `on_route`. `fresh`: what is cached may be what does not work."""

    node: int
    fresh: bool = False


@attrs.frozen
class Established(Event):
    """A session was installed: the first, or with another key (`rekeyed`). Logged once, published, hooks run."""

    node: int
    endpoint: Addr | None
    relay: bool
    rekeyed: bool


@attrs.frozen
class Restarted(Event):
    """A packet was opened under another X25519 key than before: the peer is a new process, and its streams are gone (§2.3)."""

    node: int


@attrs.frozen
class SameSession(Event):
    """The peer repeated its key frame later than the debounce: published and hooked, logged at debug only."""

    node: int
    endpoint: Addr | None
    relay: bool
    age: float


@attrs.frozen
class SessionDropped(Event):
    """Too many faults in a row: the original drops the session here, we ask the peer for its key. `drop` says which."""

    node: int
    drop: Drop


@attrs.frozen
class Refused(Event):
    """A key frame or packet was refused for a reason that operators want to see."""

    node: int
    drop: Drop
    detail: int = 0
    """`REPLAY`: the counter; `SPOOFED_SOURCE`: the claimed node; `NO_SESSION`: 1 if its key was asked for; `NOT_FROM_BEACON`:
    the kind of message."""


@attrs.frozen
class RelayActivated(Event):
    """The peer is reached by relay from now on; `why` is for the log."""

    node: int
    why: str


@attrs.frozen
class RelayCleared(Event):
    """Direct packets arrive again."""

    node: int


@attrs.frozen
class GaveUp(Event):
    """No answer to any key exchange of a cycle."""

    node: int


@attrs.frozen
class PathSuspect(Event):
    """The peer's path is reset; `probes` is 0 where giving up caused it."""

    node: int
    reason: str
    silent_for: float
    probes: int


@attrs.frozen
class PathRecovered(Event):
    """The peer answers again after probes."""

    node: int


@attrs.frozen
class Answered(Event):
    """The peer was in doubt and has answered: what waits for a timeout need not wait any longer."""

    node: int


@attrs.frozen
class PathChanged(Event):
    """Frames go to this endpoint from now on, None: by relay. What was found out about the path before counts no more."""

    node: int
    path: Addr | None


@attrs.frozen
class Salvaged(Event):
    """Packets of the old session were sent again under the new one."""

    node: int
    replayed: int


@attrs.frozen
class PeerAdded(Event):
    """A node unknown so far sent a plaintext packet (encryption is off)."""

    node: int


@attrs.frozen
class KeyUpdated(Event):
    """The registry names another key for the node than it did before, and the node has shown that one."""

    node: int


@attrs.frozen
class Forgotten(Event):
    """The peer was idle for long enough to be forgotten."""

    node: int


@attrs.frozen
class Punched(Event):
    """Somebody opened his NAT for us. It says nothing about who that was, and changes nothing."""

    source: Addr


@attrs.frozen
class BeaconSaid(Event):
    """A message of the beacon that is not the tunnel's business."""

    data: bytes
    source: Addr


@attrs.frozen
class ControlArrived(Event):
    """A peer has sent a control packet that is more than a sign of life: a ping, or the answer to one."""

    node: int
    packet: Packet
