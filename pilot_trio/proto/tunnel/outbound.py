"""Packets out: sealed and sent, or kept until there is a key (`spec/tunnel.md` §8)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from pilot_trio.proto.tunnel.core import Core
from pilot_trio.proto.tunnel.errors import ExchangeFailed, NoTunnel, QueueFull, TooManyPending
from pilot_trio.proto.tunnel.events import Drop, Refused
from pilot_trio.proto.tunnel.exchange import KeyExchanges
from pilot_trio.proto.tunnel.peer import Peer
from pilot_trio.proto.tunnel.settings import DOUBT_AFTER, QUEUE_PACKETS, QUEUE_PEERS
from pilot_trio.wire import tunnel
from pilot_trio.wire.packet import ACK, HEADER_SIZE


class Outbound:
    """The sending side of the machine."""

    def __init__(self, core: Core, exchanges: KeyExchanges) -> None:
        self._core = core
        self._exchanges = exchanges

    def send(self, node: int, packets: Sequence[bytes], now: float, *, salvage: bool, upkeep: bool = False) -> None:
        """Do what `TunnelMachine.send_packets` says. `upkeep`: none of it is use of the tunnel, or wants an answer."""
        core = self._core
        peer = core.peers.get(node)
        if peer is None:
            raise NoTunnel(node)
        if not upkeep:
            peer.used_at = now
        session = peer.session
        if not core.settings.encrypt:
            core.write_all(peer, [tunnel.PILT + packet for packet in packets], now)
        elif session is None:
            self._enqueue(peer, packets, now)
        else:
            if salvage:
                session.remember(packets, now)
            if peer.doubt_at == inf and not upkeep and _wants_answer(packets):
                peer.asked_at, peer.doubt_at = now, now + DOUBT_AFTER
                core.touch(peer)
            core.write_all(peer, session.seal_run(packets), now)
            core.traffic.sealed += len(packets)

    def _enqueue(self, peer: Peer, packets: Sequence[bytes], now: float) -> None:
        if now < peer.cooldown_until:
            raise ExchangeFailed(peer.node)
        if not peer.queue and sum(1 for other in self._core.peers.values() if other.queue) >= QUEUE_PEERS:
            raise TooManyPending
        room = QUEUE_PACKETS - len(peer.queue)
        peer.queue.extend((now, packet) for packet in packets[:room])
        if peer.exchange is None:
            self._exchanges.start(peer, now, copy=True)
        self._core.touch(peer)
        if len(packets) > room:
            self._core.drops[Drop.QUEUE_FULL] += len(packets) - room
            self._core.events.append(Refused(peer.node, Drop.QUEUE_FULL))
            raise QueueFull(peer.node)


def _wants_answer(packets: Sequence[bytes]) -> bool:
    """Say whether the last of some encoded packets is more than an acknowledgment, which nobody answers."""
    return bool(packets) and (packets[-1][0] & 0x0F != ACK or len(packets[-1]) > HEADER_SIZE)
