"""The node's membership in the registry: register, stay registered, register again (`spec/registry.md` §6).

::

    run ── enrol, until it works ──► heartbeats ──► lost? ──► register again, report trust
           (or once: fail_fast)  ├─► the hostname, announced again
                                 └─► networks and their policies (`networks`)

Nothing local waits for any of this: while the registry is away the node keeps what it has and keeps asking, with delays
that grow and differ from node to node.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import attrs
import trio

from pilot_trio.address import NodeId
from pilot_trio.config import Config
from pilot_trio.daemon.beacon_client import BeaconClient
from pilot_trio.daemon.events import EventBus
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.networks import Networks
from pilot_trio.daemon.same_lan import lan_endpoints
from pilot_trio.daemon.state import REFERENCE_VERSION, NodeState
from pilot_trio.errors import RegistryError, RegistryUnavailable, StartupError
from pilot_trio.net.addresses import is_literal, is_public, on_this_machine
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.registry.backoff import Backoff
from pilot_trio.registry.client import INTERACTIVE_TIMEOUT
from pilot_trio.wire.registry import (
    BAD_SIGNATURE,
    UNKNOWN_NODE,
    Message,
    heartbeat_text,
    node_text,
    pair_text,
    register_text,
)

HEARTBEAT_JITTER: Final = 5.0  # seconds; random part of the first wait: nodes do not beat in step; protocol, §6.2
HEARTBEAT_FAILURES_MAX: Final = 3  # refused heartbeats in a row until the node registers again; protocol, §6.4
ANNOUNCE_INTERVAL: Final = 60.0  # seconds between announcements of the hostname; protocol, §6.2
ENROL_DELAY_FIRST: Final = 0.5  # seconds before the second attempt to register at the start; protocol, §2.5
ENROL_DELAY_MAX: Final = 30.0  # seconds; longest such wait. Long enough for a registry that comes back to 10,000 nodes
FAIL_FAST_ATTEMPTS: Final = 10  # attempts to reach the registry with `fail_fast`; protocol, §2.5
FAIL_FAST_DELAY_MAX: Final = 8.0  # seconds; longest wait between them; protocol, §2.5
REREGISTER_DELAY_FIRST: Final = 0.15  # seconds before registering again, doubling; protocol, §6.4
REREGISTER_DELAY_MAX: Final = 30.0  # seconds; longest such wait; protocol, §6.4
OUTAGE_DELAY_FIRST: Final = 1.0  # seconds until an unanswered heartbeat is repeated, doubling up to the usual interval
OUTAGE_DELAY_MAX: Final = 30.0  # seconds; longest such wait: a registry that comes back has its nodes soon after

_log = logging.getLogger("pilot_trio.daemon")


@attrs.frozen
class EnrolmentStatistics:
    """Counters since the start."""

    heartbeats: int
    failed_heartbeats: int
    registrations: int


class Enrolment:
    """Keeps one node registered.

    Args:
      config: what to announce.
      state: who we are; the id, the endpoint and the names are written here.
      registry: where to register.
      networks: started once there is an id.
      beacon: told about every registration.
      bound: where the UDP socket is bound at the moment.
      own_hosts: the addresses under which neighbours may know this machine; see `Network.own_hosts`.
      settle_key: finds out which key counts if a rotation was interrupted; raises `RegistryError`.
      events: where registrations and heartbeats are published.
      trusted: the peers to report again after the registry lost us.
      rng: source of jitter.
    """

    def __init__(
        self,
        *,
        config: Config,
        state: NodeState,
        registry: Registry,
        networks: Networks,
        beacon: BeaconClient,
        bound: Callable[[], Endpoint],
        own_hosts: Callable[[Endpoint], Sequence[str]],
        settle_key: Callable[[], Awaitable[None]],
        events: EventBus,
        trusted: Callable[[], Iterable[NodeId]],
        rng: random.Random | None = None,
    ) -> None:
        self.announced: Final = trio.Event()
        """Set when the first registration is complete: id, visibility and hostname are known to the registry."""
        self._config = config
        self._state = state
        self._registry = registry
        self._networks = networks
        self._beacon = beacon
        self._bound = bound
        self._was_bound = bound()  # when the endpoint to register was found out
        self._own_hosts = own_hosts
        self._settle_key = settle_key
        self._events = events
        self._trusted = trusted
        self._rng = rng or random.Random()
        self._listen_addr = ""  # as sent to the registry
        self._guessed = True  # that address is where the socket is bound: the beacon has not said where it is seen
        self._reregister_backoff = Backoff(REREGISTER_DELAY_FIRST, REREGISTER_DELAY_MAX, self._rng)
        self._heartbeats = self._failed_heartbeats = self._registrations = 0

    async def run(self) -> None:
        """Register and stay registered until cancelled.

        Raises:
          StartupError: with `fail_fast`, if the registry cannot be reached or refuses.
        """
        await self._enrol()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._networks.run)
            nursery.start_soon(self._announce_hostname_forever)
            nursery.start_soon(self._beat_forever)

    async def renew(self) -> bool:
        """Register again now, because where this node is may have changed; say whether that worked."""
        if self._config.endpoint is None and self._config.advertise_endpoint is None:
            discovered = await self._beacon.discover()
            # The old one is a better guess than the bound one, as long as the socket is the same.
            if discovered is not None or self._bound() != self._was_bound:
                self._take_endpoint(discovered or on_this_machine(self._bound()), guessed=discovered is None)
        try:
            await self._register()
            # After a sleep or an outage the record may be a new one, and heartbeats would never tell.
            await self._announce(self._state.hostname)
            await self._report_trust()
        except RegistryError as exc:
            _log.warning("re-registration failed", extra={"kv": {"error": str(exc)}})
            return False
        return True

    def statistics(self) -> EnrolmentStatistics:
        """Return the counters."""
        return EnrolmentStatistics(self._heartbeats, self._failed_heartbeats, self._registrations)

    # The start

    async def _find_endpoint(self) -> None:
        """Find out what to register: as configured, else as the beacon sees us, else as bound (`spec/registry.md` §4.1)."""
        configured, advertised = self._config.endpoint, self._config.advertise_endpoint
        discovered = None if configured is not None else await self._beacon.discover()
        known = configured or advertised or discovered
        self._take_endpoint(known or on_this_machine(self._bound()), guessed=known is None)

    def _take_endpoint(self, endpoint: Endpoint, *, guessed: bool) -> None:
        self._listen_addr = self._state.endpoint = str(endpoint)
        self._guessed, self._was_bound = guessed, self._bound()

    async def _enrol(self) -> None:
        """Register for the first time in this process."""
        fail_fast = self._config.registry.fail_fast
        backoff = Backoff(ENROL_DELAY_FIRST, FAIL_FAST_DELAY_MAX if fail_fast else ENROL_DELAY_MAX, self._rng)
        attempt = 1
        while True:
            if self._guessed and (attempt == 1 or not fail_fast):  # a machine may be up before its network is
                await self._find_endpoint()
            try:
                await self._register()
                await self._announce(self._config.hostname or self._state.hostname)
                await self._networks.join_configured(self._config.networks if self._config.admin_token else ())
                break
            except RegistryError as exc:
                if fail_fast:
                    self._give_up(exc, attempt)
                delay = backoff.next_delay()
                self._log_enrol_failure(exc, attempt, delay)
            await trio.sleep(delay)
            attempt += 1
        state = self._state
        address = str(state.address)
        kv = {"node_id": state.node_id, "addr": address, "endpoint": state.endpoint}
        _log.info("daemon registered", extra={"kv": kv})
        self._events.publish("node.registered", {"address": address, "endpoint": state.endpoint})
        self._events.publish(
            "agent.registered", {"address": address, "endpoint": state.endpoint, "node_id": state.node_id}
        )
        self.announced.set()

    def _give_up(self, exc: RegistryError, attempt: int) -> None:
        """Raise if this failure is the last one that `fail_fast` allows."""
        if not isinstance(exc, RegistryUnavailable):
            raise StartupError(f"register: {exc}") from exc
        if attempt >= FAIL_FAST_ATTEMPTS:
            raise StartupError(f"registry dial (after {attempt} attempts): {exc}") from exc

    def _log_enrol_failure(self, exc: RegistryError, attempt: int, delay: float) -> None:
        message = "registry dial failed, retrying" if isinstance(exc, RegistryUnavailable) else "registration refused"
        kv: dict[str, Any] = {"attempt": attempt, "backoff": f"{delay:.1f}s", "error": str(exc)}
        if self._config.registry.fail_fast:
            kv["max"] = FAIL_FAST_ATTEMPTS
        _log.warning(message, extra={"kv": kv})

    # Registering

    async def _register(self) -> None:
        """Send `register` and adopt the answer; raise `RegistryError`."""
        try:
            await self._settle_key()
        except RegistryUnavailable:
            raise
        except RegistryError as exc:
            _log.warning("cannot tell which key is registered", extra={"kv": {"error": str(exc)}})
        state = self._state
        key = state.identity.public_key_b64
        state.lan_endpoints = self._lan_endpoints()
        fields: dict[str, Any] = {"relay_only": True} if self._config.relay_only else {}
        if state.lan_endpoints:
            fields["lan_addrs"] = [str(endpoint) for endpoint in state.lan_endpoints]
        answer = await self._registry.call(
            "register",
            listen_addr=self._listen_addr,
            public_key=key,
            signature=state.identity.sign_text(register_text(self._listen_addr, key)),
            owner=state.email,
            version=REFERENCE_VERSION,
            **fields,
        )
        node_id = answer.get("node_id")
        if type(node_id) is not int or not 0 < node_id <= 0xFFFFFFFF:
            raise RegistryError(f"register answered without a usable node id: {node_id!r}", "register")
        if state.registered and node_id != state.node_id:
            kv = {"old_node_id": state.node_id, "new_node_id": node_id}
            _log.warning("re-registered with new node ID", extra={"kv": kv})
        state.node_id = NodeId(node_id)
        self._registrations += 1
        self._adopt_observed(answer)
        hostname = answer.get("hostname")
        if isinstance(hostname, str) and not self._config.hostname:
            state.hostname = hostname
        self._beacon.announce()

    def _lan_endpoints(self) -> tuple[Endpoint, ...]:
        """Return where neighbours reach this node; none for one that hides its endpoint."""
        beacon = self._beacon.address
        if beacon is None or self._config.relay_only:
            return ()
        return lan_endpoints(self._own_hosts(beacon), self._bound())

    def _adopt_observed(self, answer: Message) -> None:
        """Take over the address under which the registry saw us if ours is of no use to others (`spec/registry.md` §4.1)."""
        try:
            observed = Endpoint.parse(answer.get("observed_addr") or "")
            own = Endpoint.parse(self._listen_addr)
        except (ValueError, AttributeError):
            return
        if is_public(observed.host) and not is_public(own.host) and is_literal(own.host):
            self._state.endpoint = str(Endpoint(observed.host, own.port))

    async def _announce(self, hostname: str) -> None:
        """Tell the registry what it forgets with the record: visibility and hostname.

        Refusals are logged: a node without its name is better than none. Raises `RegistryUnavailable`.
        """
        state = self._state
        if state.public and await self._tolerant_call("set_visibility", public=True):
            _log.info("node visibility set", extra={"kv": {"public": True}})
        if hostname and await self._tolerant_call("set_hostname", hostname=hostname):
            state.hostname = hostname
            _log.info("hostname set", extra={"kv": {"hostname": hostname}})

    async def _tolerant_call(self, type_: str, **fields: Any) -> bool:
        """Send a request about ourselves; False if it was refused, which is logged."""
        state = self._state
        signature = state.identity.sign_text(node_text(type_, state.node_id))
        try:
            await self._registry.call(type_, node_id=state.node_id, signature=signature, **fields)
        except RegistryUnavailable:
            raise
        except RegistryError as exc:
            what = {"set_hostname": "failed to set hostname", "set_visibility": "failed to set visibility"}[type_]
            _log.warning(what, extra={"kv": {"error": str(exc)}})
            return False
        return True

    # Staying registered

    async def _announce_hostname_forever(self) -> None:
        while True:
            await trio.sleep(ANNOUNCE_INTERVAL)
            if self._state.hostname:
                try:
                    await self._tolerant_call("set_hostname", hostname=self._state.hostname)
                except RegistryUnavailable as exc:
                    _log.debug("hostname not announced", extra={"kv": {"error": str(exc)}})

    async def _beat_forever(self) -> None:
        outage = Backoff(OUTAGE_DELAY_FIRST, min(OUTAGE_DELAY_MAX, self._config.keepalive), self._rng)
        await trio.sleep(self._rng.uniform(0, HEARTBEAT_JITTER))
        delay = self._config.keepalive
        failures = 0
        while True:
            await trio.sleep(delay)
            delay = self._config.keepalive
            try:
                await self._beat()
            except RegistryError as exc:
                failures += 1
                self._failed_heartbeats += 1
                lost = not isinstance(exc, RegistryUnavailable) and _is_lost(exc)
                failures = max(failures, HEARTBEAT_FAILURES_MAX if lost else 0)
                kv = {"consecutive_failures": failures, "error": str(exc)}
                _log.warning("heartbeat failed", extra={"kv": kv})
                if isinstance(exc, RegistryUnavailable):
                    delay = outage.next_delay()
                elif failures >= HEARTBEAT_FAILURES_MAX:
                    failures = 0
                    if not await self._reregister():
                        delay = outage.next_delay()
            else:
                failures = 0
                outage.reset()
                self._reregister_backoff.reset()
                await self._correct_guess()

    async def _correct_guess(self) -> None:
        """Register anew if where the beacon sees this node has come out only after the registration."""
        seen = self._beacon.observed
        if self._guessed and seen is not None and is_public(seen.host):
            await self.renew()

    async def _beat(self) -> None:
        state = self._state
        signature = state.identity.sign_text(heartbeat_text(state.node_id))
        await self._registry.call("heartbeat", timeout=INTERACTIVE_TIMEOUT, node_id=state.node_id, signature=signature)
        self._heartbeats += 1
        self._events.publish("agent.heartbeat", {"address": str(state.address), "node_id": state.node_id})

    async def _reregister(self) -> bool:
        """Register again and tell the registry everything that it may have lost; say whether that worked."""
        await trio.sleep(self._reregister_backoff.next_delay())
        try:
            await self._register()
            await self._announce(self._state.hostname)
            await self._report_trust()
        except RegistryError as exc:
            _log.warning("re-registration failed", extra={"kv": {"error": str(exc)}})
            return False
        state = self._state
        address = str(state.address)
        _log.info("re-registered", extra={"kv": {"node_id": state.node_id, "addr": address}})
        self._events.publish("node.reregistered", {"address": address})
        self._events.publish("agent.registered", {"address": address, "node_id": state.node_id, "reregistered": True})
        return True

    async def _report_trust(self) -> None:
        """Report every trusted peer, so that a registry which lost its trust pairs is repaired by its nodes (§6.4)."""
        state = self._state
        for peer in list(self._trusted()):
            if peer == state.node_id:
                continue
            signature = state.identity.sign_text(pair_text("report_trust", state.node_id, peer))
            try:
                await self._registry.call("report_trust", node_id=state.node_id, peer_id=peer, signature=signature)
            except RegistryUnavailable:
                raise
            except RegistryError as exc:
                _log.warning("trust not reported", extra={"kv": {"peer_node_id": peer, "error": str(exc)}})


def _is_lost(exc: RegistryError) -> bool:
    """Say whether a refused heartbeat means that the registry does not know us (any more); its texts are the protocol's."""
    return UNKNOWN_NODE in exc.text or BAD_SIGNATURE in exc.text
