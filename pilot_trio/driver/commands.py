"""The commands of a `Driver` that come in groups: `node.trust`, `node.networks`, `node.managed`, `node.signing`.

Every method is one request: it returns the daemon's JSON object as it is (its fields are in `spec/ipc.md` §5.5 to §5.8),
raises `DaemonError` with the daemon's text if that says no, `IPCClosedError` if the daemon is gone, and can be cancelled at
any time. A request that was sent before the cancellation is carried out all the same.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

import attrs

from pilot_trio.driver.replies import decode_json
from pilot_trio.errors import RemoteProtocolError
from pilot_trio.wire.ipc import Code
from pilot_trio.wire.ipc_requests import (
    Handshake,
    Managed,
    Network,
    encode_handshake,
    encode_handshake_wait,
    encode_managed,
    encode_member_tags,
    encode_network,
    encode_network_invite,
    encode_policy_get,
    encode_policy_set,
)

TRUST_WAIT_ROUND: Final = 30.0  # seconds that the daemon waits at most in one request; protocol, `spec/ipc.md` §5.5

Send = Callable[[Code, bytes], Awaitable[bytes]]
Json = dict[str, Any]


@attrs.frozen
class _Group:
    _send: Send = attrs.field(repr=False)

    async def _json(self, command: Code, payload: bytes) -> Json:
        return decode_json(await self._send(command, payload))


@attrs.frozen
class Trust(_Group):
    """Handshakes: who may reach this node, and whom it may reach."""

    async def request(self, node: int, justification: str = "") -> Json:
        """Ask a node for trust; returns when the request was delivered or relayed, which can take 20 s."""
        return await self._handshake(encode_handshake(Handshake.SEND, node, justification))

    async def approve(self, node: int) -> Json:
        """Approve what a node has asked for."""
        return await self._handshake(encode_handshake(Handshake.APPROVE, node))

    async def reject(self, node: int, reason: str = "") -> Json:
        """Refuse what a node has asked for."""
        return await self._handshake(encode_handshake(Handshake.REJECT, node, reason))

    async def revoke(self, node: int) -> Json:
        """Withdraw trust."""
        return await self._handshake(encode_handshake(Handshake.REVOKE, node))

    async def pending(self) -> list[Json]:
        """Return the requests of others that wait for an answer."""
        return _rows(await self._handshake(encode_handshake(Handshake.PENDING)), "pending")

    async def trusted(self) -> list[Json]:
        """Return the trusted nodes, of very many only those trusted last."""
        return _rows(await self._handshake(encode_handshake(Handshake.TRUSTED)), "trusted")

    async def is_trusted(self, node: int) -> bool:
        """Say whether a node is trusted now. One's own node is."""
        return await self._wait(node, 0)

    async def wait(self, node: int) -> None:
        """Wait until a node is trusted, however long that takes; put a deadline around it."""
        while not await self._wait(node, round(TRUST_WAIT_ROUND * 1000)):
            pass

    async def _wait(self, node: int, timeout_ms: int) -> bool:
        return (await self._handshake(encode_handshake_wait(node, timeout_ms))).get("trusted") is True

    async def _handshake(self, payload: bytes) -> Json:
        return await self._json(Code.HANDSHAKE, payload)


@attrs.frozen
class Networks(_Group):
    """Networks other than the backbone. The answers are the registry's."""

    async def list(self) -> Json:
        """Return all networks."""
        return await self._network(encode_network(Network.LIST))

    async def join(self, network: int, token: str = "") -> Json:
        """Become a member."""
        return await self._network(encode_network(Network.JOIN, network, token.encode()))

    async def leave(self, network: int) -> Json:
        """Stop being a member."""
        return await self._network(encode_network(Network.LEAVE, network))

    async def members(self, network: int) -> Json:
        """Return the members of a network."""
        return await self._network(encode_network(Network.MEMBERS, network))

    async def invite(self, network: int, node: int) -> Json:
        """Invite a node."""
        return await self._network(encode_network_invite(network, node))

    async def invitations(self) -> Json:
        """Return the invitations that this node has."""
        return await self._network(encode_network(Network.POLL_INVITES))

    async def accept(self, network: int) -> Json:
        """Accept an invitation."""
        return await self._network(encode_network(Network.RESPOND_INVITE, network, b"\x01"))

    async def decline(self, network: int) -> Json:
        """Decline an invitation."""
        return await self._network(encode_network(Network.RESPOND_INVITE, network, b"\x00"))

    async def _network(self, payload: bytes) -> Json:
        return await self._json(Code.NETWORK, payload)


@attrs.frozen
class ManagedNetworks(_Group):
    """Networks whose membership or ports follow a policy. Network 0 means any one where it makes sense."""

    async def status(self, network: int = 0) -> Json:
        """Return how a network's policy runs."""
        return await self._managed(encode_managed(Managed.STATUS, network))

    async def cycle(self, network: int = 0) -> Json:
        """Run one cycle of a network's policy now."""
        return await self._managed(encode_managed(Managed.CYCLE, network))

    async def reconcile(self, network: int = 0) -> Json:
        """Compare the peers with the network's members now."""
        return await self._managed(encode_managed(Managed.RECONCILE, network))

    async def policy(self, network: int) -> Json:
        """Return a network's policy."""
        return await self._managed(encode_policy_get(network))

    async def set_policy(self, network: int, policy: Json, token: str = "") -> Json:
        """Put a policy in force on this node; `token` is the daemon's admin token, if it has one."""
        return await self._managed(encode_policy_set(network, policy, token))

    async def member_tags(self, network: int, node: int = 0) -> Json:
        """Return the tags of a member, or of all (node 0)."""
        return await self._managed(encode_member_tags(network, node))

    async def set_member_tags(self, network: int, node: int, tags: Sequence[str]) -> Json:
        """Replace the tags of a member."""
        return await self._managed(encode_member_tags(network, node, tags))

    async def _managed(self, payload: bytes) -> Json:
        return await self._json(Code.MANAGED, payload)


@attrs.frozen
class Signing(_Group):
    """Statements signed with the node's key, and checks of others' statements (`spec/ipc.md` §5.8)."""

    async def sign(self, audience: str, body: bytes, *, nonce: str | None = None) -> Json:
        """Sign a statement that this node sends `body` to `audience` now; `nonce` is 16 lower-case hex digits."""
        request = {"audience": audience, "body_b64": base64.b64encode(body).decode()}
        return await self._object(Code.SIGN_ENVELOPE, request if nonce is None else request | {"nonce": nonce})

    async def sign_hash(self, audience: str, body_hash: str, *, nonce: str | None = None) -> Json:
        """Sign as `sign` does, given the SHA-256 of the body as 64 lower-case hex digits."""
        request = {"audience": audience, "body_hash": body_hash}
        return await self._object(Code.SIGN_ENVELOPE, request if nonce is None else request | {"nonce": nonce})

    async def verify(self, envelope: str, signature: str, *, max_skew: float = 0, check_standing: bool = False) -> Json:
        """Check a signed statement; look at `valid` in the answer. `max_skew` is in seconds, 0 means 300."""
        request = {
            "envelope": envelope,
            "signature": signature,
            "max_skew_secs": max_skew,
            "check_standing": check_standing,
        }
        return await self._object(Code.VERIFY_ENVELOPE, request)

    async def submit_badge(self, badge: str, badge_signature: str) -> Json:
        """Hand a badge to the registry."""
        return await self._object(Code.SUBMIT_BADGE, {"badge": badge, "badge_sig": badge_signature})

    async def enroll_recovery(self, enrollment: str, enrollment_signature: str) -> Json:
        """Hand a recovery enrolment to the registry."""
        request = {"enrollment": enrollment, "enrollment_sig": enrollment_signature}
        return await self._object(Code.ENROLL_RECOVERY, request)

    async def _object(self, command: Code, request: Json) -> Json:
        return await self._json(command, json.dumps(request).encode())


def _rows(reply: Json, key: Literal["pending", "trusted"]) -> list[Json]:
    rows = reply.get(key) or []
    if not isinstance(rows, list):
        raise RemoteProtocolError(f"the daemon's answer has {key!r} = {rows!r}")
    return rows
