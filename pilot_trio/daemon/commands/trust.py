"""The handshake command 0x0F: ask for trust, give it, take it back, wait for it (`spec/ipc.md` §5.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from pilot_trio.daemon.commands.parts import NodeParts, later, reply, rows_that_fit
from pilot_trio.daemon.dispatch import Client, CommandTable, Later, Route
from pilot_trio.daemon.trust import TrustService
from pilot_trio.errors import DecodeError
from pilot_trio.wire.ipc import JSON_MAX, Code, encode_frame

_NODE: Final = struct.Struct("!I")
_NODE_AND_TIMEOUT: Final = struct.Struct("!II")  # node id, milliseconds


def routes(node: NodeParts) -> CommandTable:
    """Return the row of the handshake command."""
    return {Code.HANDSHAKE: Route(Handshakes(node.trust).handle)}


class Handshakes:
    """The sub-commands of 0x0F; each takes the payload after its number."""

    def __init__(self, trust: TrustService) -> None:
        self._trust = trust
        self._table: dict[int, Callable[[bytes], bytes | Later]] = {
            0x01: self._send,
            0x02: self._approve,
            0x03: self._reject,
            0x04: self._pending,
            0x05: self._trusted,
            0x06: self._revoke,
            0x07: self._wait,
        }

    def handle(self, _client: Client, payload: bytes) -> bytes | Later:
        """Pass the payload to its sub-command."""
        if not payload:
            raise DecodeError("handshake: missing sub-command")
        handler = self._table.get(payload[0])
        if handler is None:
            raise DecodeError(f"handshake: unknown sub-command 0x{payload[0]:02X}")
        return handler(payload[1:])

    def _send(self, body: bytes) -> Later:
        target, rest = _split_node(body, "handshake request")
        justification = rest.decode("utf-8", "replace")

        async def run() -> bytes:
            started = await self._trust.request(target, justification)
            return _answer(target, "sent" if started else "in_flight")

        return later("handshake request: ", run)

    def _approve(self, body: bytes) -> Later:
        target, _ = _split_node(body, "handshake approve")

        async def run() -> bytes:
            await self._trust.poll()
            self._trust.approve(target)
            return _answer(target, "approved")

        return later("handshake approve: ", run)

    def _reject(self, body: bytes) -> Later:
        target, rest = _split_node(body, "handshake reject")
        reason = rest.decode("utf-8", "replace")

        async def run() -> bytes:
            await self._trust.poll()
            self._trust.reject(target, reason)
            return _answer(target, "rejected")

        return later("handshake reject: ", run)

    def _pending(self, _body: bytes) -> bytes | Later:
        return self._listing("pending", self._trust.pending_rows, "received_at")

    def _trusted(self, _body: bytes) -> bytes | Later:
        return self._listing("trusted", self._trust.trusted_rows, "approved_at")

    def _listing(self, name: str, rows: Callable[[], list[dict[str, Any]]], time_key: str) -> bytes | Later:
        # Programs ask for these lists in a loop until trust is there; only every two seconds does that cost a request.
        if not self._trust.poll_due:
            return _list_that_fits(name, rows(), time_key)

        async def run() -> bytes:
            await self._trust.poll()
            return _list_that_fits(name, rows(), time_key)

        return later(f"handshake {name}: ", run)

    def _revoke(self, body: bytes) -> Later:
        target, _ = _split_node(body, "handshake revoke")

        async def run() -> bytes:
            self._trust.revoke(target)
            return _answer(target, "revoked")

        return later("handshake revoke: ", run)

    def _wait(self, body: bytes) -> bytes | Later:
        if len(body) < _NODE_AND_TIMEOUT.size:
            raise DecodeError("handshake wait: payload must be [nodeID(4)][timeoutMs(4)]")
        target, timeout_ms = _NODE_AND_TIMEOUT.unpack_from(body)
        trust = self._trust
        # Clients poll before every send, so what can be said at once must not cost a task.
        if trust.admits(target) or (timeout_ms == 0 and not trust.may_be_answered(target)):
            return _wait_answer(target, trust.admits(target))

        async def run() -> bytes:
            if timeout_ms == 0:
                await trust.poll()
                return _wait_answer(target, trust.admits(target))
            return _wait_answer(target, await trust.wait(target, timeout_ms / 1000))

        return later("handshake wait: ", run)


def _split_node(body: bytes, command: str) -> tuple[int, bytes]:
    if len(body) < _NODE.size:
        raise DecodeError(f"{command}: missing node_id")
    return _NODE.unpack_from(body)[0], body[_NODE.size :]


def _answer(target: int, status: str) -> bytes:
    return reply(Code.HANDSHAKE_OK, {"node_id": target, "status": status})


def _wait_answer(target: int, trusted: bool) -> bytes:
    return reply(Code.HANDSHAKE_OK, {"node_id": target, "trusted": trusted})


def _list_that_fits(name: str, rows: list[dict[str, Any]], time_key: str) -> bytes:
    """Return the list, or its newest rows and a note if it exceeds the size of a body (`spec/ipc.md` §5.9)."""
    room = JSON_MAX - len(f'{{"{name}":[],"{name}_truncated":true}}')
    encoded, _ = rows_that_fit(rows, room)
    note = b""
    if len(encoded) < len(rows):
        encoded, _ = rows_that_fit(sorted(rows, key=lambda row: row[time_key], reverse=True), room)
        note = f',"{name}_truncated":true'.encode()
    return encode_frame(Code.HANDSHAKE_OK, b'{"%b":[%b]%b}' % (name.encode(), b",".join(encoded), note))
