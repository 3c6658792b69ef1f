"""The registry's TCP listeners: who may connect, one task per connection, and what became of each.

A connection's troubles are its own: whatever it sends or does not read, the others notice nothing. What they share is
bounded: connections in all and per source host, requests per source host, bytes held (`connection`).
"""

from __future__ import annotations

import errno
import logging
import resource
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import attrs
import trio

from pilot_trio.net.network import StreamListener, remote_endpoint
from pilot_trio.proto.directory import PeerInfo
from pilot_trio.proto.limits import KeyedBuckets, TokenBucket
from pilot_trio.rendezvous.connection import ByteBudget, Connection, Ending
from pilot_trio.rendezvous.registrar import Registrar
from pilot_trio.rendezvous.sources import is_loopback, source_of
from pilot_trio.rendezvous.tls import HANDSHAKE_TIMEOUT

logger: Final = logging.getLogger("pilot_trio.registry")

# The reference's limits (`spec/registry.md` §2.6) …
SOURCE_RATE: Final = 100.0  # requests per second and source host; 1,500 idle nodes behind one address send as many
SOURCES_TRACKED: Final = 50_000  # source hosts whose rate is known, about 15 MB; the one silent longest goes first
ACCEPT_RATE: Final = 1000.0  # connections accepted per second; more wait in the kernel's backlog

# … and ours. There is no limit on all requests together: it would cut whoever comes next, guilty or not.
CONNECTIONS_MAX: Final = 200_000  # open at a time, about 2 GB; the limit of open files is usually lower
FILES_RESERVED: Final = 64  # descriptors kept from connections; database, listeners and pages need some
SOURCE_SHARE: Final = 4  # part of all connections that one source host may have; a quarter leaves room for others
ACCEPT_PAUSE: Final = 0.1  # seconds until the next try; the system had no descriptor or memory for a connection

_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


@attrs.frozen
class RegistryStatistics:
    """What the registry's listeners have seen so far, and what is open now."""

    connections: int
    accepted: int
    refused: int  # closed at once: too many connections, in all or from that source
    starved: int  # times that the system had no descriptor or memory for a connection
    requests: Mapping[str, int]  # by type
    held_bytes: int  # half requests and unsent answers
    endings: Mapping[Ending, int]


def connection_limit() -> int:
    """Return how many connections this process can serve, given its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else soft - FILES_RESERVED
    return max(1, min(CONNECTIONS_MAX, files))


@attrs.define(eq=False)
class RegistryServer:
    """Serves any number of listeners.

    Args:
      is_unlimited: whether a source host is free of limits that go by source.
    """

    registrar: Registrar
    is_unlimited: Callable[[str], bool]
    max_connections: int = attrs.field(factory=connection_limit)
    budget: ByteBudget = attrs.field(factory=ByteBudget)
    _rates: KeyedBuckets[str] = attrs.field(
        factory=lambda: KeyedBuckets(SOURCE_RATE, SOURCE_RATE, SOURCES_TRACKED), init=False
    )
    _accept_rate: TokenBucket = attrs.field(factory=lambda: TokenBucket(ACCEPT_RATE, ACCEPT_RATE), init=False)
    _connections: int = attrs.field(default=0, init=False)
    _by_source: Counter[str] = attrs.field(factory=Counter, init=False)  # connections of each source
    _accepted: int = attrs.field(default=0, init=False)
    _refused: int = attrs.field(default=0, init=False)
    _starved: int = attrs.field(default=0, init=False)
    _endings: Counter[Ending] = attrs.field(factory=Counter, init=False)

    async def serve(self, listener: StreamListener, tls: ssl.SSLContext | None = None) -> NoReturn:
        """Accept and serve connections until cancelled; closes the listener then."""
        async with listener, trio.open_nursery() as nursery:
            while True:
                stream = await self._accept(listener)
                source = remote_endpoint(stream)
                if not self._has_room(source.host):
                    self._refused += 1
                    await trio.aclose_forcefully(stream)
                    continue
                self._accepted += 1
                self._connections += 1
                self._by_source[source_of(source.host)] += 1
                peer = PeerInfo(source.host, source.port, self._accepted, loopback=is_loopback(source.host))
                nursery.start_soon(self._serve_connection, stream, peer, tls)

    def statistics(self) -> RegistryStatistics:
        """Return the counters."""
        return RegistryStatistics(
            connections=self._connections,
            accepted=self._accepted,
            refused=self._refused,
            starved=self._starved,
            requests=dict(self.registrar.requests),
            held_bytes=self.budget.held,
            endings={ending: self._endings[ending] for ending in Ending},
        )

    async def _accept(self, listener: StreamListener) -> trio.abc.Stream:
        """Return the next connection, however long the system is short of what one needs."""
        while True:
            await trio.sleep_until(self._accept_rate.next_at(trio.current_time()))
            try:
                stream = await listener.accept()
            except OSError as exc:
                if exc.errno not in _OUT_OF_RESOURCES:
                    raise
                self._starved += 1
                logger.warning("cannot accept a connection reason=%s", exc.strerror)
                await trio.sleep(ACCEPT_PAUSE)
            else:
                self._accept_rate.take(trio.current_time())
                return stream

    def _has_room(self, host: str) -> bool:
        if self._connections >= self.max_connections:
            return False
        share = max(1, self.max_connections // SOURCE_SHARE)
        return self._by_source[source_of(host)] < share or self.is_unlimited(host)

    async def _serve_connection(self, stream: trio.abc.Stream, peer: PeerInfo, tls: ssl.SSLContext | None) -> None:
        """Serve one connection to its end. Nothing that happens in it reaches the others."""
        ending = Ending.STOPPED
        try:
            ending = await self._converse(stream, peer, tls)
        except Exception:
            ending = Ending.FAILED
            logger.exception("connection failed source=%s", peer.host)
        finally:
            self._endings[ending] += 1
            self._connections -= 1
            source = source_of(peer.host)
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]
            self.registrar.connection_closed(peer)
            await trio.aclose_forcefully(stream)
        logger.debug("connection ended source=%s port=%d reason=%s", peer.host, peer.port, ending.value)

    async def _converse(self, stream: trio.abc.Stream, peer: PeerInfo, tls: ssl.SSLContext | None) -> Ending:
        if tls is not None:
            # https_compatible: clients close without saying goodbye, and our frames say where they end.
            encrypted = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            if not await _shake_hands(encrypted):
                return Ending.TLS
            stream = encrypted
        rates = None if self.is_unlimited(peer.host) else self._rates
        return await Connection(stream, peer, self.registrar, rates, self.budget).run()


async def _shake_hands(stream: trio.SSLStream[trio.abc.Stream]) -> bool:
    with trio.move_on_after(HANDSHAKE_TIMEOUT):
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            return False
        return True
    return False
