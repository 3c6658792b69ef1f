"""What a stream can be, and what its user is told (`spec/transport.md` §3.1)."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """States, spelled as users see them."""

    __hash__ = object.__hash__  # the inherited one is a call of Python code, in every look-up

    SYN_SENT = "SYN_SENT"
    SYN_RECV = "SYN_RECV"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT = "FIN_WAIT"
    TIME_WAIT = "TIME_WAIT"
    CLOSED = "CLOSED"


class Event(Enum):
    """What the shell has to act upon."""

    __hash__ = object.__hash__  # the inherited one is a call of Python code, in every look-up

    OPENED = "opened"  # the dial succeeded
    REFUSED = "refused"  # the peer answered the dial with a reset
    READABLE = "readable"  # bytes arrived
    WRITABLE = "writable"  # the send buffer has room again
    END_OF_STREAM = "end of stream"  # nothing more will be readable beyond what is queued
    TRUNCATED = "truncated"  # before the end: the peer closed, and what it wrote last never came
    IDLE_TIMEOUT = "idle timeout"  # closed for lack of activity
    DEAD_PEER = "dead peer"  # closed because probes went unanswered
    ABANDONED = "abandoned"  # the peer stopped acknowledging
    CLOSED = "closed"  # the machine is done; forget it
