"""Which handshake messages are believed (`spec/services.md` §1.3, §1.4)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from pilot_trio.address import NodeId
from pilot_trio.crypto.identity import Identity
from pilot_trio.proto.handshake import (
    MESSAGE_AGE_MAX,
    MESSAGE_AHEAD_MAX,
    REPLAY_LIFETIME,
    REPLAY_MAX,
    REPLAY_PER_PEER_MAX,
    Drop,
    ReplayMemory,
    check_signature,
    screen,
)
from pilot_trio.wire.handshake import HandshakeMessage, Kind, make_message

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
NOW = 1_795_458_600.0
PEER = NodeId(7)
KEY = "S0VZ"


class TestScreening:
    identity = Identity.from_seed(bytes(32))

    def message(self, kind: Kind = Kind.REQUEST, **changes: Any) -> HandshakeMessage:
        return attrs.evolve(make_message(kind, self.identity, PEER, 1, NOW), **changes)

    @pytest.mark.parametrize(
        ("now", "outcome"),
        [
            (NOW + MESSAGE_AGE_MAX, Kind.REQUEST),
            (NOW + MESSAGE_AGE_MAX + 1, Drop.TOO_OLD),
            (NOW - MESSAGE_AHEAD_MAX, Kind.REQUEST),
            (NOW - MESSAGE_AHEAD_MAX - 1, Drop.FROM_FUTURE),
        ],
    )
    def test_the_clocks_may_differ_a_little(self, now: float, outcome: Drop | Kind) -> None:
        assert screen(self.message(), PEER, now) is outcome

    def test_what_is_missing(self) -> None:
        assert screen(self.message(public_key=""), PEER, NOW) is Drop.NO_KEY
        assert screen(self.message(signature=""), PEER, NOW) is Drop.NO_SIGNATURE
        assert screen(self.message(type="zzz"), PEER, NOW) is Drop.UNKNOWN_TYPE

    @pytest.mark.parametrize("kind", [Kind.ACCEPT, Kind.REJECT, Kind.REVOKE])
    def test_an_answer_is_believed_only_from_its_sender(self, kind: Kind) -> None:
        assert screen(self.message(kind), NodeId(3), NOW) is Drop.WRONG_SENDER
        bare = self.message(kind, public_key="", signature="")
        assert screen(bare, PEER, NOW) is kind  # honoured on the strength of the stream alone

    def test_a_request_may_be_carried_by_another(self) -> None:
        assert screen(self.message(), NodeId(3), NOW) is Kind.REQUEST

    def test_signatures(self) -> None:
        own = self.identity.public_key_b64
        assert check_signature(self.message(), NodeId(1), own) is None
        assert check_signature(self.message(), NodeId(1), "") is None
        assert check_signature(self.message(), NodeId(1), KEY) is Drop.KEY_MISMATCH
        assert check_signature(self.message(), NodeId(2), own) is Drop.BAD_SIGNATURE
        for signature in ("AAAA", "!", "é", base64.b64encode(bytes(64)).decode()):
            assert check_signature(self.message(signature=signature), NodeId(1), own) is Drop.BAD_SIGNATURE
        assert check_signature(self.message(public_key="AAAA"), NodeId(1), "") is Drop.BAD_SIGNATURE

    @pytest.mark.parametrize("vector", VECTORS["trust_handshake"]["messages"], ids=lambda vector: str(vector["name"]))
    def test_recorded_messages_verify(self, vector: dict[str, Any]) -> None:
        message = HandshakeMessage.decode(vector["wire_utf8"].encode())
        receiver = NodeId(int(vector["signed_text"].rpartition(":")[2]))
        assert check_signature(message, receiver, "") is None
        assert check_signature(message, NodeId(77), "") is Drop.BAD_SIGNATURE


class TestReplays:
    def message(self, node: int = PEER, timestamp: int = 1) -> HandshakeMessage:
        return HandshakeMessage("handshake_request", node, signature="c2ln", timestamp=timestamp)

    def test_the_same_message_is_a_replay_and_a_later_one_is_not(self) -> None:
        memory = ReplayMemory()
        memory.record(self.message(), NodeId(1), NOW)
        memory.record(self.message(), NodeId(1), NOW)
        assert len(memory) == 1
        assert memory.seen(self.message(), NodeId(1))
        assert not memory.seen(self.message(timestamp=2), NodeId(1))
        assert not memory.seen(self.message(), NodeId(2))

    def test_a_flood_of_one_peer_pushes_out_only_its_own(self) -> None:
        memory = ReplayMemory()
        memory.record(self.message(node=1), NodeId(1), NOW)
        for timestamp in range(REPLAY_PER_PEER_MAX + 1):
            memory.record(self.message(timestamp=timestamp), NodeId(1), NOW)
        assert len(memory) == 1 + REPLAY_PER_PEER_MAX
        assert memory.seen(self.message(node=1), NodeId(1))
        assert not memory.seen(self.message(timestamp=0), NodeId(1))
        assert memory.seen(self.message(timestamp=1), NodeId(1))

    def test_the_whole_memory_is_bounded(self) -> None:
        memory = ReplayMemory()
        for node in range(REPLAY_MAX + 1):
            memory.record(self.message(node=node), NodeId(1), NOW)
        assert len(memory) == REPLAY_MAX
        assert not memory.seen(self.message(node=0), NodeId(1))

    def test_old_ones_are_reaped(self) -> None:
        memory = ReplayMemory()
        memory.record(self.message(timestamp=1), NodeId(1), NOW)
        memory.record(self.message(timestamp=2), NodeId(1), NOW + 1)
        memory.reap(NOW + REPLAY_LIFETIME)
        assert len(memory) == 2
        memory.reap(NOW + REPLAY_LIFETIME + 1)
        assert len(memory) == 1
        memory.reap(NOW + REPLAY_LIFETIME + 2)
        assert len(memory) == 0
