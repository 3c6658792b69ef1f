"""Replacing the node's key so that it is never lost, whenever the process or the registry dies (`spec/services.md` §6.2).

The registry binds the node id to the key: a node that comes back with a key that is no longer registered gets another id
and loses its name and its trust. So the new key is on disk, together with the id, before the registry hears of it. If
its answer is missing, nobody here knows which key counts; then the registry is asked for the node's record, before the
next registration.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trio

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import KEY_SIZE, Identity
from pilot_trio.daemon.grace import complete
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.state import NextKey, NodeState
from pilot_trio.errors import CommandError, IdentityError, RegistryError, RegistryUnavailable
from pilot_trio.net import files
from pilot_trio.wire.registry import Message, rotate_text

SETTLE_TIMEOUT: Final = 8.0  # seconds to ask which key counts; what any own lookup gets, `spec/registry.md` §2.5

_log = logging.getLogger("pilot_trio.node")


class KeyRotation:
    """Gives one node new keys.

    Args:
      state: whose identity it is; `identity` and `next_key` are written here.
      registry: has to accept the new key.
      path: the identity file; None for a node that keeps nothing.
      random_bytes: entropy for new keys.
    """

    def __init__(
        self,
        state: NodeState,
        registry: Registry,
        path: Path | None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._state = state
        self._registry = registry
        self._random_bytes = random_bytes
        self._files = None if path is None else _KeyFiles.of(path)
        self._lock = trio.Lock()  # one rotation at a time: a second one must not judge a key that is being registered

    async def rotate(self) -> Message:
        """Replace the key and return the registry's answer. Once the registry was asked, this is completed even if cancelled.

        Raises:
          CommandError: the new key cannot be saved; the registry was not asked.
          RegistryError: the registry refused, or gave no answer; `settle` finds out what that meant.
        """
        async with self._lock:
            await self._settle()
            state = self._state
            fresh = NextKey(state.node_id, Identity.from_seed(self._random_bytes(KEY_SIZE)))
            if self._files is not None:
                try:
                    await files.save(self._files.next, dump_next_key(fresh))
                except OSError as exc:
                    raise CommandError(f"generate keypair: cannot save it: {exc}") from exc
            state.next_key = fresh
            return await complete(self._replace)

    async def settle(self) -> None:
        """Find out which of two keys the registry knows, if that is open, and keep that one.

        Raises:
          RegistryError: the registry does not know the node, or gave no answer; both keys are kept.
        """
        async with self._lock:
            await self._settle()

    async def _settle(self) -> None:
        state = self._state
        pending = state.next_key
        if pending is None:
            return
        record = await self._registry.call("lookup", timeout=SETTLE_TIMEOUT, node_id=pending.node)
        registered = record.get("public_key")
        if registered == pending.identity.public_key_b64:
            await self._adopt(pending.identity)
        elif registered == state.identity.public_key_b64:
            await self._discard()
        else:
            # Neither is: the id went to somebody else, or the registry is not ours. Guessing could only make it worse.
            _log.warning("registry knows neither of our keys", extra={"kv": {"node_id": pending.node}})

    async def _replace(self) -> Message:
        state = self._state
        assert state.next_key is not None
        fresh = state.next_key.identity
        try:
            answer = await self._registry.call(
                "rotate_key",
                node_id=state.node_id,
                new_public_key=fresh.public_key_b64,
                signature=state.identity.sign_text(rotate_text(state.node_id, fresh.public_key_b64)),
            )
        except RegistryUnavailable:
            _log.warning("key rotation unanswered", extra={"kv": {"new_key": str(self._files and self._files.next)}})
            raise
        except RegistryError:
            # A request whose answer was lost is sent again, and refused because the first one was carried out.
            with contextlib.suppress(RegistryError):
                await self._settle()
            if state.identity is not fresh:
                raise
            return {
                "type": "rotate_key_ok",
                "node_id": state.node_id,
                "address": str(state.address),
                "public_key": fresh.public_key_b64,
            }
        await self._adopt(fresh)
        return answer

    async def _adopt(self, identity: Identity) -> None:
        """Use the new key from now on, on disk first."""
        if self._files is not None:
            try:
                await files.save(self._files.current, identity.dump())
            except OSError as exc:
                # The registry has decided; the next start finds the key under its other name.
                kv = {"new_key": str(self._files.next), "error": str(exc)}
                _log.error("rotated key is not in place", extra={"kv": kv})
                self._state.identity = identity
                return
        self._state.identity = identity
        await self._discard()

    async def _discard(self) -> None:
        self._state.next_key = None
        if self._files is not None:
            await files.remove(self._files.next)


class _KeyFiles(NamedTuple):
    """The identity file and, beside it, the key that is to replace it."""

    current: Path
    next: Path

    @classmethod
    def of(cls, identity: Path) -> _KeyFiles:
        current = Path(os.path.realpath(identity))  # of a symbolic link the target is replaced, as saving does
        return cls(current, current.with_name(current.name + ".next"))


async def load_next_key(identity_path: Path) -> NextKey | None:
    """Return the key that an interrupted rotation left beside the identity file, None if there is none that can be used."""
    path = _KeyFiles.of(identity_path).next
    try:
        content = await files.load(path)
        return None if content is None else parse_next_key(content)
    except (OSError, IdentityError) as exc:
        _log.warning("key of an interrupted rotation unusable", extra={"kv": {"path": str(path), "error": str(exc)}})
        return None


def dump_next_key(key: NextKey) -> bytes:
    """Return the file form: an identity with the id of its node."""
    return json.dumps({**json.loads(key.identity.dump()), "node_id": key.node}, indent=2).encode()


def parse_next_key(content: bytes) -> NextKey:
    """Read the file form; raise `IdentityError` if it is none."""
    identity = Identity.parse(content)
    node = json.loads(content).get("node_id")
    if type(node) is not int or not 0 < node <= 0xFFFFFFFF:
        raise IdentityError(f"no usable node_id: {node!r}")
    return NextKey(NodeId(node), identity)
