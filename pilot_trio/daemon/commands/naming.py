"""How the node is known to others: hostname, visibility, tags, key, webhook, registration (`spec/ipc.md` §5.4)."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Final

from pilot_trio.daemon.commands.parts import NodeParts, later, passed_through, prefixed, reply
from pilot_trio.daemon.dispatch import Client, CommandTable, Later, Route, Shared
from pilot_trio.errors import CommandError, DecodeError, RegistryError
from pilot_trio.net import files
from pilot_trio.wire.ipc import Code, decode_prefer_direct
from pilot_trio.wire.json_text import parse_strings
from pilot_trio.wire.registry import Message, node_text

TAGS_MAX: Final = 3  # tags that a client may set; protocol, `spec/ipc.md` §5.4 (the registry itself admits 10)

_log = logging.getLogger("pilot_trio.node")


def routes(node: NodeParts) -> CommandTable:
    """Return the rows of this module's commands."""
    naming = Naming(node)
    return {
        Code.RESOLVE_HOSTNAME: Route(naming.resolve_hostname, error_prefix="resolve_hostname: "),
        Code.SET_HOSTNAME: Route(naming.set_hostname),
        Code.SET_VISIBILITY: Route(naming.set_visibility),
        Code.DEREGISTER: Route(naming.deregister),
        Code.SET_TAGS: Route(naming.set_tags),
        Code.ROTATE_KEY: Route(naming.rotate_key),
        Code.SET_WEBHOOK: Route(naming.set_webhook),
        Code.PREFER_DIRECT: Route(naming.prefer_direct),
    }


class Naming:
    """The handlers; each is one command of `spec/ipc.md` §5.4."""

    def __init__(self, node: NodeParts) -> None:
        self._node = node

    def resolve_hostname(self, _client: Client, payload: bytes) -> bytes | Shared:
        """Ask the registry, or the cache, which node has a name."""
        if not payload:
            raise DecodeError("missing hostname")
        name = payload.decode("utf-8", "replace")
        if (known := self._node.resolver.known_hostname(name)) is not None:
            return passed_through(Code.RESOLVE_HOSTNAME_OK, known)
        return Shared((Code.RESOLVE_HOSTNAME, name), partial(self._resolve_hostname, name))

    async def _resolve_hostname(self, name: str, by: float) -> bytes:
        return passed_through(Code.RESOLVE_HOSTNAME_OK, await self._node.resolver.resolve_hostname(name, by=by))

    def set_hostname(self, _client: Client, payload: bytes) -> Later:
        """Claim a name at the registry, which alone judges whether it is valid; an empty one clears it."""
        name = payload.decode("utf-8", "replace")

        async def run() -> bytes:
            answer = await self._call_signed("set_hostname", hostname=name)
            state, resolver = self._node.state, self._node.resolver
            for changed in (state.hostname, name):
                resolver.forget_hostname(changed)
            state.hostname = name
            _log.info("hostname set", extra={"kv": {"hostname": name}})
            return passed_through(Code.SET_HOSTNAME_OK, answer)

        return later("set_hostname: ", run)

    def set_visibility(self, _client: Client, payload: bytes) -> Later:
        """Become public (1) or private (any other value)."""
        if not payload:
            raise DecodeError("set_visibility: missing value")
        public = payload[0] == 1

        async def run() -> bytes:
            answer = await self._call_signed("set_visibility", public=public)
            self._node.state.public = public
            _log.info("node visibility set", extra={"kv": {"public": public}})
            return passed_through(Code.SET_VISIBILITY_OK, answer)

        return later("set_visibility: ", run)

    def deregister(self, _client: Client, _payload: bytes) -> Later:
        """Leave the registry. The next failed heartbeats make the node register again."""

        async def run() -> bytes:
            answer = await self._call_signed("deregister")
            self._node.events.publish("node.deregistered")
            return passed_through(Code.DEREGISTER_OK, answer)

        return later("deregister: ", run)

    def set_tags(self, _client: Client, payload: bytes) -> Later:
        """Replace the node's tags."""
        with prefixed("set_tags: invalid JSON: "):
            tags = parse_strings(payload)
        if len(tags) > TAGS_MAX:
            raise DecodeError(f"set_tags: maximum {TAGS_MAX} tags allowed")

        async def run() -> bytes:
            return passed_through(Code.SET_TAGS_OK, await self._call_signed("set_tags", tags=tags))

        return later("set_tags: ", run)

    def rotate_key(self, _client: Client, _payload: bytes) -> Later:
        """Replace the node's key pair; the node id stays."""

        async def run() -> bytes:
            try:
                answer = await self._node.rotation.rotate()
            except RegistryError as exc:
                # The registry's text comes twice prefixed in this one command, `spec/ipc.md` §5.4.
                raise CommandError(f"registry: {exc}") from exc
            _log.info("key rotated", extra={"kv": {"public_key": self._node.state.identity.public_key_b64}})
            return passed_through(Code.ROTATE_KEY_OK, answer)

        return later("rotate_key: ", run)

    def set_webhook(self, _client: Client, payload: bytes) -> Later:
        """Post events to a URL from now on, also after a restart; an empty one stops that."""
        url = payload.decode("utf-8", "surrogateescape")
        self._node.webhook.set_url(url)  # refuses what must not be posted to

        async def run() -> bytes:
            try:
                await _save_webhook_url(self._node.config.home / "webhook_url", url)
            except OSError as exc:
                raise CommandError(f"webhook is set but not stored: {exc}") from exc
            return reply(Code.SET_WEBHOOK_OK, {"webhook": url})

        return later("", run)

    def prefer_direct(self, _client: Client, payload: bytes) -> Later:
        """Forget how a node is reached and find it anew. A node that cannot be found is not an error."""
        target = decode_prefer_direct(payload)

        async def run() -> bytes:
            outcome = {
                "had_tunnel": False,
                "pila_pushed": False,
                "resolve_error": "",
                "was_relay_active": False,
                "was_relay_pinned": False,
            }
            # One's own node needs no route; the registry would refuse to name a private one.
            if target != self._node.state.node_id:
                outcome |= await self._node.tunnel.reset_path(target)
            return reply(Code.PREFER_DIRECT_OK, {"node_id": target, **outcome})

        return later("prefer_direct: ", run)

    async def _call_signed(self, type_: str, **fields: Any) -> Message:
        state = self._node.state
        signature = state.identity.sign_text(node_text(type_, state.node_id))
        return await self._node.registry.call(type_, node_id=state.node_id, signature=signature, **fields)


async def _save_webhook_url(path: Path, url: str) -> None:
    if url:
        await files.save(path, url.encode("utf-8", "surrogateescape"))
    else:
        await files.remove(path)
