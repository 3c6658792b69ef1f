"""Which answer belongs to which request, on one IPC connection, as its client sees it (`spec/ipc.md` §2, §9).

The protocol has no request ids. What there is instead:

- A reply carries its command's own code, so replies to *different* commands may come in any order.
- Confirmed datagrams and Health are handled in the daemon's reader: each kind is answered in request order, so many of
  them may be under way at once. They are the **ordered** requests; each kind has a lane, first in, first out.
- An error frame has no code. Its text names a confirmed datagram (`sendto: `, and nothing else does) or Health; any other
  text answers an **exclusive** request, that is, one of all the other commands. Two of those in flight could not be told
  apart, so there is at most one per connection. More at once take more connections; that is the driver's business.

A request that its caller has abandoned still owes its answer: it keeps its place in its lane, and its answer, when it
comes, is swallowed there instead of being handed to the next in line. So cancelling never poisons a connection.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import attrs

from pilot_trio.errors import LocalProtocolError
from pilot_trio.wire.ipc import Code, decode_error

ORDERED_IN_FLIGHT_MAX: Final = 256  # requests per lane, abandoned ones included; enough to hide any round trip

REPLIES: Final[dict[Code, Code]] = {Code.SEND_TO_CONFIRM: Code.SEND_TO_OK}
REPLIES.update(
    (command, Code[f"{command.name}_OK"])
    for command in Code
    if f"{command.name}_OK" in Code.__members__ and command is not Code.SEND_TO
)
"""Each replied command and the code of its success. `SEND_TO_OK` answers `SEND_TO_CONFIRM`; `SEND_TO` is never answered."""

_ERROR_PREFIXES: Final = {
    Code.SEND_TO_CONFIRM: ("sendto: ", "unknown command: 0x39"),  # the second from daemons without that command
    Code.HEALTH: ("health marshal: ", "unknown command: 0x21"),
}


@attrs.define(eq=False)
class Request:
    """A request under way. Made by `ReplyMatcher.begin`; compared by identity."""

    command: Code
    reply: Code
    abandoned: bool = False
    answered: bool = False


class Answer(NamedTuple):
    """The answer to `request`: its payload, or if `error` is not None the text of an error frame."""

    request: Request
    payload: bytes
    error: str | None


class ReplyMatcher:
    """The requests under way on one connection."""

    def __init__(self) -> None:
        self._ordered: dict[Code, deque[Request]] = {command: deque() for command in _ERROR_PREFIXES}
        self._exclusive: Request | None = None
        self._unmatched = 0

    @property
    def owed(self) -> int:
        """How many answers will come that nobody waits for."""
        return sum(request.abandoned for request in self.in_flight)

    @property
    def in_flight(self) -> list[Request]:
        """The requests that have no answer yet, abandoned ones included."""
        exclusive = [self._exclusive] if self._exclusive is not None else []
        return [*exclusive, *(request for lane in self._ordered.values() for request in lane)]

    @property
    def unmatched(self) -> int:
        """How many frames looked like answers to requests that were not made; dropped."""
        return self._unmatched

    def can_begin(self, command: Code) -> bool:
        """Say whether a request may be sent now without making answers ambiguous."""
        lane = self._ordered.get(command)
        return self._exclusive is None if lane is None else len(lane) < ORDERED_IN_FLIGHT_MAX

    def begin(self, command: Code) -> Request:
        """Note that a request is being sent. Frames must be sent in the order of these calls.

        Raises:
          LocalProtocolError: `can_begin` would have said no, or the command is not one that is replied to.
        """
        reply = REPLIES.get(command)
        if reply is None:
            raise LocalProtocolError(f"{command.name} is never answered; send it without a request")
        if not self.can_begin(command):
            raise LocalProtocolError(f"{command.name} has to wait: its answer could not be told from another one")
        request = Request(command, reply)
        if command in self._ordered:
            self._ordered[command].append(request)
        else:
            self._exclusive = request
        return request

    def abandon(self, request: Request) -> None:
        """Note that nobody waits for this answer any more. Harmless if it has come already."""
        request.abandoned = True

    def receive(self, code: int, payload: bytes) -> Answer | None:
        """Take a reply or error frame; return whose answer it is, None if it is nobody's or nobody waits for it."""
        error = decode_error(payload) if code == Code.ERROR else None
        request = self._exclusive_or_ordered(code) if error is None else self._blamed(error)
        if request is None:
            self._unmatched += 1
            return None
        self._remove(request)
        request.answered = True
        return None if request.abandoned else Answer(request, payload, error)

    def _exclusive_or_ordered(self, code: int) -> Request | None:
        if self._exclusive is not None and self._exclusive.reply == code:
            return self._exclusive
        return next((lane[0] for lane in self._ordered.values() if lane and lane[0].reply == code), None)

    def _blamed(self, text: str) -> Request | None:
        for command, prefixes in _ERROR_PREFIXES.items():
            if text.startswith(prefixes):
                lane = self._ordered[command]
                return lane[0] if lane else None
        return self._exclusive

    def _remove(self, request: Request) -> None:
        if request is self._exclusive:
            self._exclusive = None
        else:
            self._ordered[request.command].popleft()
