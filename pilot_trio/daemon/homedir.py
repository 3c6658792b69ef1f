"""What the node finds and leaves beside its key file: identity, account (`spec/services.md` §6.1, §6.2, §8.5)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import attrs

from pilot_trio.config import Config
from pilot_trio.crypto.identity import KEY_SIZE, Identity
from pilot_trio.daemon.key_rotation import load_next_key
from pilot_trio.daemon.state import NextKey
from pilot_trio.errors import IdentityError, StartupError
from pilot_trio.net import files
from pilot_trio.net.file_lock import LockHeld, hold_lock

_SYNTHETIC_DOMAIN: Final = "nodes.pilotprotocol.network"  # of owners without an address; protocol, services §8.5
_SYNTHETIC_KEY_BYTES: Final = 6  # of the public key, in hex before the @; protocol, §8.5

_log = logging.getLogger("pilot_trio.daemon")


@attrs.frozen
class Home:
    """The node's identity and the files beside it. Made by `open_home`; without a key file every path is None."""

    identity: Identity
    email: str
    directory: Path | None
    next_key: NextKey | None = None
    """The key of a rotation that was interrupted."""

    @property
    def persistent(self) -> bool:
        """Whether anything outlives the process."""
        return self.directory is not None

    def file(self, name: str) -> Path | None:
        """Return the path of a state file, None if nothing is kept."""
        return None if self.directory is None else self.directory / name


async def open_home(config: Config, random_bytes: Callable[[int], bytes] = os.urandom) -> Home:
    """Load the identity, or make and save one; find out the owner's address and save it.

    Args:
      config: says where they are kept.
      random_bytes: entropy for a new identity.

    Raises:
      StartupError: the identity cannot be used or saved, or the address is none.
    """
    path = config.identity
    if path is None:
        identity = Identity.from_seed(random_bytes(KEY_SIZE))
        return Home(identity, _checked_email(config.email or synthetic_email(identity)), None)
    try:
        identity = await _load_or_make(path, random_bytes)
    except IdentityError as exc:
        raise StartupError(f"load identity: {exc}") from exc
    except OSError as exc:
        raise StartupError(f"save identity: {exc.filename or path}: {exc.strerror}") from exc
    email = _checked_email(config.email or await _stored_email(path.parent) or synthetic_email(identity))
    await _store_email(path.parent, email)
    return Home(identity, email, path.parent, await load_next_key(path))


@contextlib.contextmanager
def sole_use(identity: Path | None) -> Generator[None]:
    """Keep other nodes from the identity for the block: two under one number take the registration from each other.

    Raises:
      StartupError: another node uses it.
    """
    if identity is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(identity.with_name(identity.name + ".lock")))
        except LockHeld as exc:
            holder = f" (pid {exc.pid})" if exc.pid else ""
            raise StartupError(
                f"identity {identity} is in use by a running node{holder}: stop it first, or name another identity file"
            ) from exc
        yield


def synthetic_email(identity: Identity) -> str:
    """Return the address that stands for an owner who named none."""
    return f"{identity.public_key[:_SYNTHETIC_KEY_BYTES].hex()}@{_SYNTHETIC_DOMAIN}"


async def _load_or_make(path: Path, random_bytes: Callable[[int], bytes]) -> Identity:
    identity = await files.load_identity(path)
    if identity is not None:
        _log.info("loaded identity", extra={"kv": {"path": str(path)}})
        return identity
    identity = Identity.from_seed(random_bytes(KEY_SIZE))
    await files.save(path, identity.dump())
    _log.info("saved identity", extra={"kv": {"path": str(path)}})
    return identity


async def _stored_email(directory: Path) -> str:
    path = directory / "account.json"
    try:
        record = json.loads(await files.load(path) or b"{}")
        email = record.get("email", "")
    except (OSError, ValueError, AttributeError) as exc:
        # Worth a word, not a failed start: the address is informational and about to be written anew.
        _log.warning("cannot read account", extra={"kv": {"path": str(path), "error": str(exc)}})
        return ""
    return email if isinstance(email, str) and "@" in email else ""


async def _store_email(directory: Path, email: str) -> None:
    path = directory / "account.json"
    try:
        await files.save(path, json.dumps({"email": email}, indent=2).encode())
    except OSError as exc:
        _log.warning("cannot save account", extra={"kv": {"path": str(path), "error": str(exc)}})


def _checked_email(email: str) -> str:
    if "@" not in email:
        raise StartupError("invalid email: email address must contain @")
    return email
