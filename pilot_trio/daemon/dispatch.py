"""What a command handler is, and what it may do with the client that it serves.

A handler is a plain function. It gets the client and the payload and either answers at once (returns a frame), stays
silent (returns None: fire-and-forget commands, or it sent its frames itself), or returns `Later` for the part that has to
wait, `Shared` if others may wait for the same, `Promise` if somebody will call back. So a command costs a task only when it
has to wait for something of its own, and registering for cancellation, say, happens the moment that the frame is decoded.

Errors: a handler, or the awaited part of `Later`, raises `DecodeError`, `CommandError`, `DialError` or `RegistryError`;
the text goes into the error frame unchanged. Anything else that it raises is a bug: it is logged, answered with an error
frame, and ends that request only.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Hashable, Sequence
from enum import Enum, auto
from typing import ClassVar

import attrs

from pilot_trio.errors import PilotError


class Lane(Enum):
    """In which order a command is handled (`spec/ipc.md` §3)."""

    FIFO = auto()
    """In the reader: the next frame is not looked at before this one is done, waiting included."""
    CONCURRENT = auto()
    """At once if the handler can answer at once; what has to wait gets a task, at most `in_flight.CLIENT_IN_FLIGHT_MAX` of them."""


class Client(abc.ABC):
    """One IPC client, as handlers see it."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def client_id(self) -> int:
        """Unique over the life of the daemon; for logs and as a key."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """True once nothing can be sent any more."""

    @property
    @abc.abstractmethod
    def room(self) -> int:
        """Bytes that can be sent or queued now; 0 if others wait before, or if there is not enough to be worth a frame."""

    @abc.abstractmethod
    def when_room(self, wake: Callable[[], None]) -> None:
        """Call `wake` once when there is `room`, which there is not, or when the client is gone. First come, first served."""

    @abc.abstractmethod
    def post(self, frame: bytes) -> None:
        """Send a frame, or queue it if the client does not read just now: without waiting, and past the bound if need be.

        So look at `room` before, unless what is posted is bounded in itself. Nothing happens when the client is gone.
        """

    @abc.abstractmethod
    def on_release(self, release: Callable[[], None]) -> None:
        """Call `release` once, without waiting, when the client is gone; immediately if it is gone already."""


@attrs.frozen
class Later:
    """The part of a request that has to wait. Its frame, if any, is the request's reply."""

    run: Callable[[], Awaitable[bytes | None]]


Answer = Callable[["bytes | PilotError"], None]
"""Answers a request, from wherever the answer comes up. To be called once."""


@attrs.frozen
class Promise:
    """A request that waits without a task: `start` gets it going, and has to see to it that `Answer` is called."""

    start: Callable[[Answer], None]


@attrs.frozen
class Shared:
    """A request that waits without a task for what others may wait for too.

    One question per key is under way; the frame that it returns answers all who had asked before it left. `run` gets the
    time (Trio clock) by which it has to end.
    """

    key: Hashable
    run: Callable[[float], Awaitable[bytes]]


Handler = Callable[[Client, bytes], "bytes | Later | Promise | Shared | None"]


@attrs.frozen
class Route:
    """A row of the command table: which handler, in which lane, and whether failures are answered."""

    handler: Handler
    lane: Lane = Lane.CONCURRENT
    replies: bool = True  # False: fire-and-forget, errors are logged at debug and never sent (`spec/ipc.md` §2, rule 2)
    error_prefix: str = ""  # put before every error text of this command (`sendto: `; `spec/ipc.md` §5.3)
    snapshot: bool = False  # the answer is made of the daemon's state alone: requests in a row, between which nothing
    # else can have happened, share one


RunHandler = Callable[[Client, Sequence[bytes]], "Later | None"]
"""Gets requests, their codes included."""


@attrs.frozen
class RunRoute:
    """A row for requests that are never answered, come by the thousand, and are handled in the reader, waiting included.

    Those in a row that begin alike are handled in one call, which does for each of them what a call of its own would.
    """

    lane: ClassVar[Lane] = Lane.FIFO
    replies: ClassVar[bool] = False
    error_prefix: ClassVar[str] = ""

    handler: RunHandler
    head: int  # bytes, code included, that requests which are handled together have in common


CommandTable = dict[int, "Route | RunRoute"]
