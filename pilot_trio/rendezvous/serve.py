"""A whole rendezvous: registry, beacon, pages, over one directory and one store.

    network ─▶ beacon socket ─▶ BeaconServer ◀─ notify ─┐
            ─▶ TCP listeners ─▶ RegistryServer ─▶ Registrar ─▶ Directory, Store
            ─▶ HTTP listener ─▶ pages ─────────▶ overview of all of them

Everything that can fail at the start is opened before anything is served, and is closed in the reverse order.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import attrs
import trio

from pilot_trio.errors import StoreError
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DatagramSocket, Network, StreamListener, SystemNetwork
from pilot_trio.proto.directory import Directory, DirectorySettings
from pilot_trio.rendezvous.beacon_server import BeaconServer
from pilot_trio.rendezvous.endpoint_file import keep_endpoints, load_endpoints
from pilot_trio.rendezvous.overview import Overview, RendezvousStatistics
from pilot_trio.rendezvous.registrar import Registrar
from pilot_trio.rendezvous.registry_server import RegistryServer
from pilot_trio.rendezvous.settings import RendezvousConfig
from pilot_trio.rendezvous.sources import Privileged
from pilot_trio.rendezvous.store import Store, open_store
from pilot_trio.rendezvous.tls import ServerTLS, load_tls

logger: Final = logging.getLogger("pilot_trio.registry")

FAREWELL_TIMEOUT: Final = 0.3  # seconds for the last notes at the end; the store has its own deadline behind it


@attrs.frozen
class RendezvousHandle:
    """A running rendezvous: where it listens, with the ports that were really taken."""

    registry: Endpoint | None  # plaintext
    tls: Endpoint | None
    fingerprint: str  # what clients of `tls` pin; "" without TLS
    beacon: Endpoint | None
    http: str  # URL; "" without pages
    statistics: Callable[[], RendezvousStatistics] = attrs.field(repr=False)


async def serve_rendezvous(
    settings: RendezvousConfig | None = None,
    *,
    network: Network | None = None,
    clock: Callable[[], float] | None = None,
    task_status: trio.TaskStatus[RendezvousHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `nursery.start` returns a `RendezvousHandle` once everything listens.

    Cancelling ends it in well under two seconds: connections are cut, what was promised is on disk already.

    Args:
      settings: None: plaintext registry and beacon on the default loopback ports, nothing kept.
      network: None: the operating system's.
      clock: unix seconds; None: the network's.
      task_status: gets the handle.

    Raises:
      ConfigError: a file cannot be used.
      OSError: an endpoint cannot be listened on.
    """
    settings = settings or RendezvousConfig()
    network = network or SystemNetwork()
    clock = clock or network.wall_time
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.store))
        tls = await _load_tls(settings)
        beacon_socket = await _open_beacon(stack, network, settings.beacon)
        listeners = _Listeners(
            plain=await _listen(stack, network, settings.registry),
            tls=await _listen(stack, network, settings.tls),
            beacon=beacon_socket,
        )
        directory = await store.load_directory(
            DirectorySettings(
                admin_token=settings.admin_token,
                beacon_address=settings.beacon_advertise or _advertised(beacon_socket),
                stale_after=settings.stale_threshold,
                require_signature=not settings.allow_unsigned,
            ),
            now=clock(),
        )
        await _serve(settings, listeners, tls, directory, store, clock, task_status)


@attrs.frozen
class _Listeners:
    plain: StreamListener | None
    tls: StreamListener | None
    beacon: DatagramSocket | None


async def _serve(
    settings: RendezvousConfig,
    listeners: _Listeners,
    tls: ServerTLS | None,
    directory: Directory,
    store: Store,
    clock: Callable[[], float],
    task_status: trio.TaskStatus[RendezvousHandle],
) -> None:
    started_at = trio.current_time()
    is_unlimited = Privileged(settings.unlimited).contains
    beacon = BeaconServer(directory.is_known, is_unlimited, directory.may_punch, directory.endpoint_of)
    endpoints = None if settings.store is None or listeners.beacon is None else endpoints_path(settings.store)
    if endpoints is not None:
        await load_endpoints(beacon.table, endpoints, clock)
    registrar = Registrar(directory, store, beacon.notify, clock)
    registry = RegistryServer(registrar, is_unlimited)

    def statistics() -> RendezvousStatistics:
        return RendezvousStatistics(
            uptime=trio.current_time() - started_at,
            directory=directory.counts(),
            registry=registry.statistics(),
            beacon=None if listeners.beacon is None else beacon.statistics(),
            store=store.statistics(),
        )

    async with trio.open_nursery() as nursery:
        try:
            if listeners.plain is not None:
                nursery.start_soon(registry.serve, listeners.plain)
            if listeners.tls is not None and tls is not None:
                nursery.start_soon(registry.serve, listeners.tls, tls.context)
            if listeners.beacon is not None:
                nursery.start_soon(beacon.serve, listeners.beacon)
            if endpoints is not None:
                nursery.start_soon(keep_endpoints, beacon.table, endpoints, clock)
            nursery.start_soon(registrar.keep_house)
            url = ""
            if settings.http is not None:
                # Imported here: a node with an embedded rendezvous and no pages does not pay for a web server.
                from pilot_trio.rendezvous.pages import serve_pages

                with _naming("page", settings.http):
                    url = await nursery.start(serve_pages, settings.http, Overview(directory, statistics, clock))
            handle = RendezvousHandle(
                registry=None if listeners.plain is None else listeners.plain.endpoint,
                tls=None if listeners.tls is None else listeners.tls.endpoint,
                fingerprint="" if tls is None else tls.fingerprint,
                beacon=None if listeners.beacon is None else listeners.beacon.endpoint,
                http=url,
                statistics=statistics,
            )
            _log_start(handle)
            task_status.started(handle)
            await trio.sleep_forever()
        finally:
            nursery.cancel_scope.cancel()
            directory.note_last_seen()
            # Nobody waits for these notes, and the store writes what it has accepted when it is closed.
            with trio.move_on_after(FAREWELL_TIMEOUT, shield=True), contextlib.suppress(StoreError):
                await registrar.settle()


async def _listen(stack: contextlib.AsyncExitStack, network: Network, at: Endpoint | None) -> StreamListener | None:
    if at is None:
        return None
    with _naming("registry", at):
        return await stack.enter_async_context(await network.listen_tcp(at))


async def _open_beacon(
    stack: contextlib.AsyncExitStack, network: Network, at: Endpoint | None
) -> DatagramSocket | None:
    if at is None:
        return None
    with _naming("beacon", at):
        sock = await network.open_udp(at)
    stack.callback(sock.close)
    return sock


@contextlib.contextmanager
def _naming(what: str, at: Endpoint) -> Generator[None]:
    """Put into the system's error what it was about: `Address already in use` alone leaves an operator guessing."""
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, f"{what} cannot listen on {at}: {exc.strerror or exc}") from exc


async def _load_tls(settings: RendezvousConfig) -> ServerTLS | None:
    if settings.tls is None:
        return None
    keep_at = None if settings.store is None else certificate_path(settings.store)
    return await trio.to_thread.run_sync(load_tls, settings.tls_certificate, settings.tls_key, keep_at)


def certificate_path(store: Path) -> Path:
    """Return where the generated certificate of a rendezvous with this store is kept."""
    return store.with_name(store.name + ".tls.pem")


def endpoints_path(store: Path) -> Path:
    """Return where the beacon of a rendezvous with this store keeps what it knows of nodes."""
    return store.with_name(store.name + ".endpoints")


def _advertised(beacon: DatagramSocket | None) -> str:
    """Return the beacon's endpoint if others can use it as it stands: a wildcard address names no host."""
    if beacon is None or not beacon.endpoint.host or ipaddress.ip_address(beacon.endpoint.host).is_unspecified:
        return ""
    return str(beacon.endpoint)


def _log_start(handle: RendezvousHandle) -> None:
    if handle.registry is not None:
        logger.info("registry listening addr=%s", handle.registry)
    if handle.tls is not None:
        logger.info("registry listening with TLS addr=%s fingerprint=%s", handle.tls, handle.fingerprint)
    if handle.beacon is not None:
        logger.info("beacon listening addr=%s", handle.beacon)
    if handle.http:
        logger.info("pages listening url=%s", handle.http)
