"""One IPC client's byte stream, as the server sees it.

More than `trio.abc.Stream` in one point: `send_nowait` takes what the operating system takes at once. That is what makes
ping-pong fast; everything it leaves over goes through the client's queue and writer.
"""

from __future__ import annotations

import abc


class Transport(abc.ABC):
    """A connected byte stream. One task may read while another writes; `close` may come from any."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def drained(self) -> bool:
        """Whether `receive_some` would wait, as far as is known: there was nothing more than what it returned last."""

    @abc.abstractmethod
    async def receive_some(self, max_bytes: int) -> bytes:
        """Return 1 to `max_bytes` bytes as soon as there are any, `b""` at end of stream.

        Not a checkpoint when bytes are there already; the reader yields by count.

        Raises:
          trio.BrokenResourceError: the peer reset the connection.
          trio.ClosedResourceError: `close` was called.
        """

    @abc.abstractmethod
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what fits without waiting; return how many bytes that were, 0 if none.

        Raises `trio.BrokenResourceError` or `trio.ClosedResourceError` as `receive_some` does.
        """

    @abc.abstractmethod
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, waiting as long as it takes; the caller sets the deadline. Raises as `send_nowait`."""

    @abc.abstractmethod
    def hung_up(self) -> bool:
        """Say whether the peer has closed both directions (as opposed to its write side only)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close at once, without waiting; idempotent. Tasks inside the other methods get `ClosedResourceError`."""


class TransportListener(abc.ABC):
    """Where IPC clients arrive."""

    @abc.abstractmethod
    async def accept_some(self) -> list[Transport]:
        """Wait for clients; return those that are there, at least one, at most a bounded number.

        Clients that may not connect (another user's) were closed already and are not in the list.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours."""
