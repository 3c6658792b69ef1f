"""`TunnelMachine`: every peer behind one UDP socket, without the socket (`spec/tunnel.md`).

The shell hands over what arrived (`receive_datagrams`), what is to be sent (`send`), answers to questions (`on_key`,
`on_route`) and the passing of time (`handle_timeout`). After each of these it sends `datagrams_to_send`, in that order,
acts on `next_event` until there is none, and sets its timer to `next_deadline`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import attrs

from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.tunnel.core import Core, Traffic
from pilot_trio.proto.tunnel.events import Addr, Drop, Event, RouteNeeded
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.inbound import Inbound
from pilot_trio.proto.tunnel.installation import Installation
from pilot_trio.proto.tunnel.key_frames import KeyFrames
from pilot_trio.proto.tunnel.outbound import Outbound
from pilot_trio.proto.tunnel.paths import Paths
from pilot_trio.proto.tunnel.route import RELAY_ONLY
from pilot_trio.proto.tunnel.sealed import Received, SealedPackets
from pilot_trio.proto.tunnel.settings import IDLE_AFTER, TunnelSettings
from pilot_trio.proto.tunnel.succession import Succession
from pilot_trio.proto.tunnel.upkeep import Upkeep
from pilot_trio.proto.tunnel.upkeep_packets import is_upkeep
from pilot_trio.wire.packet import STREAM, Packet

__all__ = ["DIAL_FALLBACK", "Received", "RouteAnswer", "TunnelMachine"]

DIAL_FALLBACK = "dial got no direct answer"
"""Why a peer is on the relay after `use_relay`."""


@attrs.frozen
class RouteAnswer:
    """How the registry says that a node is reached."""

    address: Addr
    relay_only: bool = False
    same_lan: bool = False  # an address inside our own network: no punch needed


class TunnelMachine:
    """All tunnels of one node. See the module for how to drive it."""

    def __init__(
        self,
        *,
        identity: Identity,
        keypair: KeyPair,
        random_bytes: Callable[[int], bytes],
        settings: TunnelSettings | None = None,
    ) -> None:
        self._core = Core(
            identity=identity, keypair=keypair, settings=settings or TunnelSettings(), random_bytes=random_bytes
        )
        succession = Succession(self._core)
        self._exchanges = KeyExchanges(self._core)
        self._key_frames = KeyFrames(self._core, self._exchanges, Installation(self._core, self._exchanges, succession))
        self._paths = Paths(self._core)
        self._upkeep = Upkeep(self._core, self._exchanges, self._paths, succession)
        self._sealed = SealedPackets(self._core, self._exchanges, succession)
        self._inbound = Inbound(self._core, self._exchanges, self._key_frames, self._sealed)
        self._outbound = Outbound(self._core, self._exchanges)
        self.events: deque[Event] = self._core.events
        """What the shell has to act upon, oldest first; it takes out what it has seen."""
        self.out: list[tuple[bytes, Addr]] = self._core.out
        """What is to be sent, in the order in which nonces were taken; the shell takes out what it has sent."""
        self.touched: dict[int, None] = self._core.touched
        """Not empty while `next_deadline` may be earlier than it was."""
        self.next_deadline: Callable[[], float] = self._upkeep.next_deadline
        """Returns when `handle_timeout` is next needed; `math.inf` if never."""

    # --- what the shell tells ----------------------------------------------------------------------------------------

    def on_registered(self, node: int, identity: Identity) -> None:
        """Use this node id and identity from now on. Another id ends every tunnel: it is part of all that was sealed."""
        core = self._core
        if core.node_id not in (0, node):
            for known in list(core.peers):
                self.forget(known)
        core.node_id, core.identity = node, identity

    def set_beacon(self, beacon_address: Addr | None) -> None:
        """Relay and punch through this beacon."""
        self._core.beacon = beacon_address

    def set_in_use(self, node: int, in_use: bool, now: float) -> None:
        """Note whether connections to the node are open: one in use is kept warm."""
        peer = self._core.peers.get(node)
        if peer is not None:
            peer.in_use, peer.used_at = in_use, now
            self._core.touch(peer)

    def ensure(self, node: int, now: float) -> None:
        """Make contact with a node: resolve it unless its endpoint is known, exchange keys unless there is a session."""
        peer = self._core.peers.get(node)
        if peer is not None:
            peer.used_at = now
        if peer is None or (peer.route.address is None and not peer.route.relay):
            self._core.events.append(RouteNeeded(node))
        elif peer.session is None and peer.exchange is None and now >= peer.cooldown_until:
            self._exchanges.start(peer, now, copy=True)

    def on_route(self, node: int, answer: RouteAnswer | None, now: float) -> None:
        """Take the answer to `RouteNeeded`; None if the node could not be resolved."""
        if answer is None:
            return
        core = self._core
        peer = core.peers.get(node)
        if peer is None:
            peer = core.peer(node, now)
            peer.used_at = now  # no later answer is: a path reset asks, too, and a dead peer would be sought for ever
        peer.route.hidden = answer.relay_only
        if peer.session is not None and not answer.relay_only:
            self._paths.try_endpoint(peer, answer.address, now)
            return
        if answer.relay_only or core.settings.relay_only:
            core.turn_to_relay(peer, RELAY_ONLY, pin=True)
        elif not answer.same_lan:
            self._paths.punch(peer)
        if peer.route.address is None and not answer.relay_only:
            peer.route.address = answer.address
        if peer.session is None and peer.exchange is None and now >= peer.cooldown_until:
            self._exchanges.start(peer, now, copy=True)

    def on_key(self, node: int, key: bytes | None, now: float) -> list[Received]:
        """Take the answer to `KeyNeeded`, None if it could not be had; return packets that waited for it."""
        received: list[Received] = []
        self._key_frames.on_key(node, key, now)
        self._sealed.retry_early(node, now, received)
        return received

    def use_relay(self, node: int) -> bool:
        """Turn a peer to the relay for a dial that got no answer directly; True if it was not on it. Direct packets end it."""
        peer = self._core.peers.get(node)
        if peer is None or self._core.beacon is None or peer.route.relay:
            return False
        return self._core.turn_to_relay(peer, DIAL_FALLBACK, pin=False)

    def undo_relay(self, node: int) -> None:
        """Take `use_relay` back: the dial failed by relay too. What others have pinned stays."""
        peer = self._core.peers.get(node)
        if peer is not None and peer.route.relay and not peer.route.pinned:
            peer.route.relay = False
            peer.route.why = ""
            self._core.leave_relay(peer)

    def reset_path(self, node: int, now: float) -> dict[str, Any]:
        """Forget tunnel and route of a node and start over; say what there was (`prefer-direct`)."""
        peer = self._core.peers.get(node)
        report = {
            "had_tunnel": peer is not None and peer.session is not None,
            "was_relay_active": peer is not None and peer.route.relay,
            "was_relay_pinned": peer is not None and peer.route.pinned,
        }
        if peer is not None:
            if peer.route.relay:
                peer.route.relay = False
                self._core.leave_relay(peer)
            self._paths.reset(peer, now)
        else:
            self._core.events.append(RouteNeeded(node, fresh=True))
        return report

    def doubt(self, node: int, now: float) -> None:
        """Look for a node on every path, and where the registry says that it is: it does not answer as fast as it should."""
        peer = self._core.peers.get(node)
        if peer is not None and not peer.doubts:
            self._paths.doubt(peer, now, resolve=True)

    def moved(self, now: float) -> int:
        """Show every peer in use where this node is now, its own address or mapping has changed; return how many they are.

        A node that hides its endpoint has nothing to show: the beacon, by which everybody reaches it, is told by others.
        """
        if self._core.settings.relay_only:
            return 0
        peers = [peer for peer in self._core.peers.values() if peer.session and not peer.is_idle(now, IDLE_AFTER)]
        for peer in peers:
            self._paths.doubt(peer, now, resolve=False)
        return len(peers)

    def forget(self, node: int) -> None:
        """Drop all state of a node: trust in it was withdrawn."""
        self._core.forget(node)

    def unreachable(self, to: Addr) -> None:
        """Note that the network said "no way there" for an endpoint."""
        for peer in self._core.peers.values():
            if peer.route.address == to and peer.route.unreachable() and self._core.beacon is not None:
                self._core.turn_to_relay(peer, "direct path unreachable", pin=True)

    # --- packets out, datagrams in -----------------------------------------------------------------------------------

    def send(self, node: int, packet: Packet, now: float) -> None:
        """Seal and send a packet, or keep it until there is a key (§8).

        Raises:
          TunnelError: it was not taken; the text is for clients.
        """
        upkeep = is_upkeep(packet)
        salvage = packet.protocol != STREAM and not upkeep
        self._outbound.send(node, (packet.encode(),), now, salvage=salvage, upkeep=upkeep)

    def send_packets(self, node: int, packets: Sequence[bytes], now: float, *, salvage: bool = False) -> None:
        """Seal and send encoded packets, in this order, or keep them until there is a key (§8).

        Args:
          node: where they go.
          packets: on the wire's layout, their checksums included.
          now: the machine's clock.
          salvage: send them again if the peer turns out to have lost the key (§7.8). Not for streams: those repeat themselves.

        Raises:
          TunnelError: not all were taken, which can be so after the first of them were; the text is for clients.
        """
        self._outbound.send(node, packets, now, salvage=salvage)

    def datagrams_to_send(self) -> list[tuple[bytes, Addr]]:
        """Return what is to be sent now, in the order in which nonces were taken; everything is handed out once."""
        out = self.out.copy()
        self.out.clear()
        return out

    def receive_datagrams(self, batch: Sequence[tuple[bytes, Addr]], now: float) -> list[Received]:
        """Work in datagrams; return the packets that were authenticated, in order. Never raises, whatever the bytes."""
        received: list[Received] = []
        self._inbound.receive(batch, now, received)
        return received

    # --- time and outputs --------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        self._upkeep.run(now)

    def next_event(self) -> Event | None:
        """Return the next event, or None."""
        return self._core.events.popleft() if self._core.events else None

    @property
    def traffic(self) -> Traffic:
        """Counters of what passed."""
        return self._core.traffic

    @property
    def drops(self) -> dict[Drop, int]:
        """How much was dropped, by reason."""
        return dict(self._core.drops)

    def has_session(self, node: int) -> bool:
        """Say whether packets to a node leave at once."""
        peer = self._core.peers.get(node)
        return peer is not None and (peer.session is not None or not self._core.settings.encrypt)

    def is_relayed(self, node: int) -> bool:
        """Say whether a node is reached by relay."""
        peer = self._core.peers.get(node)
        return peer is not None and peer.route.relay

    def path(self, node: int) -> Addr | None:
        """Return the endpoint to which frames for a node go; None: by relay, or nowhere yet."""
        peer = self._core.peers.get(node)
        return None if peer is None else peer.path

    def knows(self, node: int) -> bool:
        """Say whether there is any state of a node."""
        return node in self._core.peers

    def has_route(self, node: int) -> bool:
        """Say whether it is known how to reach a node."""
        peer = self._core.peers.get(node)
        return peer is not None and (peer.route.address is not None or peer.route.relay)

    def is_heard_by_relay_only(self, node: int) -> bool:
        """Say whether a node's key came by relay and nothing ever came from it directly (§10.5)."""
        peer = self._core.peers.get(node)
        return peer is not None and peer.route.key_came_by_relay and peer.route.last_direct_at == -inf

    @property
    def peers(self) -> int:
        """How many peers are known."""
        return len(self._core.peers)

    @property
    def relayed_peers(self) -> int:
        """How many of them are reached by relay."""
        return self._core.relayed_peers

    @property
    def encrypted_peers(self) -> int:
        """How many of them there is a session with."""
        return sum(1 for peer in self._core.peers.values() if peer.session is not None)

    def peer_rows(self) -> list[dict[str, Any]]:
        """Return the peers as clients see them (`spec/ipc.md` §5.9), and why each takes its path."""
        return [
            {
                "node_id": peer.node,
                "endpoint": "" if peer.route.address is None else f"{peer.route.address[0]}:{peer.route.address[1]}",
                "encrypted": peer.session is not None,
                "authenticated": peer.authenticated,
                "relay": peer.route.relay,
                "relay_reason": peer.route.why,
            }
            for peer in self._core.peers.values()
        ]
