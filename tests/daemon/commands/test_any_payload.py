"""Whatever a client sends: one reply to each replied command, none to the others, and no handler crashes."""

from __future__ import annotations

import json
from typing import Any

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pilot_trio.wire.ipc import Code
from tests.daemon.commands.assembly import ScriptedRegistry, assembled

SILENT = {Code.SEND, Code.SEND_TO, Code.CANCEL}
PUSHES = {Code.ACCEPT, Code.RECV, Code.RECV_FROM}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
names = st.sampled_from(
    [
        "audience",
        "badge",
        "badge_sig",
        "body_b64",
        "body_hash",
        "check_standing",
        "enrollment",
        "enrollment_sig",
        "envelope",
        "max_skew_secs",
        "nonce",
        "rules",
        "signature",
        "version",
    ]
)
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6))
payloads = (
    st.binary(max_size=40)
    | st.builds(bytes.__add__, st.binary(max_size=9), documents.map(lambda value: json.dumps(value).encode()))
    | documents.map(lambda value: json.dumps(value).encode())
    # Sub-commands with plausible numbers: networks and nodes that exist, short timeouts.
    | st.builds(
        bytes.__add__, st.integers(0, 8).map(lambda n: bytes([n])), st.lists(st.integers(0, 9), max_size=12).map(bytes)
    )
)
codes = st.sampled_from(sorted(set(Code))) | st.integers(0, 255)


def answers_anything() -> ScriptedRegistry:
    registry = ScriptedRegistry()
    types = ("set_hostname", "set_visibility", "set_tags", "deregister", "rotate_key", "list_networks", "join_network")
    for type_ in (*types, "leave_network", "list_nodes", "poll_handshakes", "request_handshake", "get_network_policy"):
        registry.answers[type_] = lambda _fields: {}
    return registry


@given(st.lists(st.tuples(codes, payloads), min_size=1, max_size=4))
def test_every_request_is_answered_once(requests: list[tuple[int, bytes]]) -> None:
    async def main() -> None:
        async with assembled(registry=answers_anything()) as node:
            peer = await node.connect()
            for code, payload in requests:
                await peer.send(code, payload)
                if code not in SILENT:
                    await reply_to(peer, code)
            await peer.send(Code.HEALTH)
            assert await reply_to(peer, Code.HEALTH) == Code.HEALTH_OK
            assert node.server.statistics().crashes == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def reply_to(peer: Any, code: int) -> int:
    """Return the code of the next frame that is no push; a `CLOSE_OK` push follows the reply to a local close."""
    while True:
        frame = await peer.receive()
        assert frame is not None, "the daemon closed the connection"
        if frame[4] in PUSHES or (frame[4] == Code.CLOSE_OK and code != Code.CLOSE):
            continue
        assert frame[4] in (code + 1, Code.ERROR), (code, frame)
        return int(frame[4])
