"""Prove that a request comes from this node, and check others' proofs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from pilot_trio.cli.framework import command, count, option, switch, timeout
from pilot_trio.cli.output import EXIT_FAILURE, CliError
from pilot_trio.cli.session import Session
from pilot_trio.wire.ipc import Code

_SECTION: Final = "Request signing"
BODY_MAX: Final = 1 << 30  # bytes of a file to hash; more is a mistake or belongs into pieces


@command("sign-request", section=_SECTION)
@option("audience", "who the request is for", "name")
@option("body", "the request's body", "text")
@option("body-file", "file with the request's body", "path")
@option("body-hash", "SHA-256 of the request's body", "hex64")
@timeout()
def sign_request(
    session: Session,
    audience: str | None,
    body: str | None,
    body_file: str | None,
    body_hash: str | None,
    timeout: float,
) -> None:
    """Sign a request in this node's name."""
    if not audience:
        text = "--audience <name> (--body <text> | --body-file <path> | --body-hash <hex64>)"
        raise CliError("invalid_argument", f"usage: pilot-trio sign-request {text}")
    if sum(given is not None for given in (body, body_file, body_hash)) != 1:
        raise CliError("invalid_argument", "sign-request: exactly one of --body-file, --body-hash, --body is required")
    if body is not None:
        body_hash = hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()
    elif body_file is not None:
        body_hash = _hash_file(Path(body_file))
    payload = json.dumps({"audience": audience, "body_hash": body_hash}).encode()
    reply = session.ask_once(Code.SIGN_ENVELOPE, payload, "sign-request: sign_envelope", timeout)
    session.output.result({key: reply.get(key) for key in ("envelope", "signature", "address")})


@command("verify-request", section=_SECTION)
@option("envelope", "what was signed", "text")
@option("signature", "its signature", "base64")
@switch("standing", "also ask the registry about the signer")
@count("max-skew", "seconds that the signer's clock may differ", 300)
@timeout()
def verify_request(
    session: Session, envelope: str | None, signature: str | None, standing: bool, max_skew: int, timeout: float
) -> int:
    """Check who signed a request; exit 1 if the signature does not hold."""
    if not envelope or not signature:
        text = "--envelope <text> --signature <base64> [--standing] [--max-skew <n>]"
        raise CliError("invalid_argument", f"usage: pilot-trio verify-request {text}")
    question = {
        "envelope": envelope,
        "signature": signature,
        "max_skew_secs": max_skew,
        "check_standing": standing,
    }
    label = "verify-request: verify_envelope"
    reply = session.ask_once(Code.VERIFY_ENVELOPE, json.dumps(question).encode(), label, timeout)
    session.output.result(reply)
    return 0 if reply.get("valid") else EXIT_FAILURE


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if path.stat().st_size > BODY_MAX:
                raise CliError("invalid_argument", f"{path} is larger than {BODY_MAX} bytes")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise CliError("invalid_argument", f"sign-request: read --body-file: {path}: {exc.strerror or exc}") from exc


COMMANDS: Final = {c.name: c for c in (sign_request, verify_request)}
