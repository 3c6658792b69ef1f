"""Overlay streams and listeners as Trio knows them, for services inside the daemon.

`OverlayStream` is a `trio.abc.Stream`, `OverlayListener` a `trio.abc.Listener`: `trio.serve_listeners` and
everything else written for Trio's streams works on them. `send_eof` is not offered, because the overlay has no
half-close (`spec/transport.md` §0): it would lie.
"""

from __future__ import annotations

from collections.abc import Hashable
from operator import index
from typing import Final

import trio

from pilot_trio.address import Address, SocketAddress
from pilot_trio.daemon.connection import Connection
from pilot_trio.daemon.port_listener import PortListener
from pilot_trio.daemon.streams import StreamTable

RECEIVE_DEFAULT: Final = 65_536  # bytes returned at most where the caller names no limit


class OverlayStream(trio.abc.Stream):
    """A connection as a byte stream. One task may send while another receives; two of a kind get `BusyResourceError`.

    A stream that the other side closed raises `BrokenResourceError` on sending and returns `b""` on receiving, after
    everything that was sent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = False
        self._receiving = False

    @property
    def local(self) -> SocketAddress:
        """This end."""
        return self._connection.local

    @property
    def remote(self) -> SocketAddress:
        """The other end."""
        return self._connection.remote

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._connection.write_all(data)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._connection.wait_writable()
            self._connection.write_nowait(b"")  # takes nothing; raises if the stream was closed meanwhile
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        limit = RECEIVE_DEFAULT if max_bytes is None else index(max_bytes)
        if limit < 1:
            raise ValueError(f"max_bytes must be at least 1, not {limit}")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return await self._connection.receive_some(limit)
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """Close gracefully: what was sent is delivered, what was not received is lost. Never waits for the other side."""
        self._connection.close()
        await trio.lowlevel.checkpoint()


class OverlayListener(trio.abc.Listener[OverlayStream]):
    """A bound port; made by `listen`."""

    def __init__(self, listener: PortListener) -> None:
        self._listener = listener

    @property
    def port(self) -> int:
        """The port."""
        return self._listener.port

    async def accept(self) -> OverlayStream:
        await trio.lowlevel.checkpoint()
        return OverlayStream(await self._listener.accept())

    async def aclose(self) -> None:
        """Unbind the port; accepted streams live on."""
        self._listener.close()
        await trio.lowlevel.checkpoint()


def listen(table: StreamTable, port: int, owner: Hashable) -> OverlayListener:
    """Bind a port for a service of the daemon; raise `PortInUse`. `owner` is any key of its own, such as its name."""
    return OverlayListener(table.bind(port, owner))


async def open_stream(table: StreamTable, address: Address, port: int, owner: Hashable) -> OverlayStream:
    """Dial for a service of the daemon; raise `DialError`."""
    await trio.lowlevel.checkpoint()
    return OverlayStream(await table.dial(address, port, owner=owner))
