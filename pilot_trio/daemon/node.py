"""One node: builds the parts, starts them in order, stops them in reverse (`spec/services.md` §8.3, §8.7).

::

    serve_node   IPC socket file, identity, UDP socket           what can fail at the start, before anybody is told of us
    └─ services  webhook, tunnels, beacon                        end last
       └─ users  ├─ handshake, echo, data exchange, event stream on their ports
                 ├─ trust, managed networks, names
                 ├─ enrolment: registers, stays registered       nothing here waits for it but one second at the start
                 └─ IPC server                                   ends first: closes to clients, then everything else

There is no logic here; each part has its own module. The registry client has no task: closing it comes after its users.
"""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial
from typing import Final

import attrs
import trio

from pilot_trio.address import BACKBONE, Address, NodeId
from pilot_trio.config import Config
from pilot_trio.crypto.agreement import KEY_SIZE, KeyPair
from pilot_trio.daemon.beacon_client import BeaconClient, BeaconStatistics
from pilot_trio.daemon.beacon_list import BeaconList
from pilot_trio.daemon.builtin_services import BuiltinServices
from pilot_trio.daemon.carrier import TunnelCarrier
from pilot_trio.daemon.commands import build_table
from pilot_trio.daemon.datagrams import Datagrams, DatagramStatistics
from pilot_trio.daemon.dispatch import CommandTable
from pilot_trio.daemon.enrolment import Enrolment, EnrolmentStatistics
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.homedir import Home, open_home, sole_use
from pilot_trio.daemon.hostname_cache import HostnameCache
from pilot_trio.daemon.ipc import IPCServer, IPCStatistics
from pilot_trio.daemon.key_rotation import KeyRotation
from pilot_trio.daemon.managed import ManagedNetworks
from pilot_trio.daemon.networks import Networks
from pilot_trio.daemon.overlay import open_stream
from pilot_trio.daemon.resolver import Resolver
from pilot_trio.daemon.self_watch import SelfWatch
from pilot_trio.daemon.state import NodeState
from pilot_trio.daemon.streams import StreamStatistics, StreamTable
from pilot_trio.daemon.trust import TrustService
from pilot_trio.daemon.tunnel import Tunnel, TunnelReport
from pilot_trio.daemon.webhook import Webhook
from pilot_trio.errors import StartupError
from pilot_trio.net.network import Endpoint, Network, SystemNetwork
from pilot_trio.net.renewable_socket import RenewableSocket
from pilot_trio.net.service_nursery import open_service_nursery
from pilot_trio.net.transport import TransportListener
from pilot_trio.net.unix_listener import open_unix_listener, raise_open_files_limit
from pilot_trio.proto.ports import PortTable
from pilot_trio.proto.tunnel.settings import TunnelSettings
from pilot_trio.registry.client import RegistryClient, RegistryStatistics
from pilot_trio.registry.tls import TLSPolicy

IPC_OPEN_DELAY: Final = 1.0  # seconds after the start when IPC clients are served even if the registry does not answer
STREAM_DRAIN: Final = 0.6  # seconds at the end for peers to acknowledge what was written; half a second is a slow path
WEBHOOK_DRAIN: Final = 0.4  # seconds, the same ones, for events that are queued; all of a shutdown is to fit into two


_log = logging.getLogger("pilot_trio.daemon")


@attrs.frozen
class NodeStatistics:
    """Every part's counters at one moment."""

    uptime: float  # seconds
    ipc: IPCStatistics
    streams: StreamStatistics
    datagrams: DatagramStatistics
    registry: RegistryStatistics  # what clients and services ask for
    upkeep: RegistryStatistics  # registration, heartbeats
    enrolment: EnrolmentStatistics
    beacon: BeaconStatistics
    tunnel: TunnelReport


class Node:
    """The parts of one node. Made and run by `serve_node`; command handlers reach each other's parts through it."""

    def __init__(
        self, config: Config, network: Network, home: Home, sock: RenewableSocket, tls: TLSPolicy | None
    ) -> None:
        registry = _registry_endpoint(config)
        rng = network.random_source()
        self.config: Final = config
        self.events: Final = EventBus()
        self.state: Final = NodeState(
            home.identity,
            trio.current_time(),
            persistent=home.persistent,
            next_key=home.next_key,
            email=home.email,
            public=config.public,
        )
        connect = partial(RegistryClient, network, registry, tls=tls, on_reachable=self._on_reachable, rng=rng)
        # One connection is for the node's own upkeep: heartbeats must not wait behind what local clients ask for.
        self.upkeep: Final = connect(connections=1)
        self.registry: Final = connect(connections=max(1, config.registry.connections - 1))
        self.hostnames: Final = HostnameCache(home.file("hostname_cache.json"), network.wall_time)
        self.resolver: Final = Resolver(self.registry, self.state, self.hostnames)
        self.rotation: Final = KeyRotation(self.state, self.registry, config.identity, network.random_bytes)
        self.managed: Final = ManagedNetworks(self.state, self.registry, config.admin_token, network.wall_time)
        self.networks: Final = Networks(
            state=self.state,
            registry=self.registry,
            resolver=self.resolver,
            events=self.events,
            admin_token=config.admin_token,
            path=home.file("networks.json"),
            on_directory=self.managed.sync,
            rng=rng,
        )
        self.ports: Final = PortTable(rng.getrandbits(32))
        self.trust: Final = TrustService(
            state=self.state,
            registry=self.registry,
            resolver=self.resolver,
            events=self.events,
            dial=self._dial,
            path=home.file("trust.json"),
            auto_approve=config.trust.auto_approve,
            keepalive=config.keepalive,
            wall_time=network.wall_time,
            jitter=rng.random,
        )
        self.webhook: Final = Webhook(
            self.events,
            node_id=lambda: self.state.node_id,
            secret=config.webhook.secret,
            now_ns=network.wall_time_ns,
        )
        self.tunnel: Final = Tunnel(
            sock=sock,
            state=self.state,
            resolver=self.resolver,
            network=network,
            bus=self.events,
            keypair=KeyPair.from_private(network.random_bytes(KEY_SIZE)),
            random_bytes=network.random_bytes,
            settings=TunnelSettings(
                encrypt=config.encrypt,
                relay_only=config.relay_only,
                path_watch=config.tunnel.path_watch,
                admits=self._admits_key_of,
                is_trusted=self.trust.is_trusted,
                reply_whitelist=config.tunnel.reply_whitelist,
                rekey_whitelist=config.tunnel.rekey_whitelist,
            ),
        )
        self.carrier: Final = TunnelCarrier(
            state=self.state,
            ports=self.ports,
            resolver=self.resolver,
            tunnel=self.tunnel,
            timers=self.tunnel.timers,
            trust=self.trust,
            check_trust=self.resolver.check_trust,
            limits=config.streams,
            events=self.events,
            syn_whitelist=config.tunnel.syn_whitelist,
            route_mtu=network.route_mtu,
        )
        self.streams: Final = StreamTable(
            self.state, self.ports, self.carrier, limits=config.streams, events=self.events
        )
        self.tunnel.deliver = self.carrier.receive
        self.tunnel.on_restart = self.carrier.forget_streams
        self.tunnel.on_answer = self.carrier.repeat_now
        self.tunnel.on_path = self.carrier.on_path
        self.trust.on_asked = self.carrier.admission.expect_reply
        self.trust.on_parted = self._part_with
        self.beacon: Final = BeaconClient(
            network=network,
            link=self.tunnel,
            state=self.state,
            configured=config.beacon,
            listed=BeaconList(self.upkeep, home.file("beacons.json"), network.wall_time),
            on_notify=self.trust.poke,
            keepalive=config.keepalive,
            relay_only=config.relay_only,
            rng=rng,
        )
        self.tunnel.on_beacon = self.beacon.receive
        self.enrolment: Final = Enrolment(
            config=config,
            state=self.state,
            registry=self.upkeep,
            networks=self.networks,
            beacon=self.beacon,
            bound=lambda: sock.endpoint,
            own_hosts=network.own_hosts,
            settle_key=self.rotation.settle,
            events=self.events,
            trusted=self.trust.trusted_ids,
            rng=rng,
        )
        self.watch: Final = SelfWatch(
            state=self.state,
            tunnels=self.tunnel,
            beacon=self.beacon,
            renew=self._renew,
            rebind=sock.renew,
            events=self.events,
            source_host=network.source_host,
            clock=network.clock,
        )
        commands: CommandTable = {}
        self.ipc: Final = IPCServer(commands, turn=self.carrier.turn)
        self.datagrams: Final = Datagrams(
            self.state,
            self.ports,
            self.resolver,
            self.ipc.broadcast_offer,
            members=self.networks.members,
            admin_token=config.admin_token,
            events=self.events,
            carrier=self.carrier.datagrams,
            turn=self.carrier.turn,
        )
        self.services: Final = BuiltinServices(
            config=config,
            state=self.state,
            table=self.streams,
            trust=self.trust,
            events=self.events,
            now_ns=network.wall_time_ns,
        )
        self.carrier.attach(self.streams, self.datagrams.receive)
        commands.update(build_table(self, wall_time=network.wall_time))

    def statistics(self) -> NodeStatistics:
        """Return every part's counters."""
        return NodeStatistics(
            uptime=trio.current_time() - self.state.started_at,
            ipc=self.ipc.statistics(),
            streams=self.streams.statistics(),
            datagrams=self.datagrams.statistics(),
            registry=self.registry.statistics(),
            upkeep=self.upkeep.statistics(),
            enrolment=self.enrolment.statistics(),
            beacon=self.beacon.statistics(),
            tunnel=self.tunnel.statistics(),
        )

    async def run(self, listener: TransportListener, *, task_status: trio.TaskStatus[Node]) -> None:
        """Serve until cancelled; then stop everything, users before what they use."""
        await self.webhook.load(self.config.webhook.url, self.config.home / "webhook_url")
        async with open_service_nursery() as services:
            await services.start(self.webhook.run)
            await services.start(self.tunnel.run)
            await services.start(self.carrier.run)
            await services.start(self.beacon.run)
            try:
                await self._run_users(listener, task_status)
            finally:
                self.webhook.close()
                began = trio.current_time()
                with trio.CancelScope(shield=True):
                    await self.streams.drain(STREAM_DRAIN)
                    with trio.move_on_at(began + WEBHOOK_DRAIN):
                        await self.webhook.drained.wait()
                await self.registry.aclose()
                await self.upkeep.aclose()

    async def _run_users(self, listener: TransportListener, task_status: trio.TaskStatus[Node]) -> None:
        async with trio.open_nursery() as nursery:
            try:
                self.services.start(nursery)
                await nursery.start(self.hostnames.run)
                await nursery.start(self.trust.run)
                await nursery.start(self.managed.run)
                nursery.start_soon(self.enrolment.run)
                if self.config.tunnel.address_watch:
                    nursery.start_soon(self.watch.watch_address)
                if self.config.tunnel.receive_watch:
                    nursery.start_soon(self.watch.watch_receiving)
                with trio.move_on_at(self.state.started_at + IPC_OPEN_DELAY):
                    await self.enrolment.announced.wait()
                await nursery.start(self.ipc.serve, listener)
                _log.info("IPC listening", extra={"kv": {"socket": str(self.config.socket)}})
                if self.config.registry.fail_fast:
                    await self.enrolment.announced.wait()
                task_status.started(self)
                await self.enrolment.announced.wait()
                kv = {"node_id": self.state.node_id, "addr": str(self.state.address)}
                _log.info("daemon running", extra={"kv": kv})
                await trio.sleep_forever()
            finally:
                self._announce_end()

    def _announce_end(self) -> None:
        uptime = trio.current_time() - self.state.started_at
        data = {
            "known_peers": self.state.tunnel.peers,
            "open_connections": self.streams.statistics().connections,
            "uptime_seconds": int(uptime),
        }
        self.events.publish("daemon.shutting_down", data)

    def _admits_key_of(self, node: int) -> bool:
        """Say whether a node may have a tunnel (`spec/tunnel.md` §7.9)."""
        return not self.config.tunnel.strict_trust or self.state.public or self.trust.is_trusted(node)

    def _part_with(self, node: int) -> None:
        """Let the tunnel go to a node that is not trusted any more; open streams keep it, as they do with the reference.

        The way to a private node cannot be asked for again without its trust.
        """
        if self.config.tunnel.strict_trust or not self.carrier.has_open_streams(node):
            self.tunnel.forget(node)

    async def _dial(self, node: NodeId, port: int) -> trio.abc.Stream:
        return await open_stream(self.streams, Address(BACKBONE, node), port, "handshake")

    async def _renew(self) -> bool:
        """Register over connections that were made where this machine is now."""
        await self.upkeep.renew()
        await self.registry.renew()
        return await self.enrolment.renew()

    def _on_reachable(self, reachable: bool) -> None:
        self.state.registry_reachable = reachable


async def serve_node(
    config: Config,
    *,
    network: Network | None = None,
    listener: TransportListener | None = None,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one node, without a rendezvous of its own, until cancelled; it ends in well under two seconds.

    Reports the `Node` once IPC clients are served: when it is registered, or one second after the start.

    Args:
      config: its settings; `registry.endpoint` must be given.
      network: None: the operating system's.
      listener: where IPC clients arrive; None: a Unix socket at `config.socket`.
      task_status: gets the node.

    Raises:
      StartupError: it cannot start; the text says why and what to do.
    """
    network = network or SystemNetwork()
    if listener is None:
        listener = await open_ipc_listener(config)
    with closing(listener):
        home = await open_home(config, network.random_bytes)
        with sole_use(config.identity), closing(await _open_udp(network, config.listen)) as sock:
            node = Node(config, network, home, sock, await _load_tls(config))
            await node.run(listener, task_status=task_status)


async def open_ipc_listener(config: Config) -> TransportListener:
    """Create the Unix socket at `config.socket`; raise `StartupError` if it belongs to a living daemon or cannot be made."""
    raise_open_files_limit()
    return await open_unix_listener(config.socket)


async def _open_udp(network: Network, at: Endpoint) -> RenewableSocket:
    reopen = partial(network.open_udp, at)
    try:
        sock = RenewableSocket(await reopen(), reopen, keeps_port=at.port != 0)
    except OSError as exc:
        raise StartupError(f"tunnel listen on {at}: {exc.strerror or exc}; choose another port, or 0 for any") from exc
    _log.info("tunnel listening", extra={"kv": {"addr": str(sock.endpoint)}})
    return sock


async def _load_tls(config: Config) -> TLSPolicy | None:
    if not config.registry.tls:
        return None
    if config.registry.trust == "pinned":
        return TLSPolicy.pinned(config.registry.fingerprint)
    return await trio.to_thread.run_sync(TLSPolicy.system)  # reads hundreds of certificates


def _registry_endpoint(config: Config) -> Endpoint:
    if config.registry.endpoint is None:
        raise StartupError("no registry: RegistryConfig.endpoint is None; name one, for example 127.0.0.1:9000")
    return config.registry.endpoint
