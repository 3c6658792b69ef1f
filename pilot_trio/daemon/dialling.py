"""A dial under way: the SYN, its repetitions, and what comes of them (`spec/transport.md` §3.4).

No task waits for an answer. A dial is a callback on its connection and has the use of its timer, so that a node that is
there is dialled in two turns of the loop, and thousands of dials to one that is not cost a timer each.
"""

from __future__ import annotations

from typing import Final, Protocol, final

from pilot_trio.daemon.connection import Connection, ConnState
from pilot_trio.daemon.remote_stream import RemoteConnection
from pilot_trio.daemon.streams import Opened
from pilot_trio.errors import DialCancelled, DialError, DialRefused, DialTimeout

KEY_WAIT: Final = 10.0  # seconds that a dial waits for the key exchange before it spends retries; protocol §3.4
SYN_TIMEOUTS: Final = (0.25, 0.5, 1.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds after each SYN; protocol §3.4
DIRECT_ATTEMPTS: Final = 3  # SYNs on the direct path; later ones go by relay; protocol §3.4


class Paths(Protocol):
    """What a dial needs of the tunnel."""

    def has_session(self, node: int, /) -> bool:
        """Say whether packets to a node leave at once."""
        ...

    def key_came_by_relay(self, node: int, /) -> bool:
        """Say whether nothing but the relay has ever brought anything of the node."""
        ...

    def use_relay(self, node: int, /) -> bool:
        """Turn a peer to the relay, if there is one; True if that changed anything."""
        ...

    def doubt(self, node: int, /) -> None:
        """Look for a node on every path: it does not answer as it should."""
        ...

    def undo_relay(self, node: int, /) -> None:
        """Take `use_relay` back: the dial that asked for it has failed."""
        ...


class Resolver(Protocol):
    """What a dial needs of the resolver."""

    def forget(self, node: int, /) -> None:
        """Drop what is cached of a node."""
        ...


@final
class Dial:
    """One dial. The first SYN leaves when it is made; `start_clock` begins to wait for the answer.

    Args:
      connection: fresh, its SYN still to be sent.
      paths: direct or by relay.
      resolver: forgets a node that does not answer.
      done: gets the outcome, never before this returns.
    """

    __slots__ = ("_attempt", "_connection", "_done", "_node", "_paths", "_resolver", "_turned")

    def __init__(self, connection: RemoteConnection, paths: Paths, resolver: Resolver, done: Opened) -> None:
        self._connection = connection
        self._node = connection.remote.address.node
        self._paths = paths
        self._resolver = resolver
        self._done: Opened | None = done  # None: it is over
        self._attempt = 0
        self._turned = False  # to the relay, by this dial
        connection.on_answer, connection.on_unanswered = self._on_answer, self._on_due
        connection.pump()

    def start_clock(self, now: float) -> None:
        """Repeat the SYN from now on. While there is no key it waits in the tunnel's queue, and repeating it is no use."""
        if self._done is not None:
            self._connection.timer.arm(now + SYN_TIMEOUTS[0])

    def cancel(self) -> None:
        """End the dial, if it is not over, leaving nothing; the outcome is `DialCancelled`. The peer has seen a SYN at most."""
        if self._done is not None:
            self._fail(DialCancelled())

    def _on_due(self, now: float) -> None:
        self._attempt += 1
        attempt, paths, node = self._attempt, self._paths, self._node
        if attempt == len(SYN_TIMEOUTS):
            self._resolver.forget(node)
            without_key = "" if paths.has_session(node) else ": key exchange with peer did not complete"
            self._fail(DialTimeout(f"dial timeout{without_key}"))
            return
        if attempt == DIRECT_ATTEMPTS or (attempt == 1 and paths.key_came_by_relay(node)):
            self._turned = paths.use_relay(node) or self._turned
        if attempt == 1:
            paths.doubt(node)  # it may have restarted elsewhere, and packets to where it was are lost without a word
        self._connection.repeat_syn()
        self._connection.timer.arm(now + SYN_TIMEOUTS[attempt])

    def _on_answer(self) -> None:
        connection = self._connection
        if connection.state is ConnState.ESTABLISHED:
            self._end(connection)
        else:
            self._end(DialRefused() if connection.refused else DialCancelled())

    def _fail(self, error: DialError) -> None:
        if self._turned:
            self._paths.undo_relay(self._node)
        self._connection.on_answer = None
        self._connection.close()
        self._end(error)

    def _end(self, outcome: Connection | DialError) -> None:
        done, self._done = self._done, None
        self._connection.on_unanswered = None
        assert done is not None
        done(outcome)
