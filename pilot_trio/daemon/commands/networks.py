"""The network command 0x1F: membership and invitations, passed through to the registry (`spec/ipc.md` §5.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from pilot_trio.address import NetworkId
from pilot_trio.daemon.commands.parts import NodeParts, later, passed_through
from pilot_trio.daemon.dispatch import Client, CommandTable, Later, Route
from pilot_trio.errors import DecodeError
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.registry import Message, invite_text, node_text, pair_text

_NETWORK: Final = struct.Struct("!H")
_INVITE: Final = struct.Struct("!HI")  # network, node
_RESPOND: Final = struct.Struct("!HB")  # network, 1 = accept


def routes(node: NodeParts) -> CommandTable:
    """Return the row of the network command."""
    return {Code.NETWORK: Route(Membership(node).handle)}


class Membership:
    """The sub-commands of 0x1F; each takes the payload after its number."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node
        self._table: dict[int, Callable[[bytes], Later]] = {
            0x01: self._list,
            0x02: self._join,
            0x03: self._leave,
            0x04: self._members,
            0x05: self._invite,
            0x06: self._poll_invites,
            0x07: self._respond_invite,
        }

    def handle(self, _client: Client, payload: bytes) -> Later:
        """Pass the payload to its sub-command."""
        if not payload:
            raise DecodeError("network: missing sub-command")
        handler = self._table.get(payload[0])
        if handler is None:
            raise DecodeError(f"network: unknown sub-command 0x{payload[0]:02X}")
        return handler(payload[1:])

    def _list(self, _body: bytes) -> Later:
        return self._passed("network list: ", "list_networks", signed=None)

    def _join(self, body: bytes) -> Later:
        (network,) = _unpack(_NETWORK, body, "network join: missing network_id")
        token = body[_NETWORK.size :].decode("utf-8", "replace")

        async def run() -> bytes:
            node = self._node
            answer = await self._call(
                "join_network",
                signed=pair_text("join_network", node.state.node_id, network),
                node_id=node.state.node_id,
                network_id=network,
                token=token,
                inviter_id=0,
            )
            node.managed.apply_joined(network, answer)
            await node.networks.joined(NetworkId(network), answer)
            return passed_through(Code.NETWORK_OK, answer)

        return later("network join: ", run)

    def _leave(self, body: bytes) -> Later:
        (network,) = _unpack(_NETWORK, body, "network leave: missing network_id")

        async def run() -> bytes:
            node = self._node
            answer = await self._call(
                "leave_network",
                signed=pair_text("leave_network", node.state.node_id, network),
                node_id=node.state.node_id,
                network_id=network,
            )
            node.managed.drop(network)
            await node.networks.left(NetworkId(network))
            return passed_through(Code.NETWORK_OK, answer)

        return later("network leave: ", run)

    def _members(self, body: bytes) -> Later:
        (network,) = _unpack(_NETWORK, body, "network members: missing network_id")
        return self._passed("network members: ", "list_nodes", signed=None, network_id=network)

    def _invite(self, body: bytes) -> Later:
        network, target = _unpack(_INVITE, body, "network invite: missing network_id or target_node_id")
        own = self._node.state.node_id
        return self._passed(
            "network invite: ",
            "invite_to_network",
            signed=invite_text(own, network, target),
            inviter_id=own,
            network_id=network,
            target_node_id=target,
        )

    def _poll_invites(self, _body: bytes) -> Later:
        own = self._node.state.node_id
        return self._passed(
            "network poll-invites: ", "poll_invites", signed=node_text("poll_invites", own), node_id=own
        )

    def _respond_invite(self, body: bytes) -> Later:
        network, flag = _unpack(_RESPOND, body, "network respond-invite: missing network_id or accept flag")
        own = self._node.state.node_id
        return self._passed(
            "network respond-invite: ",
            "respond_invite",
            signed=pair_text("respond_invite", own, network),
            node_id=own,
            network_id=network,
            accept=flag == 1,
        )

    def _passed(self, prefix: str, type_: str, *, signed: str | None, **fields: Any) -> Later:
        async def run() -> bytes:
            return passed_through(Code.NETWORK_OK, await self._call(type_, signed=signed, **fields))

        return later(prefix, run)

    async def _call(self, type_: str, *, signed: str | None, **fields: Any) -> Message:
        """Ask the registry; the text is signed unless None, the admin token is added if there is one."""
        if signed is not None:
            fields["signature"] = self._node.state.identity.sign_text(signed)
        if token := self._node.config.admin_token:
            fields["admin_token"] = token
        return await self._node.registry.call(type_, **fields)


def _unpack(layout: struct.Struct, body: bytes, missing: str) -> tuple[Any, ...]:
    if len(body) < layout.size:
        raise DecodeError(missing)
    return layout.unpack_from(body)
