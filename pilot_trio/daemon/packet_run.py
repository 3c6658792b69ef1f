"""Packets of one stream that arrive one after the other, which is how nearly all of them arrive."""

from __future__ import annotations

from typing import final

from pilot_trio.address import Address
from pilot_trio.daemon.remote_stream import RemoteConnection
from pilot_trio.wire.packet import ACK, STREAM, Packet


@final
class PacketRun:
    """Packets that arrive one after the other for one connection; it gets them together."""

    __slots__ = ("_connection", "_now", "_packets", "_source", "_source_port", "_to")

    def __init__(self, now: float) -> None:
        self._now = now
        self._connection: RemoteConnection | None = None
        self._packets: list[Packet] = []
        self._source: Address | None = None
        self._source_port = self._to = 0

    def start(self, connection: RemoteConnection, packet: Packet) -> None:
        """Begin with a packet of a connection."""
        self._connection = connection
        self._packets = [packet]
        self._source, self._source_port, self._to = packet.source, packet.source_port, packet.destination_port

    def takes(self, packet: Packet) -> bool:
        """Take a packet, if it is a stream's, goes on where the run is, and has no flag that may end or begin anything."""
        if (
            packet.source_port == self._source_port
            and packet.destination_port == self._to
            and packet.flags == ACK
            and packet.protocol == STREAM
            and packet.source == self._source
        ):
            self._packets.append(packet)
            return True
        return False

    def finish(self) -> None:
        """Hand over what there is."""
        connection, self._connection = self._connection, None
        self._source = None
        if connection is not None:
            connection.machine.receive_packets(self._packets, self._now)
