"""The managed command 0x23: policies of networks, tags of their members (`spec/ipc.md` §5.7)."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio

from pilot_trio.daemon.commands.parts import NodeParts, later, passed_through, prefixed, reply
from pilot_trio.daemon.dispatch import Client, CommandTable, Later, Route
from pilot_trio.errors import CommandError, DecodeError, RegistryError
from pilot_trio.wire.canonical_json import dumps
from pilot_trio.wire.ipc import Code, encode_frame
from pilot_trio.wire.json_text import parse_strings

FIRST_LOOK_TIMEOUT: Final = 2.0  # seconds that setting a policy waits for the member list; it is set without it, too

_NETWORK: Final = struct.Struct("!H")
_POLICY: Final = struct.Struct("!BH")  # action, network
_LENGTH: Final = struct.Struct("!H")
_TAGS: Final = struct.Struct("!BHI")  # action, network, node

_GET: Final = 0x00
_SET: Final = 0x01


def routes(node: NodeParts) -> CommandTable:
    """Return the row of the managed command."""
    return {Code.MANAGED: Route(ManagedCommands(node).handle)}


class ManagedCommands:
    """The sub-commands of 0x23; each takes the payload after its number."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node
        self._table: dict[int, Callable[[bytes], bytes | Later]] = {
            0x02: self._status,
            0x04: self._cycle,
            0x05: self._policy,
            0x06: self._member_tags,
            0x07: self._reconcile,
        }

    def handle(self, _client: Client, payload: bytes) -> bytes | Later:
        """Pass the payload to its sub-command."""
        if not payload:
            raise DecodeError("managed: missing sub-command")
        handler = self._table.get(payload[0])
        if handler is None:
            raise DecodeError(f"managed: unknown sub-command 0x{payload[0]:02X}")
        return handler(payload[1:])

    def _status(self, body: bytes) -> bytes:
        with prefixed("managed: "):
            return reply(Code.MANAGED_OK, self._node.managed.status(_optional_network(body)))

    def _cycle(self, body: bytes) -> Later:
        network = _optional_network(body)

        async def run() -> bytes:
            return reply(Code.MANAGED_OK, await self._node.managed.cycle(network))

        return later("managed: ", run)

    def _reconcile(self, body: bytes) -> Later:
        network = _optional_network(body)

        async def run() -> bytes:
            peers = await self._node.managed.reconcile(network)
            return reply(Code.MANAGED_OK, {"network_id": network, "peers": peers, "type": "managed_reconcile_ok"})

        return later("managed: ", run)

    def _policy(self, body: bytes) -> bytes | Later:
        if len(body) < _POLICY.size:
            raise DecodeError("managed policy: missing sub-sub-command and network_id")
        action, network = _POLICY.unpack_from(body)
        if action == _GET:
            return self._get_policy(network)
        if action == _SET:
            return self._set_policy(network, body[_POLICY.size :])
        raise DecodeError(f"managed policy: unknown action 0x{action:02X}")

    def _get_policy(self, network: int) -> bytes:
        text = self._node.managed.policy(network)
        if text is None:
            return reply(Code.MANAGED_OK, {"engine": "none", "network_id": network, "type": "managed_policy_ok"})
        # The document goes back as it was set, its keys in their order, so it is spliced in as text.
        head = dumps({"engine": "policy"})[:-1] + b',"expr_policy":' + text.encode()
        body = head + b"," + dumps({"network_id": network, "type": "managed_policy_ok"})[1:]
        return encode_frame(Code.MANAGED_OK, body)  # fits: a document is at most a quarter of a frame

    def _set_policy(self, network: int, rest: bytes) -> Later:
        if len(rest) < _LENGTH.size:
            raise DecodeError("managed policy set: missing token length")
        (length,) = _LENGTH.unpack_from(rest)
        token, document = rest[_LENGTH.size : _LENGTH.size + length], rest[_LENGTH.size + length :]
        if len(token) < length:
            raise DecodeError("managed policy set: truncated token")
        wanted = self._node.config.admin_token
        if wanted and not hmac.compare_digest(wanted.encode(), token):
            raise CommandError("managed policy set: invalid admin token")
        if not document:
            raise DecodeError("managed policy set: missing policy JSON")
        managed = self._node.managed
        with prefixed("managed policy set: parse policy: "):
            managed.apply(network, document)

        async def run() -> bytes:
            # The policy is set; if this first look at the members fails, the next one will tell.
            with trio.move_on_after(FIRST_LOOK_TIMEOUT), suppress(CommandError, RegistryError):
                await managed.reconcile(network)
            return reply(Code.MANAGED_OK, {"applied": True, "network_id": network, "type": "managed_policy_ok"})

        return later("managed policy set: ", run)

    def _member_tags(self, body: bytes) -> Later:
        if len(body) < _TAGS.size:
            raise DecodeError("managed member-tags: missing action, network_id, or node_id")
        action, network, target = _TAGS.unpack_from(body)
        fields: dict[str, Any] = {"network_id": network, "target_node_id": target}
        if action == _GET:
            return self._passed("member-tags get: ", "get_member_tags", fields)
        if action != _SET:
            raise DecodeError(f"managed member-tags: unknown action 0x{action:02X}")
        document = body[_TAGS.size :]
        if not document:
            raise DecodeError("managed member-tags set: missing tags JSON")
        with prefixed("member-tags set: invalid tags JSON: "):
            fields["tags"] = parse_strings(document)
        if token := self._node.config.admin_token:
            fields["admin_token"] = token
        return self._passed("member-tags set: ", "set_member_tags", fields)

    def _passed(self, prefix: str, type_: str, fields: dict[str, Any]) -> Later:
        async def run() -> bytes:
            return passed_through(Code.MANAGED_OK, await self._node.registry.call(type_, **fields))

        return later(prefix, run)


def _optional_network(body: bytes) -> int:
    """Return the network, 0 (any one) if none is given."""
    return int.from_bytes(body[: _NETWORK.size], "big") if len(body) >= _NETWORK.size else 0
