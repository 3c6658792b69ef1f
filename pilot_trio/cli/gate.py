"""The check before opening a tunnel: no strangers that hide (`spec/cli.md` §2.3)."""

from __future__ import annotations

import struct
from typing import Any, Final

from pilot_trio.address import Address
from pilot_trio.cli.ipc_client import IPCClient
from pilot_trio.cli.output import CliError
from pilot_trio.cli.session import REQUEST_TIMEOUT, Session, registry_hint
from pilot_trio.errors import DaemonError, RegistryError, RegistryUnavailable
from pilot_trio.wire.ipc import Code

FIRST_CONTACT_WAIT: Final = 5.0  # seconds to wait for trust when the daemon cannot admit answers by itself
_REQUEST: Final = 1  # handshake sub-commands, `spec/ipc.md` §5.5
_WAIT: Final = 7


def check_target(session: Session, client: IPCClient, address: Address, *, skip: bool) -> None:
    """Let trusted nodes and public ones pass; raise `trust_required` for others.

    Args:
      session: who asks.
      client: the connection to the daemon.
      address: where a stream or datagram is about to go.
      skip: the user said `--no-auto-handshake`.
    """
    if skip or _is_trusted(session, client, address.node, 0.0):
        return
    refusal = f"run: pilot-trio handshake {address}"
    try:
        record = session.call_registry({"type": "lookup", "node_id": address.node})
    except RegistryUnavailable as exc:
        text = f"cannot verify peer visibility (registry unreachable: {exc.text}); refusing tunnel to untrusted node"
        raise CliError("trust_required", text, f"{refusal}; {registry_hint(session.registry)}") from exc
    except RegistryError as exc:
        text = f"cannot look up peer {address} ({exc}); refusing tunnel to untrusted node"
        raise CliError("trust_required", text, refusal) from exc
    if record.get("public") is not True:
        raise CliError("trust_required", f"refusing tunnel to private node {address} without trust", refusal)
    features = _ask(session, client, Code.INFO, b"", REQUEST_TIMEOUT).get("features") or []
    if "reply_window" not in features:
        _ask(session, client, Code.HANDSHAKE, struct.pack("!BI", _REQUEST, address.node), REQUEST_TIMEOUT)
        _is_trusted(session, client, address.node, FIRST_CONTACT_WAIT)


def _is_trusted(session: Session, client: IPCClient, node: int, wait: float) -> bool:
    payload = struct.pack("!BII", _WAIT, node, int(wait * 1000))
    return bool(_ask(session, client, Code.HANDSHAKE, payload, wait + REQUEST_TIMEOUT).get("trusted"))


def _ask(session: Session, client: IPCClient, code: Code, payload: bytes, timeout: float) -> dict[str, Any]:
    """Ask the daemon; an error is no answer, because old daemons do not know the question (`spec/ipc.md` §6)."""
    try:
        return session.ask(client, code, payload, "trust check", timeout)
    except CliError as exc:
        if not isinstance(exc.__cause__, DaemonError):
            raise
        return {}
