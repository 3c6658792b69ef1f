"""Malformed and borderline requests to our node and to the real daemon side by side: the answers are the same bytes.

Left out are the texts of JSON parsers (informative, `spec/ipc.md` §5.10) and the points where we differ on purpose
(`docs/deviations.md`); what a real daemon answers to well-formed requests is in the recorded vectors.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

import pilot_trio
from pilot_trio import Config
from pilot_trio.config import RegistryConfig
from pilot_trio.net.endpoint import Endpoint
from tests.interop.go import GoHome, open_go_daemon
from tests.interop.rendezvous import open_rendezvous

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MakeHome = Callable[[Endpoint, Endpoint], GoHome]

ANSWER_TIMEOUT = 60  # seconds; nothing asked here waits for anybody
NO_SIGNATURE = base64.b64encode(bytes(64)).decode()
LONG_AGO = 100  # Unix seconds


def as_json(code: int, **fields: Any) -> bytes:
    return bytes([code]) + json.dumps(fields).encode()


def policy(document: Any) -> bytes:
    return b"\x23\x05\x01" + struct.pack("!HH", 9, 0) + json.dumps(document).encode()


def with_rule(**changes: Any) -> bytes:
    rule = {"name": "r1", "on": "connect", "match": "true", "actions": [{"type": "allow"}], **changes}
    return policy({"version": 1, "rules": [rule]})


def verify(timestamp: str = str(LONG_AGO), signature: str = NO_SIGNATURE, **fields: Any) -> bytes:
    envelope = f"pilot-req-v1|000000000001|{timestamp}|0123456789abcdef|{'a' * 64}|svc"
    return as_json(0x35, **{"envelope": envelope, "signature": signature, **fields})


def sign(**fields: Any) -> bytes:
    return as_json(0x33, **{"audience": "svc", **fields})


def enroll(enrollment: str) -> bytes:
    return as_json(0x31, enrollment=enrollment, enrollment_sig="s")


REQUESTS = {
    "sub-commands": [
        *(bytes.fromhex(text) for text in ("0f", "0f00", "0f08", "0fff", "1f", "1f00", "1f08", "1fff", "23", "2300")),
        *(bytes.fromhex(text) for text in ("2301", "2303", "2308", "23ff", "2302ff", "2307", "230700", "230701")),
    ],
    "handshakes": [
        *(bytes.fromhex(text) for text in ("0f01000000", "0f02", "0f03ffffff", "0f0600", "0f07000000")),
        *(bytes.fromhex(text) for text in ("0f07ffffffff00000000", "0f06ffffffff", "0f0200000309", "0f0300000309")),
    ],
    "node": [bytes.fromhex(text) for text in ("11", "15", "2d", "2d000000", "2d0000000000")],
    "tags": [b"\x19" + text for text in (b"", b"[1]", b'["a",1]', b'[["a"]]', b"{}", b"[true]", b'["a","b","c","d"]')],
    "webhooks": [
        b"\x1b" + url.encode()
        for url in (
            "x",
            "ftp://x",
            "http://",
            "http:///x",
            "http://[fe80::1]/",
            "http://[fe80::1%25eth0]/",
            "http://169.254.169.254/x",
            "http://user@169.254.1.1/",
            "http://[::ffff:169.254.169.254]/",
            "http://224.0.0.1/",
            "http://[ff02::1]/",
            "http://METADATA.google.internal/",
            "http://ec2.internal/",
            "http://instance-data.ec2.internal/",
            "http://0.0.0.0/",
            "http://a b/",
            "http://x:y/",
            "http://%zz/",
            "http://x/%zz",
            "://x",
            "http://x\x01/",
            "",
        )
    ],
    "policies": [
        *(
            bytes.fromhex(text)
            for text in ("2305", "23050000", "2305000009", "2305010009", "23050100090005", "2305090009")
        ),
        *map(policy, ({}, {"version": 1}, {"version": 2}, {"version": 1, "rules": [{}]}, None)),
        with_rule(name=""),
        with_rule(on="sunset"),
        with_rule(match=""),
        with_rule(actions=[]),
        with_rule(actions=[{"type": "explode"}]),
        with_rule(actions=[{"type": "allow"}, {"type": "explode"}]),
    ],
    "signing": [
        as_json(0x33),
        sign(),
        sign(body_hash="A" * 64),
        sign(body_hash="a" * 63),
        sign(body_hash="a" * 64, body_b64="aGk="),
        *(sign(body_b64=text) for text in ("aGk", "a", "!", "aG=k", "aGk=x", "aGk==", "=", "aGkhaGk", "aG==x")),
        sign(audience="", body_b64="aGk="),
        sign(audience="é", body_b64="aGk="),
        sign(audience="é" * 64, body_b64="aGk="),
        sign(audience="a" * 65, body_b64="aGk="),
        *(sign(body_b64="aGk=", nonce=text) for text in ("0123456789ABCDEF", "0", "0123456789abcdef0")),
    ],
    "verifying": [
        as_json(0x35),
        as_json(0x35, envelope="x"),
        as_json(0x35, envelope="x", signature="y"),
        *map(verify, ("", "01", "0", "-1", "x", "99999999999999999999", "9223372036854775808")),
        *(verify(max_skew_secs=window) for window in (-5, 0, 0.5, 1, 1.9, 59, 60, 3600, 5400, 86_400, 2**31)),
        *(verify(signature=text, max_skew_secs=2**31) for text in ("AAAA", "!!", "aGk", NO_SIGNATURE + "\n")),
    ],
    "badges": [as_json(0x2F), as_json(0x2F, badge="x"), as_json(0x2F, badge_sig="x")],
    "enrollments": [
        as_json(0x31),
        *map(
            enroll,
            (
                "x",
                "a:b:c:d:e:f:g",
                "a:b:c:d:e:f:g:h",
                "pilotenroll:v2:1:github:c0ffee:1:k",
                "pilotenroll:v1:x:github:c0ffee:1:k",
                "pilotenroll:v1:01:github:c0ffee:1:k",
                "pilotenroll:v1:7:github::1:k",
                "pilotenroll:v1:1:github:c0ffee:x:k",
            ),
        ),
    ],
}


class Pair(NamedTuple):
    """The sockets of the two."""

    theirs: Path
    ours: Path


@asynccontextmanager
async def both_daemons(make: MakeHome) -> AsyncGenerator[Pair, None]:
    async with open_rendezvous() as rendezvous:
        registry, beacon = rendezvous.handle.registry, rendezvous.handle.beacon
        assert registry is not None
        assert beacon is not None
        theirs, ours = make(registry, beacon), make(registry, beacon)
        config = Config(
            home=ours.root,
            socket=ours.socket,
            registry=RegistryConfig(endpoint=registry),
            beacon=(beacon,),
            listen="127.0.0.1:0",
        )
        async with open_go_daemon(theirs), trio.open_nursery() as nursery:
            await nursery.start(partial(pilot_trio.serve, config))
            yield Pair(theirs.socket, ours.socket)
            nursery.cancel_scope.cancel()


async def answer(socket: Path, request: bytes) -> bytes:
    """Return the first frame that a daemon answers with, without its length."""
    received = bytearray()
    async with await trio.open_unix_socket(str(socket)) as stream:
        await stream.send_all(struct.pack("!I", len(request)) + request)
        with trio.fail_after(ANSWER_TIMEOUT):
            while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
                chunk = await stream.receive_some()
                assert chunk, f"closed without an answer to {request!r}"
                received += chunk
    return bytes(received[4:])


async def test_the_answers_are_the_same(make_go_home: MakeHome) -> None:
    differences: list[tuple[str, bytes, bytes, bytes]] = []
    async with both_daemons(make_go_home) as pair:
        for subject, requests in REQUESTS.items():
            for request in requests:
                theirs, ours = await answer(pair.theirs, request), await answer(pair.ours, request)
                if theirs != ours:
                    differences.append((subject, request, theirs, ours))
    assert differences == []
